"""Samples are moved to where the teacher finds them likelier than a critic does."""

from typing import Any, ClassVar, Literal

import torch

from limbeck.noise.base import spread
from limbeck.numerics import upcast
from limbeck.objective.base import Objective


class DistributionMatching(Objective):
    r"""Moves what the student makes along the difference of two denoisers of it in noise: the teacher, and a critic that has learned the student.

    $$ \nabla_{x_s} = \frac{\hat x_0^{critic} - \hat x_0^{teacher}}{\overline{|\hat x_0^{student} - \hat x_0^{teacher}|}}, \qquad
       \text{or} \qquad \alpha_{t|s}\, (s^{critic} - s^{teacher})(x_t) $$

    The second is the gradient of $\mathrm{KL}(student \,\|\, teacher)$ in noise of each time, as far as the critic is right; the first has the
    same direction, scaled sample by sample, so that no time outweighs the others. The value is half the mean square of the direction: it says how
    far critic and teacher are apart and need not fall; watch the critic's own loss, `spread`, and samples. Use it with `forward: rollout`,
    and a critic that takes its turns more often than the student. It seeks modes: where all of the teacher's must be kept, add
    phases, or an objective on data.

    Example:
        >>> DistributionMatching(scaled=False).needs["critic"]
        ('stein_score',)

    References:
        Yin et al., One-step Diffusion with Distribution Matching Distillation, 2023, arXiv:2311.18828.
        Fan et al., Phased DMD, 2025, arXiv:2510.27684 (of samples that are noisy still).
    """

    kind: Literal["distribution_matching"] = "distribution_matching"
    zero_at_match: ClassVar[tuple[str, str] | None] = ("critic", "teacher")
    descends: ClassVar[bool] = False

    scaled: bool = True
    """Whether the direction is divided, for each sample, by how far on average the student's clean sample is from what the teacher makes of it."""

    @property
    def unit(self) -> str:
        return "row"

    @property
    def needs(self):
        ours, theirs = ("denoised", "denoised") if self.scaled else ("kept", "stein_score")
        return {"student": ("made", ours), "teacher": (theirs,), "critic": (theirs,)}

    def values(self, student: Any, teacher: Any, critic: Any):
        made = upcast(student["made"])
        with torch.no_grad():
            slope = self.slope(student, teacher, critic).to(made.dtype)
        each = 0.5 * slope.square() + slope * (made - made.detach())
        return each.flatten(1).mean(1)

    def slope(self, student: Any, teacher: Any, critic: Any):
        """The direction against which each sample is moved."""
        name = "denoised" if self.scaled else "stein_score"
        real, fake = upcast(teacher[name]), upcast(critic[name])
        if not self.scaled:
            return spread(student["kept"], real) * (fake - real)
        size = (upcast(student["denoised"]) - real).abs().flatten(1).mean(1)
        return (fake - real) / spread(torch.where(size > 0, size, 1.0), real)
