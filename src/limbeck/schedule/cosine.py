"""Half a wave of a cosine."""

import math
from typing import Literal

from pydantic import Field

from limbeck.schedule.base import Schedule


class Cosine(Schedule):
    r"""Moves from start to end along half a cosine, slowly at both ends, then stays.

    $$ v(s) = end + (start - end) \tfrac12 (1 + \cos(\pi \min(1, s / steps))) $$

    Example:
        >>> Cosine(start=1.0, end=0.0, steps=4).value(2)
        0.5

    References:
        Loshchilov and Hutter, SGDR, 2017, arXiv:1608.03983.
    """

    kind: Literal["cosine"] = "cosine"
    start: float = 1.0
    """Number at step 0."""
    end: float = 0.0
    """Number from step `steps` on."""
    steps: int = Field(default=100, gt=0)
    """Steps from start to end."""

    def value(self, step: int, memory: object = None) -> float:
        return self.end + (self.start - self.end) * 0.5 * (1 + math.cos(math.pi * min(1.0, step / self.steps)))

    @property
    def ends(self) -> tuple[float, float]:
        return min(self.start, self.end), max(self.start, self.end)
