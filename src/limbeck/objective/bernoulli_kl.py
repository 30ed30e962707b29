"""Divergence of many yes-or-no answers."""

from typing import Annotated, Any, ClassVar, Literal

from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from limbeck.numerics import RULED_OUT, upcast
from limbeck.objective.base import Objective, by_chunks
from limbeck.signals import Needs, Signals, dense


class BernoulliKL(Objective):
    r"""KL divergence from the teacher to the student of each entry by itself, as a thing that is there or not; the sum over entries.

    $$ T^2 \sum_b \Big( p_b \log \frac{p_b}{q_b} + (1 - p_b) \log \frac{1 - p_b}{1 - q_b} \Big),
       \qquad p_b = \sigma(a_b / T),\ q_b = \sigma(s_b / T) $$

    with a and s the log-odds of teacher and student. For networks whose last layer is a sigmoid: trackers of pitch, tags of which several may be
    right. Where exactly one entry is right, use `forward_kl`: here the many entries that are wrong weigh as much as all the rest.

    Example:
        >>> BernoulliKL(temperature=2.0).needs
        {'student': ('logits',), 'teacher': ('logits',)}

    References:
        Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network, 2015, arXiv:1503.02531 (softened outputs and the factor of the
        square of the temperature).
        Yang et al., Multi-Label Knowledge Distillation, 2023, arXiv:2308.06453 (one divergence for each label).
    """

    kind: Literal["bernoulli_kl"] = "bernoulli_kl"
    odds: ClassVar[bool] = True
    zero_at_match: ClassVar[tuple[str, str] | None] = ("student", "teacher")

    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Softens both; the loss is multiplied by its square, so that gradients keep their size."""
    chunk: int = Field(default=256, gt=0)
    """Targets whose logits exist at the same time."""

    @property
    def needs(self) -> Needs:
        return {"student": ("logits",), "teacher": ("logits",)}

    def values(self, student: Signals, teacher: Signals) -> Float[Tensor, " target"]:
        return by_chunks(self.part, self.chunk, student["logits"], teacher["logits"]) * self.temperature**2

    def part(self, q: Any, p: Any) -> Float[Tensor, " target"]:
        """The divergence of one chunk."""
        s, a = ((upcast(dense(x)) / self.temperature).clamp(min=RULED_OUT) for x in (q, p))
        there = a.sigmoid() * (logsigmoid(a) - logsigmoid(s))
        return (there + (-a).sigmoid() * (logsigmoid(-a) - logsigmoid(-s))).sum(-1)
