"""What is said of a noisy sample, against what is true of it or what the teacher says."""

from typing import Any, ClassVar, Literal

from pydantic import Field

from limbeck.numerics import upcast
from limbeck.objective.base import Objective
from limbeck.schedule import NonNegative

TRUTH = {"epsilon": "noise", "denoised": "clean", "velocity": "flow"}
"""What each prediction would be if it knew sample and noise."""


class Denoising(Objective):
    r"""Squared distance of what the student says of a noisy sample from the truth or from the teacher, the mean over the numbers of a sample.

    $$ \frac{1}{n} \sum_i d_i^2, \qquad \text{or} \qquad \frac{1}{n} \sum_i \Big(\sqrt{d_i^2 + c^2} - c\Big) $$

    Against the truth with `forward: noised` it trains a denoiser: its least value is not 0, since a noisy sample may come from many clean ones.
    Against a teacher it is 0 where both say the same. Which signal is compared decides which times weigh most: epsilon weighs
    errors of the clean sample by $\alpha^2 / \sigma^2$. The pseudo-Huber form, in float32, is moved less by a few large differences.

    Example:
        >>> Denoising(signal="velocity").needs
        {'student': ('velocity', 'flow')}

    References:
        Ho, Jain and Abbeel, Denoising Diffusion Probabilistic Models, 2020, arXiv:2006.11239.
        Song and Dhariwal, Improved Techniques for Training Consistency Models, 2023, arXiv:2310.14189 (pseudo-Huber).
    """

    kind: Literal["denoising"] = "denoising"
    zero_at_match: ClassVar[tuple[str, str] | None] = ("student", "teacher")

    signal: Literal["epsilon", "denoised", "velocity"] = "velocity"
    """What is compared; any denoiser says all of these."""
    against: Literal["truth", "teacher"] = "truth"
    """What it is compared with."""
    huber: NonNegative = 0.0
    """c of the pseudo-Huber form; 0: squared."""
    clamp: float | None = Field(default=None, gt=0, json_schema_extra={"since": 2})
    """Of samples that a student makes (`forward: rollout`) and that are noisy already: each row is multiplied by min(1, clamp a^2), a being the
    noise added to them, since the truth is known the less the less there is of it; 10 is usual."""

    @property
    def unit(self) -> str:
        return "row"

    @property
    def needs(self):
        added = () if self.clamp is None else ("added",)
        if self.against == "truth":
            return {"student": (self.signal, TRUTH[self.signal], *added)}
        return {"student": (self.signal, *added), "teacher": (self.signal,)}

    def values(self, student, teacher=None, learned: Any = None):
        right = student[TRUTH[self.signal]] if teacher is None else teacher[self.signal]
        square = (upcast(student[self.signal]) - upcast(right)).square()
        if self.huber:
            square = square / ((square + self.huber**2).sqrt() + self.huber)
        each = square.flatten(1).mean(1)
        return each if self.clamp is None else each * (self.clamp * upcast(student["added"]).square()).clamp(max=1)
