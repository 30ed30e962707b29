"""How likely student and teacher find the same stretch of text, whatever their tokenizers."""

from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from limbeck.numerics import upcast
from limbeck.objective.base import Objective
from limbeck.signals import Needs, Signals

LOG_HALF = -0.6931471805599453


def log1mexp(x: Float[Tensor, " chunk"]) -> Float[Tensor, " chunk"]:
    """log(1 - e^x) for x < 0, exact at both ends; each branch sees only what it is good for, or its gradient would be NaN."""
    near, far = x.clamp(min=LOG_HALF), x.clamp(max=LOG_HALF)
    return torch.where(x > LOG_HALF, torch.log(-torch.expm1(near)), torch.log1p(-torch.exp(far)))


class ChunkLikelihood(Objective):
    r"""Divergence of two coins that fall as student and teacher find a chunk of text likely, both softened.

    $$ a = L_T / \tau - \epsilon, \quad b = L_S / \tau - \epsilon, \quad e^a (a - b) + (1 - e^a) \log\frac{1 - e^a}{1 - e^b} $$

    $L$ is the log-probability of a whole chunk (at most 0). The gradient is that of the binary cross-entropy; what the teacher's own entropy
    adds is left out, so that 0 means equal. For different tokenizers, with `align: byte_chunks`; with one tokenizer a divergence of
    distributions says more. It needs no more of a teacher than the log-probability of a text.

    Example:
        >>> ChunkLikelihood().tau
        100.0

    References:
        Minixhofer et al., Universal Cross-Tokenizer Distillation via Approximate Likelihood Matching, 2025, arXiv:2503.20083.
    """

    kind: Literal["chunk_likelihood"] = "chunk_likelihood"
    zero_at_match: ClassVar[tuple[str, str] | None] = ("student", "teacher")

    tau: Annotated[float, Field(gt=0)] = 100.0
    """Divides log-probabilities: chunks of many tokens are else all but impossible on both sides."""
    floor: Annotated[float, Field(ge=1e-6, lt=1)] = 1e-6
    """Keeps what is certain a little below 1; float32 cannot tell less from 1."""

    @property
    def unit(self) -> str:
        return "chunk"

    @property
    def needs(self) -> Needs:
        return {"student": ("chunk_logprob",), "teacher": ("chunk_logprob",)}

    def values(self, student: Signals, teacher: Signals) -> Float[Tensor, " chunk"]:
        b, a = (upcast(s["chunk_logprob"]).clamp(max=0) / self.tau - self.floor for s in (student, teacher))
        return a.exp() * (a - b) - torch.expm1(a) * (log1mexp(a) - log1mexp(b))
