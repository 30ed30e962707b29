"""Attention of each position to itself alone."""

from typing import Any, Literal

import torch
from torch import nn

from limbeck.block.base import Attention, Mixer, Shape, copy_linear
from limbeck.numerics import upcast


class SelfValue(Mixer):
    r"""One matrix in the place of attention, which mixes nothing: each position reads its own value.

    $$ y_t = W_O\, E\, (W_V x_t + b_V) + b_O $$

    E gives each query head the value head that it reads. What it begins with is attention exactly on rows of one position. It keeps no keys
    and values and takes one multiplication; where neighbours matter, keep a mixer that hears them (`sliding_window`, `gated_sum`).

    Example:
        >>> SelfValue().kind
        'self_value'

    References:
        Bercovich et al., Puzzle: Distillation-Based NAS for Inference-Optimized LLMs, 2024, arXiv:2411.19146 (linear attention).
    """

    kind: Literal["self_value"] = "self_value"

    def spec(self, shape: Shape) -> dict[str, Any]:
        return self.numbers(width=shape.width, bias=shape.bias or shape.out_bias)

    def begin(self, module: nn.Module, taught: Attention) -> dict[str, str]:
        back, value, bias, out = taught.weight("output"), taught.weight("value", True), taught.bias("value", True), taught.bias("output")
        terms = [upcast(b) for b in (None if bias is None else upcast(back) @ upcast(bias), out) if b is not None]
        proj: Any = module.get_submodule("proj")
        copy_linear(proj, upcast(back) @ upcast(value), torch.stack(terms).sum(0) if terms else None)
        return {f"proj.{name}": "output after value" for name, _ in proj.named_parameters()}

    def state_bytes(self, shape: Shape, length: int, itemsize: int = 4) -> int:
        return 0

    def flops(self, shape: Shape, length: int) -> float:
        return 0.0
