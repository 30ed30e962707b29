"""Changes of which most are dropped by chance."""

from collections.abc import Iterable, Iterator
from typing import Literal

import torch
from jaxtyping import Float64
from torch import Tensor

from limbeck.merge._deltas import AbstractDeltas, Deltas, Density, Read, disjoint_mean, weights_of
from limbeck.numerics import Streams


class Dare(AbstractDeltas):
    r"""Adds the changes of each model, of which a random share is kept and made larger in turn.

    $$ \hat\tau_i = \frac{m_i \odot \tau_i}{d}, \quad m_i \sim \mathrm{Bernoulli}(d), \qquad
       \theta = \theta_0 + \lambda \sum_i w_i \hat\tau_i $$

    with the changes $\tau_i = \theta_i - \theta_0$ and the density d. Models that were fine-tuned a little keep their skills when nine of ten
    changes are dropped, and what is left of several of them hardly meets. Not where training has changed the weights a lot. Division by the density
    keeps the expected change; `l1_norm`, which some programs do in its place, keeps its absolute sum. What is dropped depends on seed, name of the
    tensor and place of the model alone.

    Example:
        >>> Dare(of=("a", "b"), density=0.1, signs="elect").rescale
        'density'

    References:
        Yu et al., Language models are Super Mario, 2024, arXiv:2311.03099.
        Yadav et al., Resolving interference when merging models, 2023, arXiv:2306.01708 (electing signs).
    """

    kind: Literal["dare"] = "dare"
    weights: tuple[float, ...] = ()
    """One weight for each of `of`; none: 1 for each."""
    density: Density = 0.5
    """Share of the changes that is kept."""
    rescale: Literal["density", "l1_norm"] = "density"
    """What is kept is divided by the density, or by the share of the absolute sum that is left of each tensor."""
    signs: Literal["none", "elect"] = "none"
    """None: changes are added up; elect: the mean of those that agree in their sign, as `ties` does."""
    seed: int = 0
    """Of what is dropped."""

    def known(self, name: str, models: int, num: int, read: Read) -> tuple[Iterator[Deltas], Tensor]:
        left = torch.tensor(self.density, dtype=torch.float64, device="cpu")
        if self.rescale == "l1_norm":
            before, after = (l1_norms(models, some) for some in (read(), self.kept(name, models, read)))
            left = torch.where(after == 0, 1.0, after / before)
        return self.kept(name, models, read), left

    def kept(self, name: str, models: int, read: Read) -> Iterator[Deltas]:
        """The changes that are kept, as they are."""
        random = [Streams(self.seed)("dare", name, i) for i in range(models)]
        for part in read():
            draws = torch.stack([torch.rand(part.shape[1], generator=r, dtype=torch.float64, device="cpu") for r in random])
            yield part * (draws < self.density).to(part.device)

    def combined(self, deltas, known):
        kept, left = known
        changes, weights = next(kept) / left.to(deltas.device), weights_of(self.weights, deltas)
        return (weights * changes).sum(0) if self.signs == "none" else disjoint_mean(changes, weights, weights * changes)


def l1_norms(models: int, read: Iterable[Deltas]) -> Float64[Tensor, "model 1"]:
    """Absolute sum of each model's changes."""
    return sum((part.abs().sum(1, keepdim=True).cpu() for part in read), torch.zeros(models, 1, dtype=torch.float64, device="cpu"))
