"""How far apart two distributions are once both are sorted: whatever their entries mean, and however many they are."""

from typing import Annotated, Any, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from limbeck.chunked import Folding, foldable
from limbeck.numerics import log_probs
from limbeck.objective.base import Objective, by_chunks, per_target
from limbeck.signals import Needs, Signals, dense

HEARD = ("last_logits", "lead_logprob")


def sorted_gap(q: Float[Tensor, "chunk vocab"], p: Float[Tensor, "chunk vocab"], top: int | None = None) -> Float[Tensor, " chunk"]:
    """The sum of |q - p| over both in falling order, the shorter one followed by zeros.

    Beyond the last entry of the shorter one only the mass of the longer counts, so that no more than those best entries are sorted.
    With `top` no more than so many are, and the mass of all others is one entry: a lower bound.
    """
    num = min(q.shape[-1], p.shape[-1], top or q.shape[-1])
    best_q, best_p = (x.topk(num).values for x in (q, p))
    others = (q.sum(-1) - best_q.sum(-1)) - (p.sum(-1) - best_p.sum(-1))
    return (best_q - best_p).abs().sum(-1) + others.abs()


def heard(student: Signals, teacher: Signals) -> list[Any]:
    """What both say, the student first."""
    return [said[name] for name in HEARD for said in (student, teacher)]


class SortedL1(Objective):
    r"""Distance of the sorted probabilities of two vocabularies that have nothing else in common.

    $$ \sum_i |Q_{(i)} - P_{(i)}|, \qquad Q = e^{\ell_S}\,\mathrm{softmax}(z_S / \tau_S), \quad P = e^{\ell_T}\,\mathrm{softmax}(z_T / \tau_T) $$

    in falling order, the smaller vocabulary padded with zeros: optimal transport at a cost of 1 for each entry that differs. Rows are
    those of aligned chunks: the logits z at the last token of a chunk, times the probability of the tokens before it in the chunk
    ($\ell$, not softened; 0 for a single token). For different tokenizers when nothing better will do: it compares how sure both
    are, never of what. A student that is as sure of the wrong token loses nothing. Add `cross_entropy`; `jsd` with `per: chunk` says more.

    Example:
        >>> SortedL1().needs["student"]
        ('last_logits', 'lead_logprob')

    References:
        Boizard et al., ULD, 2024, arXiv:2402.12030.
        Patiño et al., GOLD, 2025, https://huggingface.co/spaces/HuggingFaceH4/general-on-policy-logit-distillation (chunks).
    """

    kind: Literal["sorted_l1"] = "sorted_l1"
    zero_at_match: ClassVar[tuple[str, str] | None] = ("student", "teacher")

    student_temperature: Annotated[float, Field(gt=0)] = 1.0
    """Softens the student."""
    teacher_temperature: Annotated[float, Field(gt=0)] = 1.0
    """Softens the teacher."""
    top: Annotated[int, Field(gt=0)] | None = None
    """An approximation: only so many of the best entries are sorted, the mass of all others is one; none: exact."""
    chunk: int = Field(default=256, gt=0)
    """Rows whose logits exist at the same time."""

    @property
    def unit(self) -> str:
        return "chunk"

    @property
    def needs(self) -> Needs:
        return {"student": HEARD, "teacher": HEARD}

    def values(self, student: Signals, teacher: Signals) -> Float[Tensor, " chunk"]:
        return by_chunks(self.part, self.chunk, *heard(student, teacher))

    def folding(self, factors, student, teacher):
        q, *others = heard(student, teacher)
        if type(self).part is not SortedL1.part or not foldable(q, *others):  # what stands before the end of a chunk may learn too
            return None
        return Folding(self.chunk_slope, q, others, per_target(factors, student, "chunk", "last_logits"), self.chunk, self.student_temperature)

    def chunk_slope(self, log_q: Float[Tensor, "chunk vocab"], p: Any, lead_q: Tensor, lead_p: Tensor) -> tuple[Float[Tensor, " chunk"], Tensor]:
        """The distance of some rows, and its derivative by log q."""
        ours, theirs = (log_q + lead_q[:, None]).exp(), self.theirs(p, lead_p)
        with torch.enable_grad():
            leaf = ours.detach().requires_grad_()
            value = sorted_gap(leaf, theirs, self.top)
            return value.detach(), torch.autograd.grad(value.sum(), leaf)[0].mul_(ours)

    def theirs(self, p: Any, lead_p: Float[Tensor, " chunk"]) -> Float[Tensor, "chunk vocab"]:
        """What the teacher gives to each way to end a chunk."""
        return (log_probs(dense(p), self.teacher_temperature) + lead_p[:, None]).exp()

    def part(self, q: Any, p: Any, lead_q: Float[Tensor, " chunk"], lead_p: Float[Tensor, " chunk"]) -> Float[Tensor, " chunk"]:
        """The distance of some rows: this function compiles whole."""
        return sorted_gap((log_probs(dense(q), self.student_temperature) + lead_q[:, None]).exp(), self.theirs(p, lead_p), self.top)
