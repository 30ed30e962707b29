"""What the teacher says, and where from."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar

from torch import Tensor

from limbeck.component import Choice, Component
from limbeck.model.base import Models, Role
from limbeck.signals import Batch

Opener = Callable[..., Role]
"""Opens a model reference as a frozen role; one that a server runs, with a second reference: the model as which it reads."""


class Teacher(Component):
    """Opens the teacher's role and says what it offers; may attach what it has said before."""

    room: ClassVar[str] = "teacher"
    remembers: ClassVar[bool] = False
    """It is asked once about each row, ahead of training, and its answers are kept by the key of the row."""
    moves: ClassVar[bool] = False
    """Its weights change while the student learns: they belong into checkpoints."""
    of_student: ClassVar[bool] = False
    """It is the student itself in another form, which must start from the model that it names."""

    @property
    @abstractmethod
    def references(self) -> tuple[str, ...]:
        """The models that speak in the end."""

    @property
    def rounds(self) -> str:
        """How what it says differs from what its models would say now; empty: not at all."""
        return ""

    def notes(self, num_rows: int, positions: int) -> tuple[str, ...]:
        """Lines for the plan: what asking about so many rows with so many positions takes elsewhere."""
        return ()

    def open(self, opener: Opener) -> Role:
        """The teacher's role, as it is before training."""
        return opener(self.references[0])

    def beside(self, role: Role, models: Models) -> Role:
        """The role that speaks while these models train: that which was opened, or one that shares the student's weights."""
        return role

    def follow(self, models: Models) -> None:
        """Moves the teacher after an optimiser step, if it `moves`."""

    def bytes_a_target(self, width: int, vocab: int) -> float:
        """What is kept of one target, with final states so many numbers wide and so many ids."""
        return 0.0

    def attach(self, batch: Batch, models: Models, kept: Mapping[str, Mapping[str, Tensor]]) -> Batch:
        """The batch with what the teacher has said already; `kept` is what was captured, by the key of the row."""
        return batch


def spelled(value: Any) -> Any:
    """A teacher as it is written: a model reference by itself is one that is run live, or whose answers were recorded; so is a path."""
    value = f"path:{value}" if isinstance(value, str) and "/" in value and ":" not in value else value
    kind = "cached" if isinstance(value, str) and value.startswith("cache:") else "live"
    return {"kind": kind, "model": value} if isinstance(value, str) and ":" in value else value


AnyTeacher = Annotated[Teacher, Choice()]
