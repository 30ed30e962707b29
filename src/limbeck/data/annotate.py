"""Rationales and labels that a served model writes."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from pydantic import Field, field_validator

from limbeck.component import short
from limbeck.data._asking import AbstractAsking, most
from limbeck.data._written import Unparsed, fields, filled, parsed, texts
from limbeck.data.base import Part, Place, Rows, key_of
from limbeck.endpoint.chat import Chat, Written
from limbeck.errors import Failed, Refused
from limbeck.signals import Row
from limbeck.store import sha256_json
from limbeck.text.spans import READ

LATER = "not asked yet"
"""What stands in a plan for answers that are not kept."""


class Annotate(AbstractAsking):
    r"""Has a served model write a rationale and a label for each training row.

    The prompt is a template; `{prompt}` in it is the row's field of that name, put in once: braces in a row stay as they are. What
    comes before the first marker of an answer is the rationale, what follows is the label. An answer without a marker or with a second
    one, cut off at `max_tokens`, or with an empty half is no answer: its row stays without a rationale, and is counted. Each question
    is asked once, in all runs; the rows keep their order, and held-out rows are not asked about. Choose it where the model can only be
    asked; `rollouts` lets a role of the run write.

    Example:
        >>> Annotate(url="http://localhost:8000/v1", model="tutor", prompt="Q: {prompt}\nA:").markers
        ('So the answer is', 'The answer is')

    References:
        Hsieh et al., Distilling step-by-step! Outperforming larger language models, 2023, arXiv:2305.02301.
    """

    kind: Literal["annotate"] = "annotate"
    prompt: str = Field(min_length=1)
    """What the model is asked, with a field of the row in braces: {prompt}, {text}, {answer}; {{name}} is the text {name}."""
    version: int = Field(default=1, ge=1)
    """Raised to ask everything anew with the same words."""
    markers: tuple[str, ...] = Field(default=("So the answer is", "The answer is"), min_length=1)
    """Texts, one of which stands between rationale and label."""
    into: dict[Literal["rationale", "label"], str] = Field(default={"rationale": "rationale", "label": "label"}, min_length=1)
    """Names that rationale and label get in the row; {rationale: rationale, label: answer} replaces the row's own answer."""
    keep_unparsed: bool = True
    """A row whose answer cannot be read stays as it was; false: it is left out."""

    @classmethod
    def example(cls) -> "Annotate":
        return cls(url="http://localhost:8000/v1", model="tutor", prompt="{text}")

    @field_validator("prompt")
    @classmethod
    def names_a_field(cls, value: str) -> str:
        if not fields(value):
            raise ValueError("a text with a field of the row in braces, such as {prompt}")
        return value

    @field_validator("markers")
    @classmethod
    def some_text(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not all(marker.strip() for marker in value):
            raise ValueError("texts that are not empty")
        return value

    @field_validator("into")
    @classmethod
    def names_apart(cls, value: dict[str, str]) -> dict[str, str]:
        taken = {*READ, "ids", "asked"} - {"answer"}
        if len(set(value.values())) < len(value) or any(not name.isidentifier() or name in taken for name in value.values()):
            raise ValueError(f"unlike names, none of {', '.join(sorted(taken))}")
        return value

    def rows(self, rows: Rows, place: Place) -> Rows:
        chats = {row.key: self.chat(row) for row in rows.train if fields(self.prompt) <= texts(row.content).keys()}
        if rows.train and not chats:
            there = ", ".join(sorted({name for row in rows.train for name in texts(row.content)})) or "none"
            got, do = f"{', '.join(sorted(fields(self.prompt)))}, of which no row has all", "correct prompt; {{name}} in it is the text {name}"
            raise Refused("prompt", "data annotate  prompt", f"fields of the rows: {short(there)}", short(got), do)
        said, reasons = self.said(chats, place), Counter[str]()
        later = Written(f"{LATER} {self.markers[0]} {LATER}", "stop")  # in a plan, so that later steps find the fields
        every = {key: said.get(key, later) for key in chats}
        made = ([new for row in part.rows for new in self.annotated(row, every.get(row.key), reasons)] for part in rows.parts)
        parts = tuple(Part(rest, part.share) for some, part in zip(made, rows.parts, strict=True) if (rest := tuple(some)))
        if said and reasons.total() == len(chats):
            got = f"none in {len(said):,} answers: {most(reasons)}; the first begins {ascii(next(iter(said.values())).text[:40])}"
            do = f"correct prompt, markers or max_tokens: {self.max_tokens}; version: {self.version + 1} asks the same anew"
            raise Failed("answers", "data annotate", f"a rationale and one of {short(', '.join(self.markers))}", got, do, code=5)
        facts = {"name": f"endpoint:{self.url}#{self.model}", "revision": sha256_json(self.prompt)[:16], "licence": None, "rows": len(chats)}
        notes = self.told(len(rows.train), chats, said, reasons)
        return replace(rows, parts=parts, provenance=(*rows.provenance, facts), notes=(*rows.notes, *notes))

    def chat(self, row: Row) -> Chat:
        """The question about a row. What is put in is text: braces in it mean nothing."""
        words = filled(self.prompt, texts(row.content))
        named = f"{sha256_json(self.prompt)[:16]}/{self.version}"
        return self.question(({"role": "user", "content": words},), named)

    def annotated(self, row: Row, answer: Written | None, reasons: Counter[str]) -> list[Row]:
        """The row with what was written about it; as it was where nothing was, and as it was or none where that cannot be read."""
        if answer is None:
            return [row]
        try:
            rationale, label = parsed(answer, self.markers)
        except Unparsed as reason:
            reasons[str(reason)] += 1
            return [row] if self.keep_unparsed else []
        new = {name: {"rationale": rationale, "label": label}[half] for half, name in self.into.items()}
        old = {name: value for name, value in row.content.items() if name not in ("ids", "asked") or "answer" not in new}
        return [replace(row, key=key_of(row.key, json.dumps(new, sort_keys=True)), content={**old, **new})]

    def told(self, total: int, chats: Mapping[str, Chat], said: Mapping[str, Written], reasons: Counter[str]) -> list[str]:
        """What was answered, what was not, and why."""
        notes = [f"annotate: {len(said) - reasons.total():,} of {total:,} rows have a rationale by {self.model}"]
        if other := total - len(chats):
            notes.append(f"annotate: {other:,} rows have no {', '.join(sorted(fields(self.prompt)))}, and are as they were")
        if reasons:
            kept = "stay as they were" if self.keep_unparsed else "are left out"
            notes.append(f"annotate: {reasons.total():,} answers cannot be read: {most(reasons)}; their rows {kept}")
        return [*notes, *self.to_come(chats, said)]
