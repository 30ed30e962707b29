"""How the roles are run on a batch to get signals."""

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Annotated, ClassVar, Protocol, runtime_checkable

from torch import Tensor

from limbeck.component import Choice, Component
from limbeck.errors import Refused
from limbeck.model.base import Models
from limbeck.noise.base import Noise
from limbeck.numerics import Streams
from limbeck.signals import Batch, Needs, Signals


@runtime_checkable
class Listen(Protocol):
    """All that a forward may do with the models."""

    def says(self, role: str, batch: Batch, names: Iterable[str], inject: Mapping[str, Tensor] = {}) -> Signals:
        """What a role says about a batch, aligned already; `inject` overwrites what its parts hear."""
        ...

    def noise(self, role: str) -> Noise:
        """The schedule of noise that a role was trained with, where it hears noisy samples."""
        ...


class Forward(Component):
    """Which role sees what, in which order, and what it must say."""

    room: ClassVar[str] = "forward"
    noisy: ClassVar[bool] = False
    """It makes noisy samples of rows, for roles that hear such."""

    def suits(self, models: Models, where: str) -> None:
        """Refuses roles that it cannot run, before anything runs: here, those that hear noisy samples, which it does not make."""
        found = next((name for name in models if models[name].parametrisation is not None), None)
        if found is not None:
            kind, do = dict(self)["kind"], "write forward: noised"
            raise Refused("forward", f"{where}.forward", f"noisy samples with their times, which {found} hears", f"{kind}, which makes none", do)

    def beside(self, other: "Forward") -> None:
        """Raises ValueError where the forward of another turn of its stage does not go with it."""

    def requires(self, needs: Needs) -> Needs:
        """What the roles must say so that the objectives get what they need."""
        return needs

    def draw(self, batch: Batch, streams: Streams, place: tuple[object, ...]) -> Batch:
        """Adds random inputs, for the whole window before it is cut: so the cut cannot change them."""
        return batch

    def in_full(self) -> "Forward":
        """The same forward with nothing left out by chance: what objectives are made to fit."""
        return self

    @abstractmethod
    def __call__(self, models: Listen, batch: Batch, needs: Needs) -> dict[str, Signals]:
        """Role -> what it says about one micro-batch."""


AnyForward = Annotated[Forward, Choice()]
