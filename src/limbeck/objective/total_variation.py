"""Total variation distance."""

from typing import ClassVar, Literal

from limbeck.objective.base import AbstractDivergence


class TotalVariation(AbstractDivergence):
    r"""Total variation distance of teacher and student.

    $$ \tfrac12 \sum_v |p_v - q_v| $$

    The largest difference of probability that any event can have; bounded by 1 and symmetric, so single wild tokens
    weigh little. Its gradient does not shrink near the match: use it late, or beside a KL.

    Example:
        >>> TotalVariation().order
        1

    References:
        Wen et al., f-DISTILL, 2023, arXiv:2307.15190.
    """

    kind: Literal["total_variation"] = "total_variation"
    order: ClassVar[int] = 1

    def divergence(self, log_p, log_q):
        return 0.5 * (log_p.exp() - log_q.exp()).abs().sum(-1)

    def slope(self, log_p, log_q):
        q = log_q.exp()
        gap = q - log_p.exp_()
        return 0.5 * gap.abs().sum(-1), gap.sign_().mul_(q).mul_(0.5)
