"""Skew KL: KL from the teacher to a mixture of teacher and student."""

from typing import Any, ClassVar, Literal

import torch

from limbeck.numerics import kl, mix
from limbeck.objective._skew import AbstractSkew
from limbeck.schedule import Share


class SkewKL(AbstractSkew):
    r"""KL divergence from the teacher to a mixture of teacher and student.

    $$ \mathrm{KL}(p \,\|\, \alpha p + (1 - \alpha) q) $$

    The mixture bounds the ratio by $1/\alpha$, so the gradient stays bounded where the student gives a token almost no
    mass; plain forward KL does not. Value and gradient shrink as alpha grows. For texts that the teacher wrote: with `adaptive`, a
    row y whose gap $\bar p(y) - \bar q(y)$ of mean token probabilities has closed since the first window, where it was m on average, gets

    $$ \alpha_y = \mathrm{clip}\Big(1 - (1 - \alpha) \frac{m}{\bar p(y) - \bar q(y)},\; 0.01,\; \alpha\Big), $$

    a constant without gradient: the nearer the student is, the less of the teacher is put into the mixture.

    Example:
        >>> SkewKL(alpha=0.1).alpha
        0.1

    References:
        Ko et al., DistiLLM, 2024, arXiv:2402.03898.
        Ko et al., DistiLLM-2, 2025, arXiv:2503.07067 (adaptive).
    """

    kind: Literal["skew_kl"] = "skew_kl"
    special_cases: ClassVar[dict[str, dict[str, Any]]] = {"forward_kl": {"alpha": 0.0}}
    alpha: Share = 0.1
    """Share of the teacher in the mixture."""

    def skewed(self, log_p, log_q, alpha):
        return kl(log_p, mix(log_p, log_q, alpha))

    def gap(self, p, q):
        return p - q

    def slope(self, log_p, log_q):
        mixture, p = mix(log_p, log_q, self.alpha), log_p.exp()
        value = torch.linalg.vecdot(p, log_p - mixture)
        return value, p.mul_((log_q - mixture).exp_()).mul_(self.alpha - 1)
