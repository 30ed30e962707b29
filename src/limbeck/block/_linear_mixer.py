"""What mixers have in common whose state is a matrix a head: what they take over, remember and compute."""

from typing import Any, ClassVar

from torch import nn

from limbeck.block.base import Attention, Mixer, Shape, copy_attention


class AbstractLinearMixer(Mixer):
    """Keys and values of as many heads as queries, or of those of attention, and a recurrence over them; a final class writes `spec`."""

    per_entry: ClassVar[int] = 5
    """Multiplications and additions of one position for each entry of the state: fade, product of key and value, sum; read, twice."""

    def attention(self, shape: Shape, per_query: bool = True) -> dict[str, Any]:
        """The numbers of queries, keys, values and output, as attention has them; with `per_query` a key head for each query head."""
        heads = {"heads": shape.heads, "key_dim": shape.head_dim, "value_dim": shape.head_dim} | ({} if per_query else {"kv_heads": shape.kv_heads})
        return {"width": shape.width, **heads, "bias": shape.bias, "out_bias": shape.out_bias, "norm_eps": shape.norm_eps}

    def memory(self, shape: Shape) -> tuple[int, int, int]:
        """Heads, rows and columns of the state."""
        spec = self.spec(shape)
        return spec["heads"], spec["key_dim"], spec["value_dim"]

    def convolved(self, shape: Shape) -> tuple[int, int]:
        """Channels and taps of the short convolution."""
        (heads, key_dim, value_dim), spec = self.memory(shape), self.spec(shape)
        return heads * key_dim + spec.get("kv_heads", heads) * (key_dim + value_dim), spec.get("conv", 0)

    def begin(self, module: nn.Module, taught: Attention) -> dict[str, str]:
        return copy_attention(module, taught, per_query=True)

    def state_bytes(self, shape: Shape, length: int, itemsize: int = 4) -> int:
        (heads, rows, columns), (channels, taps) = self.memory(shape), self.convolved(shape)
        return heads * rows * columns * max(itemsize, 4) + channels * max(taps - 1, 0) * itemsize

    def flops(self, shape: Shape, length: int) -> float:
        (heads, rows, columns), (channels, taps) = self.memory(shape), self.convolved(shape)
        return float(self.per_entry * heads * rows * columns + 2 * channels * taps)
