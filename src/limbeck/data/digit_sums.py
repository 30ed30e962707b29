"""Questions about digits, with every step to the answer."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import accumulate
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator

from limbeck.data.base import Part, Place, Rows, Source, key_of
from limbeck.errors import Refused
from limbeck.signals import Row
from limbeck.store import sha256_json


class DigitSums(Source):
    r"""Draws sums of digits modulo a number, each with its label and the steps that lead to it.

    $$ y = (d_1 + \dots + d_n) \bmod m \quad\text{or}\quad y = \text{the most frequent of } d_1 \bmod m, \dots, d_n \bmod m $$

    The prompt is `7+4+2=`; the answer and `label` are y, by default the parity (1); the `rationale` is all partial sums modulo m
    (`1 1 1`), or, of `most`, the rest of each digit (`1 0 0`; of equally frequent ones the smallest is y). No sum comes twice, and the
    seed of the recipe draws them. For trials and claims about rationales, where every label and every step is right; it says nothing
    about language. A small model learns `most` from some hundred labels, and hardly a parity of many digits.

    Example:
        >>> DigitSums(num=100).modulus
        2

    References:
        Hsieh et al., Distilling step-by-step! Outperforming larger language models, 2023, arXiv:2305.02301 (rationales as a task).
    """

    kind: Literal["digit_sums"] = "digit_sums"
    num: Annotated[int, Field(ge=2, le=1_000_000)] = 1000
    """Sums drawn, with those held out."""
    terms: Annotated[int, Field(ge=2, le=15)] = 6
    """Digits in a sum."""
    modulus: Annotated[int, Field(ge=2, le=10)] = 2
    """The label is the rest by this; 2: parity."""
    ask: Literal["sum", "most"] = "sum"
    """The label: the rest of the sum, or the most frequent rest of the digits."""
    share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the sums not held out that is trained on, the first; held-out sums are the same for each share."""
    split: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Share of sums that is held out for evaluation, chosen by hash."""
    licence: str | None = "CC0-1.0"
    """Licence of the rows, for the model card."""

    @model_validator(mode="after")
    def enough_sums(self) -> "DigitSums":
        if self.num > 10**self.terms // 2:
            raise ValueError(f"num: at most half of the {10**self.terms:,} sums of {self.terms} digits")
        return self

    def rows(self, rows: Rows, place: Place) -> Rows:
        found = super().rows(rows, place)
        *before, mine = found.parts
        return replace(found, parts=(*before, Part(mine.rows[: max(round(self.share * len(mine.rows)), 1)])))

    def read(self, place: Place, path: str | None) -> tuple[list[Row], Mapping[str, Any], list[str]]:
        if path is not None:
            raise Refused("key", "data digit_sums  held_out", "sums, of which split holds out a share", f"held_out: {path}", "remove held_out")
        stream, drawn = place.streams("digit_sums"), dict[int, None]()
        while len(drawn) < self.num:
            drawn |= dict.fromkeys(torch.randint(10**self.terms, (self.num,), generator=stream, device="cpu").tolist())
        rows = [self.row(f"{number:0{self.terms}d}") for number in list(drawn)[: self.num]]
        facts = {"name": "digit_sums", "sha256": sha256_json([row.key for row in rows]), "rows": len(rows), "licence": self.licence}
        return rows, facts, []

    def row(self, digits: str) -> Row:
        """One sum with its steps."""
        prompt, rests = "+".join(digits) + "=", [int(digit) % self.modulus for digit in digits]
        if self.ask == "sum":
            rests = [value % self.modulus for value in accumulate(rests)]
        label = str(rests[-1] if self.ask == "sum" else max(sorted(rests), key=rests.count))
        content = {"prompt": prompt, "answer": label, "label": label, "rationale": " ".join(map(str, rests))}
        return Row(key_of("digit_sums", *content.values()), content, source=prompt)
