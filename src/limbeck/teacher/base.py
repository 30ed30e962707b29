"""What the teacher says, and where from."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar

from limbeck.component import Choice, Component
from limbeck.model.base import Models, Role
from limbeck.signals import Batch

Opener = Callable[[str], Role]
"""Opens a model reference as a frozen role."""


class Teacher(Component):
    """Opens the teacher's role and says what it offers; may attach what it has said before."""

    room: ClassVar[str] = "teacher"

    @property
    @abstractmethod
    def reference(self) -> str:
        """The model that speaks in the end."""

    def open(self, opener: Opener) -> Role:
        """The teacher's role."""
        return opener(self.reference)

    def attach(self, batch: Batch, models: Models, kept: Mapping[str, Any]) -> Batch:
        """The batch with what the teacher has said already; `kept` is what was captured, by the key of the row."""
        return batch


AnyTeacher = Annotated[Teacher, Choice()]
