"""Attention with fewer key and value heads."""

from dataclasses import replace
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from limbeck.block.base import Attention, Mixer, Shape, copy_attention
from limbeck.errors import Refused
from limbeck.numerics import upcast


class GroupedAttention(Mixer):
    r"""Attention whose key and value heads are each read by a group of query heads.

    $$ o_t = \sum_{s \le t} \mathrm{softmax}_s(q_t^\top k_s / \sqrt{d})\, v_s, \qquad
       W'_g = \tfrac{1}{m} \sum_{i=1}^m W_{gm + i} \text{ for keys and values} $$

    Each new head begins as the mean of those that it stands for: nothing is lost where these were alike. Keys and values that are
    remembered, and the time to read them, shrink with the number of heads. They still grow with the text, unless what stood there saw a window
    alone, which stays; mixers with a state do not.

    Example:
        >>> GroupedAttention(kv_heads=2).constant
        False

    References:
        Ainslie et al., GQA: Training Generalized Multi-Query Transformer Models from Multi-Head Checkpoints, 2023, arXiv:2305.13245.
    """

    kind: Literal["grouped_attention"] = "grouped_attention"
    constant: ClassVar[bool] = False
    kv_heads: int = Field(default=1, gt=0)
    """Key and value heads; they must divide those that are there."""

    def spec(self, shape: Shape) -> dict[str, Any]:
        if shape.kv_heads % self.kv_heads:
            fitting = [n for n in range(1, shape.kv_heads + 1) if shape.kv_heads % n == 0]
            do = f"kv_heads: {' or '.join(map(str, fitting))}"
            raise Refused("shape", "block  grouped_attention.kv_heads", f"a divisor of {shape.kv_heads} heads", str(self.kv_heads), do)
        return self.numbers(**{**shape.numbers(), "kv_heads": self.kv_heads}, **({} if shape.window is None else {"window": shape.window}))

    def begin(self, module: nn.Module, taught: Attention) -> dict[str, str]:
        def mean(x: Tensor | None) -> Tensor | None:
            return None if x is None else upcast(x).unflatten(0, (self.kv_heads, -1, taught.shape.head_dim)).mean(1).flatten(0, 1)

        weights = {part: mean(x) if part in ("key", "value") else x for part, x in taught.weights.items()}
        biases = {part: mean(x) if part in ("key", "value") else x for part, x in taught.biases.items()}
        return copy_attention(module, replace(taught, weights=weights, biases=biases))

    def state_bytes(self, shape: Shape, length: int, itemsize: int = 4) -> int:
        return shape.remembered(length) * (2 * self.kv_heads * shape.head_dim * itemsize + 1)

    def flops(self, shape: Shape, length: int) -> float:
        return 4.0 * shape.heads * shape.head_dim * shape.seen(length)
