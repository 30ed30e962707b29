"""Reverse KL."""

from typing import ClassVar, Literal

import torch

from limbeck.numerics import kl
from limbeck.objective.base import AbstractDivergence


class ReverseKL(AbstractDivergence):
    r"""KL divergence from the student to the teacher.

    $$ \mathrm{KL}(q \,\|\, p) = \sum_v q_v (\log q_v - \log p_v) $$

    The student is punished for what the teacher would not say, and may ignore some of what it would: good for a small
    student that is to answer well rather than to answer everything. It weighs by the student, so it needs the whole
    teacher: a truncated one is refused.

    Example:
        >>> ReverseKL().teacher_needs
        'logits'

    References:
        Gu et al., MiniLLM, 2024, arXiv:2306.08543.
    """

    kind: Literal["reverse_kl"] = "reverse_kl"
    teacher_needs: ClassVar[str] = "logits"

    def divergence(self, log_p, log_q):
        return kl(log_q, log_p)

    def slope(self, log_p, log_q):
        q, gap = log_q.exp(), log_p.neg_().add_(log_q)
        return torch.linalg.vecdot(q, gap), gap.add_(1).mul_(q)
