"""Several sets of weights into one."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import Tensor

from limbeck.component import Choice, Component


class Merge(Component):
    """Makes one set of weights from those of several stages, one tensor at a time."""

    room: ClassVar[str] = "merge"
    symmetric: ClassVar[bool] = False
    """Claim: the order of what is merged does not matter."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=60)] = "merged"
    """What others refer to."""
    of: tuple[str, ...] = ()
    """Names of the stages (or merges) whose students are merged."""

    @abstractmethod
    def __call__(self, name: str, tensors: Sequence[Tensor], base: Tensor | None) -> Tensor:
        """The merged tensor of that name, computed in float32 or better, in the dtype that came; `base` is that before training."""


AnyMerge = Annotated[Merge, Choice()]


def merge(how: Merge, states: Sequence[dict[str, Tensor]], base: dict[str, Tensor] | None) -> dict[str, Any]:
    """Whole states, tensor by tensor; what is no floating-point number must agree."""
    out = {}
    for name, first in states[0].items():
        tensors = [state[name] for state in states]
        out[name] = how(name, tensors, base[name] if base else None) if first.is_floating_point() else first
    return out
