"""An input for the scale of guidance beside the time."""

from typing import ClassVar, Literal

from pydantic import Field

from limbeck.errors import Refused
from limbeck.model.adapters import adapted
from limbeck.model.base import Role
from limbeck.model.denoiser import Denoiser
from limbeck.model.experts import Experts
from limbeck.model.heard_scale import with_projection
from limbeck.student.base import Surgery

WHERE = "student.surgery  hear_scale"


class HearScale(Surgery):
    r"""Lets a denoiser hear how far it is to be guided, so that one student is asked for any scale in one pass.

    $$ h_1 = W_1 \left( e(t) + P\, e(1000\, s) \right) + b_1, \qquad P = 0 \text{ at the start} $$

    where e are waves and s is the scale in the convention `extra`: 0 is no guidance. `forward: consistency` with `guidance` tells it the scale that
    it draws for each row, and guides the teacher by it; samplers tell it theirs. Without it a student learns the mean over the scales that
    are drawn. The whole network should learn: beside adapters (`lora`) the projection would stay at zero.

    Example:
        >>> HearScale(dim=64).keeps_function
        True

    References:
        Meng et al., On Distillation of Guided Diffusion Models, 2023, arXiv:2210.03142.
        Luo et al., Latent Consistency Models, 2023, arXiv:2310.04378.
    """

    kind: Literal["hear_scale"] = "hear_scale"
    policy: ClassVar[Literal["stock", "import", "carried"]] = "import"
    keeps_function: ClassVar[bool] = True
    on_blocks: ClassVar[bool] = False
    family: ClassVar[str] = "denoiser"
    dim: int = Field(default=256, gt=1, le=1 << 16)
    """Waves that the scale is told in."""

    def __call__(self, role: Role) -> Role:
        if not isinstance(role, Denoiser):
            raise Refused("part", WHERE, "a denoiser", type(role.module).__name__, "remove hear_scale")
        if isinstance(role.module, Experts):
            raise Refused("part", WHERE, "one network", f"{len(role.module.experts)} experts", "start from one denoiser")
        if adapted(role.module):
            raise Refused("adapters", WHERE, "a network that learns whole", "adapters", "remove lora, or hear_scale")
        if role.parametrisation.scale_dim is not None:
            got = f"an input of {role.parametrisation.scale_dim} waves"
            raise Refused("part", WHERE, "a denoiser that hears no scale of guidance yet", got, "remove hear_scale")
        with_projection(role.module, self.dim, WHERE, zero=True)
        role.parametrisation = role.parametrisation.hearing(self.dim)
        role.module.parametrisation = role.parametrisation  # type: ignore[assignment]
        return role
