"""Merges of what training has changed."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Annotated, Any, ClassVar

import torch
from jaxtyping import Float64
from pydantic import Field
from torch import Tensor

from limbeck.merge.base import Merge, filled, parts

Deltas = Float64[Tensor, "model part"]
Read = Callable[[], Iterable[Deltas]]
"""Reads the changes of one tensor, a part of it at a time, as often as it is called."""
Density = Annotated[float, Field(gt=0, le=1)]


class AbstractDeltas(Merge):
    """Adds to the weights before training what the models have changed, combined."""

    needs_base: ClassVar[bool] = True

    scale: float = 1.0
    """Factor on the combined change."""

    def known(self, name: str, models: int, num: int, read: Read) -> Any:
        """What must be known of a whole tensor of `num` weights (thresholds, norms) before its parts are combined."""
        return None

    @abstractmethod
    def combined(self, deltas: Deltas, known: Any) -> Float64[Tensor, " part"]:
        """One change from those of all models, for the next part of a tensor; parts come in order."""

    def __call__(self, name, tensors, base):
        assert base is not None
        flat = [t.reshape(-1) for t in (base, *tensors)]

        def read() -> Iterator[Deltas]:
            for part in parts(base.numel()):
                yield torch.stack([t[part].double() for t in flat[1:]]) - flat[0][part].double()

        known = self.known(name, len(tensors), base.numel(), read)
        changes = zip(parts(base.numel()), read(), strict=True)
        return filled(tensors[0], ((part, flat[0][part].double() + self.scale * self.combined(deltas, known)) for part, deltas in changes))


def weights_of(weights: Sequence[float], deltas: Deltas) -> Float64[Tensor, "model 1"]:
    """One for each model; all alike where none are given."""
    return deltas.new_tensor(weights or (1.0,) * len(deltas))[:, None]


def disjoint_mean(deltas: Deltas, weights: Float64[Tensor, "model 1"], votes: Deltas) -> Float64[Tensor, " part"]:
    """Weighted mean over the models whose vote has the sign of all votes together; where they cancel, upwards counts."""
    agree = votes.sign() == torch.where(votes.sum(0) >= 0, 1.0, -1.0)
    total = (weights * agree).sum(0)
    return (deltas * weights * agree).sum(0) / torch.where(total == 0, 1.0, total)
