"""Steps from one number to the next."""

from bisect import bisect_right
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from limbeck.schedule.base import Schedule


class PiecewiseConstant(Schedule):
    r"""Stays at one number until a step, then at the next.

    $$ v(s) = v_i \quad\text{for}\quad b_{i} \le s < b_{i+1} $$

    For what has no numbers between: lengths of blocks, of rows, of lists.

    Example:
        >>> PiecewiseConstant(values=(1, 4, 16), boundaries=(10, 20)).value(10)
        4.0

    References:
        (folklore)
    """

    kind: Literal["piecewise_constant"] = "piecewise_constant"
    monotone: ClassVar[bool] = False
    values: Annotated[tuple[float, ...], Field(min_length=1)] = (1.0, 2.0)
    """The numbers, in their order."""
    boundaries: tuple[Annotated[int, Field(gt=0)], ...] = (100,)
    """The step at which each but the first begins."""

    @model_validator(mode="after")
    def one_boundary_between_two(self) -> "PiecewiseConstant":
        if len(self.boundaries) != len(self.values) - 1 or list(self.boundaries) != sorted(set(self.boundaries)):
            raise ValueError(f"boundaries: {len(self.values) - 1} steps in ascending order, one for each number but the first")
        return self

    def value(self, step: int, memory: object = None) -> float:
        return float(self.values[bisect_right(self.boundaries, step)])

    @property
    def ends(self) -> tuple[float, float]:
        return min(self.values), max(self.values)
