"""Noise added to samples that stay as large as they are."""

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from limbeck.noise.base import Noise


class EDM(Noise):
    r"""Noise of growing spread, added to samples that are not made smaller.

    $$ x_\sigma = x_0 + \sigma\, \varepsilon, \qquad v = dx / d\sigma = \varepsilon $$

    Times are the spread itself, from `least` to `most`; a network hears $x / \sqrt{\sigma^2 + \sigma_d^2}$ and $\ln(\sigma) / 4$. Steps lie nearer
    to each other where there is little noise. Take it for models that were trained so. Most of these predict what is called `preconditioned`:

    $$ \hat x_0 = c_{skip}\, x + c_{out}\, F, \qquad c_{skip} = \frac{\sigma_d^2}{\sigma^2 + \sigma_d^2}, \quad
       c_{out} = \frac{\sigma \sigma_d}{\sqrt{\sigma^2 + \sigma_d^2}} $$

    Example:
        >>> [round(t, 3) for t in EDM().grid(3).tolist()]
        [80.0, 9.723, 0.47, 0.0]

    References:
        Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models, 2022, arXiv:2206.00364.
    """

    kind: Literal["edm"] = "edm"
    least: Annotated[float, Field(gt=0)] = 0.002
    """The smallest spread that a network is asked about."""
    most: Annotated[float, Field(gt=0)] = 80.0
    """The largest."""
    rho: Annotated[float, Field(gt=0)] = 7.0
    """How much steps crowd where there is little noise."""
    sigma_data: Annotated[float, Field(gt=0)] = 0.5
    """Standard deviation of the data."""

    @model_validator(mode="after")
    def rises(self) -> "EDM":
        if self.most <= self.least:
            raise ValueError("most greater than least")
        return self

    @property
    def prior(self) -> float:
        return self.most

    @property
    def lowest(self) -> float:
        return self.least

    @property
    def highest(self) -> float:
        return self.most

    def alpha(self, time):
        return time * 0 + 1

    def sigma(self, time):
        return time

    def slopes(self, time):
        return time * 0, time * 0 + 1

    def time(self, share):
        low, high = self.least ** (1 / self.rho), self.most ** (1 / self.rho)
        return (high + share * (low - high)) ** self.rho

    def heard(self, time):
        return time.clamp(min=self.least).log() / 4

    def fraction(self, time):
        return (time.clamp(min=self.least).log() - math.log(self.least)) / math.log(self.most / self.least)

    def preconditioned(self, time):
        root = (time.square() + self.sigma_data**2).sqrt()
        return time / (self.sigma_data * root), -self.sigma_data / root

    def scale_in(self, time):
        return (time.square() + self.sigma_data**2).rsqrt()
