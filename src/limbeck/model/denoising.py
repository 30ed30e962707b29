"""From noise to samples: what denoisers are for, in many steps or a few."""

from collections.abc import Callable, Mapping
from typing import Annotated

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from limbeck.component import Document
from limbeck.errors import Refused
from limbeck.guidance import guided
from limbeck.model.base import Role
from limbeck.model.denoiser import NO_LABEL
from limbeck.noise.base import Noise, exact, spread
from limbeck.numerics import upcast
from limbeck.signals import View

Fresh = Callable[[int], Float[Tensor, "row *axes"]]
"""Standard normal noise for each step, by its number from 0 on."""


class Boundary(Document):
    r"""Makes a consistency function of a denoiser: where there is hardly any noise it gives back what it heard.

    $$ f(x, t) = \frac{\sigma_d^2}{s^2 + \sigma_d^2}\, x + \frac{s}{\sqrt{s^2 + \sigma_d^2}}\, \hat x_0(x, t), \qquad s = \text{time scale} \cdot t $$

    with t as networks of the schedule hear it (0 to 999). At t = 0 that is x, bit for bit.

    Example:
        >>> [round(float(c), 7) for c in Boundary().factors(torch.tensor([19.0], dtype=torch.float64))]
        [6.9e-06, 0.9999965]
    """

    time_scale: Annotated[float, Field(gt=0)] = 10.0
    """The larger, the nearer to time 0 the function is the denoiser itself."""
    sigma_data: Annotated[float, Field(gt=0)] = 0.5
    """Standard deviation of the data."""

    def factors(self, heard: Float[Tensor, " row"]) -> tuple[Float[Tensor, " row"], Float[Tensor, " row"]]:
        """Of what was heard, and of the denoised sample."""
        s, spread = self.time_scale * exact(heard), self.sigma_data**2
        return spread / (s.square() + spread), s / (s.square() + spread).sqrt()

    def refuse(self, noise: Noise, where: str) -> None:
        """Refuses a schedule whose networks hear no 0 where there is hardly any noise: the function would not give back what it heard."""
        kept = float(self.factors(noise.heard(torch.tensor([noise.lowest], dtype=torch.float64, device="cpu")))[0])
        if kept < 0.99:
            expected, kind = "a schedule whose networks hear 0 for a clean sample: vp, rectified_flow, trig_flow", dict(noise)["kind"]
            raise Refused("noise", where, expected, kind, "use forward: noised, or a denoiser of another schedule")

    def __call__(
        self, noise: Noise, sample: Float[Tensor, "row *axes"], denoised: Float[Tensor, "row *axes"], time: Float[Tensor, " row"]
    ) -> Float[Tensor, "row *axes"]:
        """The consistency function, in float32 at least."""
        kept, made = (spread(factor, denoised) for factor in self.factors(noise.heard(time)))
        return kept * upcast(sample) + made * upcast(denoised)


def rungs(noise: Noise, steps: int, of: int) -> Float[Tensor, " times"]:
    """Times of a few steps, picked evenly of the many that a student was distilled on, and the clean one at the end."""
    pick = [of * i // steps for i in range(steps)]
    return noise.grid(of)[[*pick, of]]


def denoise(
    role: Role,
    sample: Float[Tensor, "row *axes"],
    time: Float[Tensor, " row"],
    label: Int[Tensor, " row"] | None,
    factor: float = 1.0,
    more: Mapping[str, Tensor] = {},
) -> tuple[Float[Tensor, "row *axes"], Float[Tensor, "row *axes"]]:
    """The clean sample and the noise as a role sees them, guided by a factor (1: not at all, and then asked once).

    `more`: what its conditions are beside the label, by their names in a view. A role that hears the scale of guidance is told it, and always asked
    once.
    """
    scale = {} if role.parametrisation.scale_dim is None else {"guidance_scale": torch.full_like(time, factor - 1)}
    factor = 1.0 if scale else factor

    def ask(label: Int[Tensor, " row"] | None) -> tuple[Tensor, Tensor]:
        view = View({"sample": sample, "time": time, **more, **scale, **({} if label is None else {"label": label})})
        said = role.says(view, ("denoised", "epsilon"), {})
        return said["denoised"], said["epsilon"]

    with_condition = ask(label)
    if factor == 1 or label is None:
        return with_condition
    without, factors = ask(torch.full_like(label, NO_LABEL)), torch.full_like(time, factor)
    return guided(with_condition[0], without[0], factors), guided(with_condition[1], without[1], factors)


@torch.no_grad()
def sampled(
    role: Role,
    start: Float[Tensor, "row *axes"],
    times: Float[Tensor, " times"],
    label: Int[Tensor, " row"] | None,
    factor: float = 1.0,
    boundary: Boundary | None = None,
    fresh: Fresh | None = None,
    more: Mapping[str, Tensor] = {},
) -> Float[Tensor, "row *axes"]:
    r"""Samples from standard normal noise, through falling times down to the clean one; the role is asked once or twice a step.

    Without `fresh` noise each step follows the path of the probability flow (DDIM; along straight lines that is Euler's method); with it,
    each step denoises all the way and adds noise for the next, as consistency functions are sampled.
    """
    noise: Noise = role.parametrisation.noise
    sample = upcast(start) * noise.prior
    for i, (now, then) in enumerate(zip(times[:-1].tolist(), times[1:].tolist(), strict=True)):
        time, after = (torch.full((len(sample),), at, dtype=torch.float32, device=sample.device) for at in (now, then))
        denoised, epsilon = denoise(role, sample, time, label, factor, more)
        denoised = denoised if boundary is None else boundary(noise, sample, denoised, time)
        if i == len(times) - 2:
            return denoised
        sample = noise.noised(denoised, epsilon if fresh is None else fresh(i), after)
    return sample
