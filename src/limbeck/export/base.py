"""Files that others can use."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from limbeck.component import Choice, Component
from limbeck.model.base import Role


@dataclass(frozen=True)
class Parcel:
    """What an exporter is given."""

    role: Role
    folder: Path
    """An empty folder to write into; it is put in place when it is complete."""
    summary: Mapping[str, Any]
    provenance: tuple[Mapping[str, Any], ...]
    """What the run used: name, revision, licence, part (teacher, start, data, endpoint)."""


class Exporter(Component):
    """Writes a student for others, and says how it was checked."""

    room: ClassVar[str] = "export"

    @abstractmethod
    def __call__(self, parcel: Parcel) -> list[dict[str, Any]]:
        """Writes the files; returns checks that were made: name, result, open."""


AnyExporter = Annotated[Exporter, Choice()]
