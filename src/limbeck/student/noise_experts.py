"""A network for each stretch of the way from noise to sample."""

import copy
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from limbeck.errors import Refused
from limbeck.model.adapters import adapted
from limbeck.model.base import Role
from limbeck.model.denoiser import Denoiser
from limbeck.model.experts import Experts
from limbeck.student.base import Surgery

WHERE = "student.surgery  noise_experts"


class NoiseExperts(Surgery):
    r"""Gives each of several stretches of the way from noise to sample a copy of the denoiser, so that they may learn different things.

    $$ f(x, t) = f_k(x, t), \qquad t_k < t \le t_{k-1} $$

    The $t_k$ are rungs of the sampler that the student will be used with. At first the student says what it said; memory grows with the number of
    copies, time does not, since each sample is asked of one. Parameters are called `experts.0.*` (most noise), `experts.1.*`, ...: a
    stage trains one of them by `only:`. Choose it where few steps must do very different things; a stage for each expert is then a phase of
    `forward: rollout`. For adapters in place of copies that learn whole, write `lora` after it.

    Example:
        >>> NoiseExperts(num=2, rungs=4).keeps_function
        True

    References:
        Balaji et al., eDiff-I: Text-to-Image Diffusion Models with an Ensemble of Expert Denoisers, 2022, arXiv:2211.01324.
        Fan et al., Phased DMD, 2025, arXiv:2510.27684.
    """

    kind: Literal["noise_experts"] = "noise_experts"
    policy: ClassVar[Literal["stock", "import", "carried"]] = "import"
    keeps_function: ClassVar[bool] = True
    on_blocks: ClassVar[bool] = False
    family: ClassVar[str] = "denoiser"
    num: int = Field(default=2, gt=1, le=64)
    """Copies."""
    rungs: int = Field(default=4, gt=1)
    """Steps of the sampler, which the copies share evenly."""

    @model_validator(mode="after")
    def a_rung_each(self) -> "NoiseExperts":
        if self.rungs % self.num:
            raise ValueError(f"rungs: a multiple of num ({self.num})")
        return self

    def __call__(self, role: Role) -> Role:
        if not isinstance(role, Denoiser):
            raise Refused("part", WHERE, "a denoiser", type(role.module).__name__, "remove noise_experts")
        if isinstance(role.module, Experts):
            raise Refused("part", WHERE, "one network", f"{len(role.module.experts)} experts already", "keep one noise_experts")
        if adapted(role.module):
            raise Refused("adapters", WHERE, "a network without adapters, which each copy can have of its own", "adapters", "write lora after it")
        if role.parametrisation.scale_dim is not None:
            do = "remove hear_scale, or noise_experts"
            raise Refused("part", WHERE, "a network that hears no scale of guidance", f"{role.parametrisation.scale_dim} waves of it", do)
        copies = [role.module, *(copy.deepcopy(role.module) for _ in range(1, self.num))]
        adaptable, role.module = role.adaptable, Experts(copies, self.rungs).train(role.module.training)
        role.adaptable = (*adaptable, *(f"*.{pattern.removeprefix('*.')}" for pattern in adaptable))
        return role
