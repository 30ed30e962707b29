"""Laying what the roles say side by side: between a role and whoever listens."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, ClassVar

from torch import Tensor

from limbeck.component import Choice, Component
from limbeck.model.base import Models
from limbeck.noise.base import Noise
from limbeck.signals import Batch, Needs, Row, Signals


class Align(Component):
    """`index` works before counting, from the batch and frozen roles alone; `__call__` on what one role says."""

    room: ClassVar[str] = "align"
    crosses: ClassVar[bool] = False
    """It lays texts of two tokenizers side by side, and makes chunks of them."""

    @property
    def looks(self) -> Needs:
        """Frozen roles, and those of their own signals that `index` must have seen."""
        return {}

    def settle(self, models: Models) -> "Align":
        """The same alignment with everything written out that depends on the models: depths, vocabularies."""
        return self

    def expand(self, name: str) -> tuple[str, ...]:
        """`hidden.*` -> the names that it stands for, if this alignment knows."""
        return (name,)

    def requires(self, role: str, names: tuple[str, ...]) -> tuple[str, ...]:
        """What the role must say itself, so that it says this aligned."""
        return names

    def notes(self, rows: Sequence[Row], models: Models) -> tuple[str, ...]:
        """What is to be said of the rows that will be trained on, before they are; the models read, and cannot speak."""
        return ()

    def index(self, batch: Batch, models: Models) -> Batch:
        """Writes into the views what stands beside what."""
        return batch

    def __call__(self, role: str, said: Signals, batch: Batch) -> Signals:
        """What a role says, aligned."""
        return said


AnyAlign = Annotated[Align, Choice()]


def raw(aligns: Sequence[Align], role: str, names: Iterable[str]) -> tuple[str, ...]:
    """Names of aligned signals -> names of the role's own."""
    names = tuple(names)
    for align in reversed(aligns):
        names = align.requires(role, names)
    return tuple(dict.fromkeys(names))


def expanded(aligns: Sequence[Align], names: Iterable[str]) -> tuple[str, ...]:
    """Names with every `hidden.*` written out."""
    names = tuple(names)
    for align in aligns:
        names = tuple(n for name in names for n in (align.expand(name) if name.endswith(".*") else (name,)))
    return tuple(dict.fromkeys(names))


class Aligned:
    """Models as a forward sees them: what they say is aligned already."""

    def __init__(self, models: Models, aligns: Sequence[Align]):
        self.models, self.aligns = models, tuple(aligns)

    def says(self, role: str, batch: Batch, names: Iterable[str], inject: Mapping[str, Tensor] = {}) -> Signals:
        names = tuple(names)
        own = dict(zip(inject, (raw(self.aligns, role, (name,))[0] for name in inject), strict=True))
        said = self.models.says(role, batch, raw(self.aligns, role, names), {own[name]: value for name, value in inject.items()})
        for align in self.aligns:
            said = align(role, said, batch)
        return said

    def noise(self, role: str) -> Noise:
        """The schedule of noise that a role was trained with."""
        return self.models[role].parametrisation.noise
