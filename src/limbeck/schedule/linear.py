"""A straight line."""

from typing import Literal

from pydantic import Field

from limbeck.schedule.base import Schedule


class Linear(Schedule):
    r"""Moves in a straight line from start to end over a number of steps, then stays.

    $$ v(s) = start + (end - start) \min(1, s / steps) $$

    Example:
        >>> Linear(start=1.0, end=0.0, steps=4).value(1)
        0.75

    References:
        (folklore)
    """

    kind: Literal["linear"] = "linear"
    start: float = 0.0
    """Number at step 0."""
    end: float = 1.0
    """Number from step `steps` on."""
    steps: int = Field(default=100, gt=0)
    """Steps from start to end."""

    def value(self, step: int, memory: object = None) -> float:
        return self.start + (self.end - self.start) * min(1.0, step / self.steps)

    @property
    def ends(self) -> tuple[float, float]:
        return min(self.start, self.end), max(self.start, self.end)
