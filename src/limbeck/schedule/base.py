"""What a schedule is, and the types of numbers that may be one."""

from abc import abstractmethod
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from limbeck.component import Choice, Component


class Schedule(Component):
    """A number that moves with the step of its stage."""

    room: ClassVar[str] = "schedule"

    @abstractmethod
    def value(self, step: int) -> float:
        """The number at a step, counted from 0 in each stage."""

    @property
    def ends(self) -> tuple[float, float]:
        """The least and the greatest number it takes: the planner holds both against the bounds of the field."""
        raise NotImplementedError


AnySchedule = Annotated[Schedule, Choice()]
if TYPE_CHECKING:  # whoever computes has called `at(step)`: to a reader of code they are numbers
    Scalar = Positive = Share = float
else:
    Scalar = float | AnySchedule
    Positive = Annotated[float, Field(gt=0)] | AnySchedule  # a bound on the union fails: it sits on the float
    Share = Annotated[float, Field(ge=0, le=1)] | AnySchedule
