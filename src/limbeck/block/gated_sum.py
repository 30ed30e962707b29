"""Two mixers side by side."""

import math
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from limbeck.block.base import AnyMixer, Attention, Mixer, Shape
from limbeck.block.linear_attention import LinearAttention
from limbeck.block.sliding_window import SlidingWindow


class GatedSum(Mixer):
    r"""Two mixers that hear the same, and a learned share of each.

    $$ y_t = g_t \odot \mathrm{first}(x)_t + (1 - g_t) \odot \mathrm{second}(x)_t, \qquad g_t = \sigma(W_g x_t + b) $$

    A window sees what is near exactly, a state remembers what is far: together they come much closer to attention than either. Each begins
    as it would alone; the first has the share `start` at first, in every channel. Costs are those of both.

    Example:
        >>> GatedSum(start=0.5).second.kind
        'sliding_window'

    References:
        Beck et al., Hybrid xLSTM distillation, 2026, arXiv:2603.15590 (there with one share a head).
    """

    kind: Literal["gated_sum"] = "gated_sum"
    first: AnyMixer = LinearAttention()
    """As a rule one with a state."""
    second: AnyMixer = SlidingWindow()
    """As a rule a window."""
    start: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of the first at the beginning."""

    @property
    def constant(self) -> bool:  # type: ignore[override]
        return self.first.constant and self.second.constant

    @model_validator(mode="after")
    def both_look_back(self) -> "GatedSum":
        if not (self.first.causal and self.second.causal):
            raise ValueError("first and second: mixers that look back alone; write {kind: bidirectional, mixer: {kind: gated_sum}} around both")
        return self

    @classmethod
    def example(cls) -> "GatedSum":
        return cls(second=SlidingWindow.example())

    def spec(self, shape: Shape) -> dict[str, Any]:
        return self.numbers(width=shape.width, first=self.first.spec(shape), second=self.second.spec(shape))

    def begin(self, module: nn.Module, taught: Attention) -> dict[str, str]:
        gate: Any = module.gate
        with torch.no_grad():
            gate.weight.zero_()
            gate.bias.fill_(math.log(self.start / (1 - self.start)))
        copied = {}
        for name in ("first", "second"):
            begun = getattr(self, name).begin(getattr(module, name), taught)
            copied |= {f"{name}.{key}": value for key, value in begun.items()}
        return copied

    def state_bytes(self, shape: Shape, length: int, itemsize: int = 4) -> int:
        return self.first.state_bytes(shape, length, itemsize) + self.second.state_bytes(shape, length, itemsize)

    def flops(self, shape: Shape, length: int) -> float:
        return self.first.flops(shape, length) + self.second.flops(shape, length)
