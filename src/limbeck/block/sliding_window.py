"""Attention over the last positions and the first few."""

from typing import Any, Literal

from pydantic import Field
from torch import nn

from limbeck.block.base import Attention, Mixer, Shape, copy_attention


class SlidingWindow(Mixer):
    r"""Attention whose position sees the last `window` positions, itself among them, and the first `sinks`.

    $$ o_t = \sum_{s \in W_t} \mathrm{softmax}_s(q_t^\top k_s / \sqrt{d})\, v_s, \qquad W_t = \{s \le t : t - s < w \text{ or } s < n\} $$

    All weights come from the attention that stood there, and rows no longer than the window are mixed exactly as before. Without the first
    positions, on which models rest much of their attention, quality breaks down once they leave the window. What lies between is forgotten:
    put a mixer with a state beside it (`gated_sum`) where it matters.

    Example:
        >>> SlidingWindow(window=64).sinks
        4

    References:
        Xiao et al., Efficient Streaming Language Models with Attention Sinks, 2023, arXiv:2309.17453.
    """

    kind: Literal["sliding_window"] = "sliding_window"
    window: int = Field(default=512, gt=0)
    """Positions that are seen, the current one among them; no more than attention saw that had a window of its own."""
    sinks: int = Field(default=4, ge=0)
    """First positions that stay in sight."""

    @classmethod
    def example(cls) -> "SlidingWindow":
        return cls(window=6, sinks=2)

    def spec(self, shape: Shape) -> dict[str, Any]:
        return self.numbers(**shape.numbers(), window=shape.seen(self.window), sinks=self.sinks)

    def begin(self, module: nn.Module, taught: Attention) -> dict[str, str]:
        return copy_attention(module, taught)

    def state_bytes(self, shape: Shape, length: int, itemsize: int = 4) -> int:
        num = shape.seen(self.window) + self.sinks
        return num * (2 * shape.kv_heads * shape.head_dim * itemsize + 8) + 8

    def flops(self, shape: Shape, length: int) -> float:
        return 4.0 * shape.heads * shape.head_dim * min(shape.seen(self.window) + self.sinks, length)
