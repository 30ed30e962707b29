"""Linear layers that compute with rounded weights, and may round what they hear: the weights themselves stay exact, and learn."""

from functools import cache
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from limbeck.formats.base import Codes, Format, Ranges
from limbeck.formats.nvfp4 import NVFP4

Scales = Literal["measured", "frozen", "learned"]


class Quantised(nn.Module):
    """What a linear layer becomes; names and shapes of its parameters stay."""

    weight: Tensor
    bias: Tensor | None
    weights: Format | None
    """How its weight is rounded; None: it stands on its grid already."""
    inputs: Format | None
    """How what it hears is rounded; None: not at all."""
    input_scale: float | None
    """The frozen scale of that."""
    weight_amax: Tensor
    """Where scales of the weight are not measured anew: what they were made for at the beginning, one number a group, or one of all."""
    weight_growth: Tensor
    """Where they learn: the logarithm of how far each has grown, end to end."""

    def forward(self, x: Float[Tensor, "*unit dim"]) -> Float[Tensor, "*unit dim"]:
        weight = by_rows(self) if self.weights is None else self.rounded()
        return nn.functional.linear(x if self.inputs is None else self.inputs.fake(x, self.input_scale), weight, self.bias)

    def ranges(self) -> Ranges | None:
        """What the scales of its weight are made for; None: they are measured."""
        if not hasattr(self, "weight_amax"):
            return None
        growth = self.weight_growth.view_as(self.weight_amax) if hasattr(self, "weight_growth") else None
        return Ranges(self.weight_amax, self.weight_amax.ndim > 1, growth)

    def rounded(self) -> Float[Tensor, "out dim"]:
        """Its weight as it computes with it."""
        assert self.weights is not None
        return self.weights.fake(by_rows(self), ranges=self.ranges())

    def codes(self) -> Codes:
        """The same as it is kept."""
        assert self.weights is not None
        return self.weights.encode(by_rows(self).detach(), ranges=self.ranges())


@cache
def class_for(stock: type[nn.Module]) -> type[Quantised]:
    """The class of a stock layer after rounding."""
    return type(f"Quantised{stock.__name__}", (Quantised, stock), {"stock": stock})


def quantise(
    part: nn.Module, weights: Format | None, inputs: Format | None = None, input_scale: float | None = None, scales: Scales = "measured"
) -> None:
    """Has a linear layer (of torch, or a Conv1D of transformers) compute so, in place."""
    part.__class__ = class_for(type(part))
    part.weights, part.inputs, part.input_scale = weights, inputs, input_scale  # type: ignore[assignment]
    if weights is None or scales == "measured":
        return
    with torch.no_grad():
        found = weights.groups(by_rows(part)).abs().amax(-1)
        found = torch.where(found > 0, found, torch.where(found.any(), found.mean(), 1.0))  # a group of zeros would never leave them
        one = scales == "frozen" and isinstance(weights, NVFP4)  # its blocks are measured, then, as always
        part.register_buffer("weight_amax", found.max()[None] if one else found)
        if scales == "learned":
            part.weight_growth = nn.Parameter(torch.zeros_like(found).flatten())


def quantised(module: nn.Module) -> dict[str, Any]:
    """Name -> layer, of all that compute so."""
    return {name: part for name, part in module.named_modules() if isinstance(part, Quantised)}


def latent(module: nn.Module) -> dict[str, Any]:
    """Those of them whose weight does not stand on its grid yet."""
    return {name: part for name, part in quantised(module).items() if part.weights is not None}


def by_rows(part: Any) -> Float[Tensor, "out dim"]:
    """A layer's weight as `nn.Linear` keeps it, with the axis that is summed over last, whatever the layer's own layout."""
    return part.weight if isinstance(part, nn.Linear) else part.weight.mT


@torch.no_grad()
def settle_on_grid(module: nn.Module) -> None:
    """Puts the rounded weights in the place of the exact ones; layers that hear exact numbers become stock ones again."""
    for part in latent(module).values():
        by_rows(part).copy_(part.rounded())
        part.weights = None
        for name in ("weight_amax", "weight_growth"):
            if hasattr(part, name):
                delattr(part, name)
        if part.inputs is None:
            make_stock(part)


def make_stock(part: Any) -> None:
    """Takes a layer's rounding away; its weight stays as it is."""
    part.__class__ = part.stock
    for name in ("weights", "inputs", "input_scale"):
        delattr(part, name)
