"""Straight lines from samples to noise."""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field

from limbeck.noise.base import Noise


class RectifiedFlow(Noise):
    r"""Straight lines between a sample and noise, with a velocity that points from the one to the other.

    $$ x_t = (1 - t)\, x_0 + t\, \varepsilon, \qquad v = \varepsilon - x_0, \qquad t \in [0, 1] $$

    The usual choice for a new model; its deterministic sampler is Euler's method. Predict velocity, or the clean sample: of pure noise, a
    prediction of the noise says nothing.

    Example:
        >>> RectifiedFlow().grid(4).tolist()
        [1.0, 0.75, 0.5, 0.25, 0.0]

    References:
        Liu, Gong and Liu, Flow Straight and Fast, 2022, arXiv:2209.03003.
        Esser et al., Scaling Rectified Flow Transformers, 2024, arXiv:2403.03206 (shift).
    """

    kind: Literal["rectified_flow"] = "rectified_flow"
    highest: ClassVar[float] = 1.0
    shift: Annotated[float, Field(gt=0)] = 1.0
    """Above 1: times that are drawn and stepped through lie nearer to noise, as for large images."""

    def alpha(self, time):
        return 1 - time

    def sigma(self, time):
        return time

    def slopes(self, time):
        return -torch.ones_like(time), torch.ones_like(time)

    def time(self, share):
        return self.shift * (1 - share) / (1 + (self.shift - 1) * (1 - share))

    def heard(self, time):
        return 1000 * time

    def fraction(self, time):
        return time
