"""Arcs from samples to noise."""

import math
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from limbeck.noise.base import Noise


class TrigFlow(Noise):
    r"""Arcs between a sample and noise of the spread of the data, on which a consistency function has no singular point.

    $$ x_t = \cos(t)\, x_0 + \sin(t)\, \sigma_d\, \varepsilon, \qquad v = \cos(t)\, \sigma_d\, \varepsilon - \sin(t)\, x_0, \qquad t \in [0, \pi/2] $$

    The clean sample is $\cos(t)\, x_t - \sin(t)\, v$, so that at time 0 it is what was heard, whatever the network says. For continuous-time
    consistency; for anything else `rectified_flow` does.

    Example:
        >>> TrigFlow().prior
        0.5

    References:
        Lu and Song, Simplifying, Stabilizing and Scaling Continuous-Time Consistency Models, 2024, arXiv:2410.11081.
    """

    kind: Literal["trig_flow"] = "trig_flow"
    highest: ClassVar[float] = math.pi / 2
    sigma_data: Annotated[float, Field(gt=0)] = 0.5
    """Standard deviation of the data, and of the noise."""

    @property
    def prior(self) -> float:
        return self.sigma_data

    def alpha(self, time):
        return time.cos()

    def sigma(self, time):
        return self.sigma_data * time.sin()

    def slopes(self, time):
        return -time.sin(), self.sigma_data * time.cos()

    def time(self, share):
        return math.pi / 2 * (1 - share)

    def fraction(self, time):
        return time / (math.pi / 2)

    def scale_in(self, time):
        return (time * 0 + 1) / self.sigma_data
