"""What a schedule is, and the types of numbers that may be one."""

from abc import abstractmethod
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field
from torch import nn

from limbeck.component import Choice, Component


class Schedule(Component):
    """A number that moves with the step of its stage; one that `follows` also with the loss of the objective that holds it."""

    room: ClassVar[str] = "schedule"
    follows: ClassVar[bool] = False
    """It remembers losses: only an objective can hold it, and checkpoints keep what it remembers."""

    @abstractmethod
    def value(self, step: int, memory: nn.Module | None = None) -> float:
        """The number at a step, counted from 0 in each stage; without memory, where no loss has been seen."""

    def begin(self) -> nn.Module:
        """What it remembers, before the first loss."""
        raise NotImplementedError

    def follow(self, memory: nn.Module, step: int, loss: float) -> None:
        """Notes the loss of an optimiser step: the mean over all that was counted in it."""

    @property
    def ends(self) -> tuple[float, float]:
        """The least and the greatest number it takes: both are held against the bounds of the field."""
        raise NotImplementedError


AnySchedule = Annotated[Schedule, Choice()]
if TYPE_CHECKING:  # whoever computes has called `at(step)`: to a reader of code they are numbers
    Scalar = Positive = NonNegative = Share = float
    Count = int
else:
    Scalar = float | AnySchedule
    Positive = Annotated[float, Field(gt=0)] | AnySchedule  # a bound on the union fails: it sits on the float
    NonNegative = Annotated[float, Field(ge=0)] | AnySchedule
    Share = Annotated[float, Field(ge=0, le=1)] | AnySchedule
    Count = Annotated[int, Field(ge=1)] | AnySchedule
