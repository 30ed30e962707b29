"""Cross-entropy against labels, hard or mixed."""

from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from limbeck.chunked import Folding, at_entries, foldable
from limbeck.numerics import log_probs, segment_mean
from limbeck.objective.base import Objective, by_chunks, per_target
from limbeck.signals import Needs, Signals, dense


class CrossEntropy(Objective):
    r"""Negative log-probability that the student gives to the label: next tokens, or classes.

    $$ -\log q_y \qquad\text{or, for mixed labels,}\qquad -\sum_v y_v \log q_v $$

    Text as it is, without a teacher; or, with the teacher's own text as data, distillation by answers. Beside a
    divergence it keeps a student honest where the teacher is wrong.

    Example:
        >>> CrossEntropy().needs
        {'student': ('logits', 'label')}

    References:
        Shannon, A Mathematical Theory of Communication, 1948.
    """

    kind: Literal["cross_entropy"] = "cross_entropy"
    per: Literal["target", "row"] = "target"
    """row: mean over the targets of each row, then one number a row."""
    chunk: int = Field(default=256, gt=0)
    """Targets whose logits exist at the same time."""

    @property
    def unit(self) -> str:
        return self.per

    @property
    def needs(self) -> Needs:
        return {"student": ("logits", "label")}

    def values(self, student: Signals) -> Float[Tensor, " unit"]:
        each = by_chunks(self.part, self.chunk, student["logits"], student["label"])
        return each if self.per == "target" else segment_mean(each, student.rows["target"], student.num("row"))

    def folding(self, factors, student):
        q, label = student["logits"], student["label"]
        if type(self).part is not CrossEntropy.part or not foldable(q, label):
            return None
        return Folding(self.chunk_slope, q, (label,), per_target(factors, student, self.per), self.chunk)

    def chunk_slope(self, log_q: Float[Tensor, "target vocab"], label: Tensor) -> tuple[Float[Tensor, " target"], Any]:
        """The negative log-probability of one chunk, and its derivative by log q."""
        if torch.is_floating_point(label):
            return -(label * log_q).sum(-1), -label
        return at_entries(lambda kept: -kept[:, 0], log_q, label[:, None])

    def part(self, q: Any, label: Any) -> Float[Tensor, " target"]:
        """The loss of one chunk: this function compiles whole."""
        log_q = log_probs(dense(q))
        if torch.is_floating_point(label):
            return -(label * log_q).sum(-1)
        return -log_q.gather(-1, label[:, None])[:, 0]
