"""Cross-entropy with the teacher's distribution, the target class raised."""

from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from limbeck.numerics import log_probs
from limbeck.objective.base import Objective, by_chunks
from limbeck.signals import Needs, Signals, dense


class TargetAwareCE(Objective):
    r"""Cross-entropy with what the teacher says, where the probability of the right class is raised by one before a power.

    $$ -\sum_v \big[ (p_v + y_v)^\gamma - y_v \big] \log q_v $$

    with y one at the right class and zero elsewhere. At $\gamma = 1$ it is the cross-entropy with the teacher; above, the right class
    gains on the others, the more the surer the teacher is of it, and what an unlike teacher says of wrong classes counts less. The
    weights make no distribution, so that a perfect student does not reach zero. Mixed labels weigh the classes by their shares:
    $y_v ((p_v + 1)^\gamma - 1) + (1 - y_v)\, p_v^\gamma$ stands in the bracket. Needs labels, which a divergence does not;
    it softens nothing: for soft targets at a temperature use `forward_kl`.

    Example:
        >>> TargetAwareCE(gamma=1.5).needs["student"]
        ('logits', 'label')

    References:
        Hao et al., One-for-All: Bridge the Gap Between Heterogeneous Architectures in Knowledge Distillation, 2023, arXiv:2310.19444, equation 5.
    """

    kind: Literal["target_aware_ce"] = "target_aware_ce"
    gamma: Annotated[float, Field(ge=1, le=10)] = 1.0
    """Power of the weights; 1: the teacher's distribution as it is."""
    chunk: int = Field(default=256, gt=0)
    """Targets whose logits exist at the same time."""

    @property
    def needs(self) -> Needs:
        return {"student": ("logits", "label"), "teacher": ("logits",)}

    def values(self, student: Signals, teacher: Signals) -> Float[Tensor, " target"]:
        return by_chunks(self.part, self.chunk, student["logits"], teacher["logits"], student["label"])

    def part(self, q: Any, p: Any, label: Any) -> Float[Tensor, " target"]:
        """The loss of one chunk: this function compiles whole."""
        log_q, log_p = log_probs(dense(q)), log_probs(dense(p))
        y = label.to(log_p.dtype) if torch.is_floating_point(label) else torch.nn.functional.one_hot(label, log_p.shape[-1]).to(log_p.dtype)
        raised = torch.expm1(self.gamma * torch.log1p(log_p.exp()))  # (p + 1)^gamma - 1, exact for small p
        return -((y * raised + (1 - y) * (self.gamma * log_p).exp()) * log_q).sum(-1)
