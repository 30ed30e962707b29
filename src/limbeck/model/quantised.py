"""Linear layers that compute with rounded weights, and may round what they hear: the weights themselves stay exact, and learn."""

from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from limbeck.formats.base import Format


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

    def forward(self, x: Float[Tensor, "*unit dim"]) -> Float[Tensor, "*unit dim"]:
        rows = by_rows(self)
        weight = rows if self.weights is None else self.weights.fake(rows)
        return nn.functional.linear(x if self.inputs is None else self.inputs.fake(x, self.input_scale), weight, self.bias)


@cache
def class_for(stock: type[nn.Module]) -> type[Quantised]:
    """The class of a stock layer after rounding."""
    return type(f"Quantised{stock.__name__}", (Quantised, stock), {"stock": stock})


def quantise(part: nn.Module, weights: Format | None, inputs: Format | None = None, input_scale: float | None = None) -> None:
    """Has a linear layer (of torch, or a Conv1D of transformers) compute so, in place."""
    part.__class__ = class_for(type(part))
    part.weights, part.inputs, part.input_scale = weights, inputs, input_scale  # type: ignore[assignment]


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
        by_rows(part).copy_(part.weights.fake(by_rows(part)))
        part.weights = None
        if part.inputs is None:
            make_stock(part)


def make_stock(part: Any) -> None:
    """Takes a layer's rounding away; its weight stays as it is."""
    part.__class__ = part.stock
    for name in ("weights", "inputs", "input_scale"):
        delattr(part, name)
