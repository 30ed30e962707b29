"""Cross-entropy to a target between the student and the teacher."""

from typing import ClassVar, Literal

import torch

from limbeck.objective.base import AbstractDivergence
from limbeck.schedule import Share


class MovingTarget(AbstractDivergence):
    r"""Cross-entropy to a target that lies between what the student says itself and what the teacher says.

    $$ p_t \propto \mathrm{stop}(q)^{1 - t}\, p^{\,t}, \qquad L = -\sum_v p_{t,v} \log q_v $$

    which is an interpolation of logits, not of probabilities. At t = 1 this is forward KL up to the teacher's entropy, at t = 0 the
    student is its own target and learns nothing. For a student that is much smaller than its teacher: let t rise with a
    schedule. The target moves with the student, so the value is no measure of progress: watch the held-out KL.

    Example:
        >>> MovingTarget(share={"kind": "adaptive", "start": 0.4, "steps": 200}).at(100).share
        0.7

    References:
        Shing et al., TAID, 2025, arXiv:2501.16937.
    """

    kind: Literal["moving_target"] = "moving_target"
    teacher_needs: ClassVar[str] = "logits"
    zero_at_match: ClassVar[tuple[str, str] | None] = None
    descends: ClassVar[bool] = False
    share: Share = 0.5
    """Share of the teacher in the target, t: a number, or a schedule such as `adaptive`."""

    def target(self, log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
        """Its probabilities; no gradient."""
        return torch.lerp(log_q.detach(), log_p, self.share).softmax(-1)

    def divergence(self, log_p, log_q):
        return -(self.target(log_p, log_q) * log_q).sum(-1)

    def slope(self, log_p, log_q):
        target = self.target(log_p, log_q)
        return -torch.linalg.vecdot(target, log_q), target.neg_()
