"""Discrete steps that keep the variance."""

from functools import cache
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from limbeck.errors import Refused
from limbeck.noise.base import Noise

COSINE, MOST_BETA = 0.008, 0.999


class VP(Noise):
    r"""Variance-preserving diffusion in discrete steps, as most published diffusion models of images were trained.

    $$ \alpha_t = \sqrt{\bar\alpha_t}, \quad \sigma_t = \sqrt{1 - \bar\alpha_t}, \quad \bar\alpha_t = \prod_{i \le t} (1 - \beta_i) $$

    Times are 0, 1, ... steps - 1; -1 is the clean sample. Velocity is $\alpha \varepsilon - \sigma x_0$. Take the schedule that a model was trained
    with; for a new model straight lines (`rectified_flow`) need fewer steps.

    Example:
        >>> VP(betas="scaled_linear", start=0.00085, end=0.012).grid(4).tolist()
        [999.0, 749.0, 499.0, 249.0, -1.0]

    References:
        Ho, Jain and Abbeel, Denoising Diffusion Probabilistic Models, 2020, arXiv:2006.11239.
        Nichol and Dhariwal, Improved Denoising Diffusion Probabilistic Models, 2021, arXiv:2102.09672 (cosine).
        Salimans and Ho, Progressive Distillation for Fast Sampling of Diffusion Models, 2022, arXiv:2202.00512 (velocity).
    """

    kind: Literal["vp"] = "vp"
    clean: ClassVar[float] = -1.0
    betas: Literal["linear", "scaled_linear", "cosine"] = "linear"
    """Noise of each step: in a straight line; the square of one; or as a cosine says (squaredcos_cap_v2 of diffusers)."""
    start: Annotated[float, Field(gt=0, lt=1)] = 1e-4
    """Of the first step; a cosine needs none."""
    end: Annotated[float, Field(gt=0, lt=1)] = 0.02
    """Of the last step."""
    steps: int = Field(default=1000, gt=1, le=100_000)
    """Steps from clean to noise."""
    zero_terminal: bool = False
    """Scaled so that the last step is pure noise."""

    @model_validator(mode="after")
    def rises(self) -> "VP":
        if self.end < self.start:
            raise ValueError("end at least as large as start")
        return self

    @property
    def lowest(self) -> float:
        return 0.0

    @property
    def highest(self) -> float:
        return float(self.steps - 1)

    def kept(self, time: Float[Tensor, " row"]) -> Float[Tensor, " row"]:
        """What is left of the variance of the sample."""
        found = table(self.betas, self.start, self.end, self.steps, self.zero_terminal)
        return found.to(time.device, time.dtype)[time.round().long() + 1]

    def alpha(self, time):
        return self.kept(time).sqrt()

    def sigma(self, time):
        return (1 - self.kept(time)).sqrt()

    def slopes(self, time):
        return -self.sigma(time), self.alpha(time)

    def time(self, share):
        return self.steps - 1 - (share * self.steps).floor()

    def grid(self, num):
        if num > self.steps:
            do = f"write at most {self.steps}"
            raise Refused("steps", "noise vp", f"at most {self.steps} steps, as many as the schedule has", str(num), do)
        left = self.steps * torch.arange(num, -1, -1, dtype=torch.float64, device="cpu") / num
        return (left.round() - 1).float()

    def fraction(self, time):
        return (time + 1) / self.steps


@cache
def table(betas: str, start: float, end: float, steps: int, zero_terminal: bool) -> Float[Tensor, " times"]:
    """What is left of the variance after each step, and first, before any: 1."""
    if betas == "cosine":
        place = torch.arange(steps + 1, dtype=torch.float64, device="cpu") / steps
        left = ((place + COSINE) / (1 + COSINE) * torch.pi / 2).cos().square()
        beta = (1 - left[1:] / left[:-1]).clamp(max=MOST_BETA)
    else:
        power = 2 if betas == "scaled_linear" else 1
        beta = torch.linspace(start ** (1 / power), end ** (1 / power), steps, dtype=torch.float64, device="cpu") ** power
    kept = (1 - beta).cumprod(0)
    if zero_terminal:
        root = kept.sqrt()
        kept = ((root - root[-1]) * root[0] / (root[0] - root[-1])).square()
    return torch.cat([kept.new_ones(1), kept])
