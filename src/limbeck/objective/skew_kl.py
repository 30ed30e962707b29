"""Skew KL: KL from the teacher to a mixture of teacher and student."""

from typing import Any, ClassVar, Literal

import torch

from limbeck.numerics import kl, mix
from limbeck.objective.base import AbstractDivergence
from limbeck.schedule import Share


class SkewKL(AbstractDivergence):
    r"""KL divergence from the teacher to a mixture of teacher and student.

    $$ \mathrm{KL}(p \,\|\, \alpha p + (1 - \alpha) q) $$

    The mixture bounds the ratio by $1/\alpha$, so the gradient stays bounded where the student gives a token almost no
    mass; plain forward KL does not. Value and gradient shrink as alpha grows.

    Example:
        >>> SkewKL(alpha=0.1).alpha
        0.1

    References:
        Ko et al., DistiLLM, 2024, arXiv:2402.03898.
    """

    kind: Literal["skew_kl"] = "skew_kl"
    special_cases: ClassVar[dict[str, dict[str, Any]]] = {"forward_kl": {"alpha": 0.0}}
    alpha: Share = 0.1
    """Share of the teacher in the mixture."""

    def divergence(self, log_p, log_q):
        return kl(log_p, mix(log_p, log_q, self.alpha))

    def slope(self, log_p, log_q):
        mixture, p = mix(log_p, log_q, self.alpha), log_p.exp()
        value = torch.linalg.vecdot(p, log_p - mixture)
        return value, p.mul_((log_q - mixture).exp_()).mul_(self.alpha - 1)
