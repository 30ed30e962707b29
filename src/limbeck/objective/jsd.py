"""Jensen-Shannon divergence, between the two KLs."""

from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from limbeck.numerics import kl, mix
from limbeck.objective.base import AbstractDivergence
from limbeck.schedule import Share


def jsd(log_p: Float[Tensor, "target k"], log_q: Float[Tensor, "target k"], s: float) -> Float[Tensor, " target"]:
    """The divergence of each target, with a share s of the teacher in the mixture."""
    if s in (0, 1):
        return kl(log_q, log_p) if s else kl(log_p, log_q)
    middle = mix(log_p, log_q, s)
    return (s * kl(log_p, middle) + (1 - s) * kl(log_q, middle)) / (s * (1 - s))


class JSD(AbstractDivergence):
    r"""Generalised Jensen-Shannon divergence, scaled so that its two ends are the two KL divergences.

    $$ \frac{s\,\mathrm{KL}(p \,\|\, m) + (1 - s)\,\mathrm{KL}(q \,\|\, m)}{s (1 - s)}, \qquad m = s\,p + (1 - s)\,q $$

    It is bounded and symmetric at s = 1/2 (four times the usual Jensen-Shannon divergence), tends to `forward_kl` for
    s to 0 and to `reverse_kl` for s to 1; there it is computed as that limit. Without the denominator, as it is often
    written, it vanishes at both ends.

    Example:
        >>> JSD(share=0.5).share
        0.5

    References:
        Agarwal et al., GKD, 2024, arXiv:2306.13649 (without the denominator).
    """

    kind: Literal["jsd"] = "jsd"
    teacher_needs: ClassVar[str] = "logits"
    special_cases: ClassVar[dict[str, dict[str, Any]]] = {"forward_kl": {"share": 0.0}, "reverse_kl": {"share": 1.0}}
    share: Share = 0.5
    """Share of the teacher in the mixture: near 0 as forward KL, near 1 as reverse KL."""

    def divergence(self, log_p, log_q):
        return jsd(log_p, log_q, self.share)

    def slope(self, log_p, log_q):
        s = self.share
        if s in (0, 1):
            return super().slope(log_p, log_q)
        p, q = log_p.exp(), log_q.exp()
        middle = torch.lerp(q, p, s).clamp_(min=torch.finfo(q.dtype).tiny).log_()  # where both vanish they multiply it by 0
        gap = q.mul_(log_q - middle)  # the terms with the derivative of the middle cancel
        value = torch.linalg.vecdot(p, log_p.sub_(middle)) / (1 - s) + gap.sum(-1) / s
        return value, gap.div_(s)
