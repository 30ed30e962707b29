"""Forward KL."""

from typing import ClassVar, Literal

import torch

from limbeck.numerics import kl
from limbeck.objective.base import AbstractDivergence


class ForwardKL(AbstractDivergence):
    r"""KL divergence from the teacher to the student.

    $$ \mathrm{KL}(p \,\|\, q) = \sum_v p_v (\log p_v - \log q_v) $$

    The default: the student must give mass wherever the teacher does, so it covers all that the teacher might say. A much
    smaller student spreads itself thin; then look at `reverse_kl` and the skewed forms.

    Example:
        >>> ForwardKL(temperature=2.0).kind
        'forward_kl'

    References:
        Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network, 2015, arXiv:1503.02531.
    """

    kind: Literal["forward_kl"] = "forward_kl"
    teacher_needs: ClassVar[str] = "logits|top_logits|sampled_logits"

    def divergence(self, log_p, log_q):
        return kl(log_p, log_q)

    def slope(self, log_p, log_q):
        p = log_p.exp()
        return torch.linalg.vecdot(p, log_p.sub_(log_q)), p.neg_()
