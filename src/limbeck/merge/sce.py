"""Changes that differ between models, weighed by their size."""

from typing import ClassVar, Literal

import torch
from jaxtyping import Float64
from torch import Tensor

from limbeck.merge._deltas import AbstractDeltas, Deltas, Density, Read, disjoint_mean
from limbeck.merge._select import ranked


class Sce(AbstractDeltas):
    r"""Adds the mean of the changes in which models differ most, each weighed by how much its model has changed the tensor.

    $$ \hat\tau_i = \tau_i \text{ where } \mathrm{Var}_i\, \tau_i \text{ is among the largest share}, \qquad
       \eta_i = \frac{\sum \hat\tau_i^2}{\sum_j \sum \hat\tau_j^2}, \qquad
       \theta = \theta_0 + \lambda \, \frac{\sum_{i \in A} \eta_i \hat\tau_i}{\sum_{i \in A} \eta_i}, \qquad
       A = \{i : \mathrm{sign}\,\hat\tau_i = \mathrm{sign} \textstyle\sum_j \hat\tau_j\} $$

    with the changes $\tau_i = \theta_i - \theta_0$: select, calculate, erase. The weights follow from the tensors, so there is no weight
    to search for. Shares count the weights that differ at all; sizes are only compared with each other, so that small changes are
    merged like large ones. A single model has no variance: with it nothing is selected, but at a density of 1.

    Example:
        >>> Sce(of=("a", "b", "c")).density
        0.1

    References:
        Wan et al., FuseChat: Knowledge fusion of chat models, 2024, arXiv:2408.07990.
    """

    kind: Literal["sce"] = "sce"
    symmetric: ClassVar[bool] = True
    density: Density = 0.1
    """Share of the weights that differ between the models whose changes are kept; 1: all changes."""

    def known(self, name: str, models: int, num: int, read: Read) -> tuple[float, Tensor]:
        least = 0.0
        if self.density < 1:
            kept = int(self.density * sum(int(variance(part).count_nonzero()) for part in read()))
            least = ranked(lambda: (variance(part)[None] for part in read()), [num - kept])[0] if kept else torch.inf
        sizes = torch.zeros(models, 1, dtype=torch.float64, device="cpu")
        for part in read():
            sizes += selected(part, least).square().sum(1, keepdim=True).cpu()
        return least, sizes

    def combined(self, deltas, known):
        least, sizes = known
        kept = selected(deltas, least)
        return disjoint_mean(kept, sizes.to(kept.device), kept)


def variance(deltas: Deltas) -> Float64[Tensor, " part"]:
    """Over the models; exactly 0 where all have made the same change."""
    return (deltas - deltas[:1]).var(0, correction=0)


def selected(deltas: Deltas, least: float) -> Deltas:
    """Changes where the variance is large enough."""
    return deltas * (variance(deltas) >= least)
