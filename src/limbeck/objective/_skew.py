"""What skewed divergences share: the mixture in them, and how much of it adapts to each row."""

from abc import abstractmethod
from typing import Any

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from limbeck.numerics import log_probs, segment_mean
from limbeck.objective.base import AbstractDivergence, by_chunks
from limbeck.schedule import Share
from limbeck.signals import Needs, Signals, dense

LEAST = 1e-2
"""Share of the mixture that no row falls below; the authors' value."""


class Reference(nn.Module):
    """The mean gap of the rows of the first window, which all later gaps are held against."""

    total: Tensor
    num: Tensor
    whole: Tensor

    def __init__(self):
        super().__init__()
        for name in ("total", "num"):
            self.register_buffer(name, torch.zeros((), device="cpu"))
        self.register_buffer("whole", torch.tensor(False, device="cpu"))

    def hear(self, gaps: Float[Tensor, " row"]) -> None:
        """Adds rows, until the first window is whole."""
        if not self.whole:
            self.total += gaps.sum()
            self.num += len(gaps)


class AbstractSkew(AbstractDivergence):
    """A divergence to a mixture of teacher and student; a final class writes `skewed`, and says who wrote the texts it is for."""

    alpha: Share
    adaptive: bool = Field(default=False, json_schema_extra={"since": False})
    """Whether alpha is smaller in rows that student and teacher find about equally likely: it is then the greatest share."""

    @model_validator(mode="after")
    def whole_texts(self) -> "AbstractSkew":
        if self.adaptive and self.per in ("chunk", "patch"):
            raise ValueError("adaptive: target or row as `per`; it looks at whole texts, which two tokenizers cut differently, and images are not")
        return self

    @property
    def needs(self) -> Needs:
        return {"student": ("logits", "label"), "teacher": ("logits",)} if self.adaptive else super().needs

    def build(self, example: Any) -> Reference | None:
        return Reference() if self.adaptive else None

    def follow(self, learned: Any) -> None:
        if learned is not None and learned.num:
            learned.whole.fill_(True)

    @abstractmethod
    def skewed(self, log_p: Float[Tensor, "target k"], log_q: Float[Tensor, "target k"], alpha: Any) -> Float[Tensor, " target"]:
        """The divergence of each target for a share, or a share each."""

    @abstractmethod
    def gap(self, p: Float[Tensor, " row"], q: Float[Tensor, " row"]) -> Float[Tensor, " row"]:
        """How much likelier a text is to the one who wrote it, given the mean probability (geometric) of its tokens."""

    def divergence(self, log_p, log_q):
        return self.skewed(log_p, log_q, self.alpha)

    def folding(self, factors, student, teacher, learned=None):
        return super().folding(factors, student, teacher) if learned is None else None

    def values(self, student: Signals, teacher: Signals, learned: Any = None) -> Float[Tensor, " unit"]:
        if learned is None:
            return super().values(student, teacher)
        rows, num = student.rows["target"], student.num("row")
        share = self.shares(student, teacher, learned)[rows, None]
        each = by_chunks(self.part_shared, self.chunk, student["logits"], teacher["logits"], share) * self.temperature**self.order
        return each if self.per == "target" else segment_mean(each, rows, num)

    def part_shared(self, q: Any, p: Any, share: Float[Tensor, "target 1"]) -> Float[Tensor, " target"]:
        """The divergence of one chunk, each target with the share of its row."""
        return self.skewed(log_probs(dense(p), self.temperature), log_probs(dense(q), self.temperature), share)

    @torch.no_grad()
    def shares(self, student: Signals, teacher: Signals, learned: Reference) -> Float[Tensor, " row"]:
        """The share of each row, a constant: smaller, the smaller its gap is than at the start."""
        rows, num, labels = student.rows["target"], student.num("row"), student["label"]
        means = [segment_mean(by_chunks(said_of, self.chunk, seat["logits"], labels), rows, num).exp() for seat in (teacher, student)]
        gaps = self.gap(*means)
        learned.hear(gaps)
        if not learned.whole:
            return torch.full_like(gaps, self.alpha)
        share = 1 - (1 - self.alpha) * learned.total / learned.num / (gaps + 1e-5)
        return torch.where(gaps > 0, share, self.alpha).clamp(LEAST, max(self.alpha, LEAST))


def said_of(logits: Any, labels: Tensor) -> Float[Tensor, " target"]:
    """Log-probability of each label."""
    return log_probs(dense(logits)).gather(-1, labels[:, None])[:, 0]
