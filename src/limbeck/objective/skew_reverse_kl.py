"""Skew reverse KL: KL from the student to a mixture of teacher and student."""

from typing import Any, ClassVar, Literal

from limbeck.numerics import kl, mix
from limbeck.objective._skew import AbstractSkew
from limbeck.schedule import Share


class SkewReverseKL(AbstractSkew):
    r"""KL divergence from the student to a mixture of teacher and student.

    $$ \mathrm{KL}(q \,\|\, (1 - \alpha) p + \alpha\, \mathrm{stop}(q)) $$

    As `reverse_kl`, but what the student says where the teacher gives no mass costs at most $\log 1/\alpha$, so a student
    that is far away does not blow up. For texts that the student wrote: `adaptive` is that of `skew_kl`, with the gap the other way
    round, $\bar q(y) - \bar p(y)$.

    Example:
        >>> SkewReverseKL(alpha=0.1).alpha
        0.1

    References:
        Ko et al., DistiLLM-2, 2025, arXiv:2503.07067 (the mixture is a constant).
        Ko et al., DistiLLM, 2024, arXiv:2402.03898 (it is not).
    """

    kind: Literal["skew_reverse_kl"] = "skew_reverse_kl"
    teacher_needs: ClassVar[str] = "logits"
    special_cases: ClassVar[dict[str, dict[str, Any]]] = {"reverse_kl": {"alpha": 0.0}}
    alpha: Share = 0.1
    """Share of the student in the mixture."""
    stop: bool = True
    """Whether the student inside the mixture is a constant: the gradient then flows through the first q only."""

    def skewed(self, log_p, log_q, alpha):
        return kl(log_q, mix(log_q.detach() if self.stop else log_q, log_p, alpha))

    def gap(self, p, q):
        return q - p
