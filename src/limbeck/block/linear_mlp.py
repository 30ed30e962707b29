"""An MLP without its inner width."""

from typing import Any, Literal

import torch
from torch import nn

from limbeck.block.base import FeedForward, Mlp, MlpShape, copy_linear
from limbeck.numerics import upcast


class LinearMlp(FeedForward):
    r"""One matrix in the place of the MLP.

    $$ y = W_{down} (W_{up} x + b_{up}) + b_{down} $$

    It begins as the MLP without its gate and activation, which is far from it: it has to learn. An MLP of an inner width below half the
    width (`narrow_mlp`) has no more parameters, and bends.

    Example:
        >>> LinearMlp().place
        'mlp'

    References:
        Bercovich et al., Puzzle: Distillation-Based NAS for Inference-Optimized LLMs, 2024, arXiv:2411.19146.
    """

    kind: Literal["linear_mlp"] = "linear_mlp"

    def spec(self, shape: MlpShape) -> dict[str, Any]:
        return self.numbers(width=shape.width, bias=shape.bias or shape.out_bias)

    def begin(self, module: nn.Module, taught: Mlp) -> dict[str, str]:
        up, down, bias, out = taught.weights["up"], taught.weights["down"], taught.biases.get("up"), taught.biases.get("down")
        terms = [upcast(b) for b in (None if bias is None else upcast(down) @ upcast(bias), out) if b is not None]
        proj: Any = module.get_submodule("proj")
        copy_linear(proj, upcast(down) @ upcast(up), torch.stack(terms).sum(0) if terms else None)
        return {f"proj.{name}": "down after up" for name, _ in proj.named_parameters()}
