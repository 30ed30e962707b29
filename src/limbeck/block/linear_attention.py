"""Attention whose weights are products of learned features."""

from typing import Any, ClassVar, Literal

from torch import nn

from limbeck.block._linear_mixer import AbstractLinearMixer
from limbeck.block.base import Attention, Shape, copy_attention


class LinearAttention(AbstractLinearMixer):
    r"""Attention with a product of learned features of query and key in place of the exponential, normalised as attention is.

    $$ o_t = \frac{\sum_{s \le t} \phi_q(q_t) \cdot \phi_k(k_s)\, v_s}{\sum_{s \le t} \phi_q(q_t) \cdot \phi_k(k_s)} $$

    Queries, keys, values, output and the turning by positions are those of attention; for each head u = W q or W k, with W the identity to begin
    with, is mapped to features above 0: $\phi(u) = \mathrm{softmax}([2u, -2u])$, or $[\mathrm{softmax}(u), \mathrm{softmax}(-u)]$. Both are in use,
    and are not the same. To be chosen where attention's weights are to be imitated: they stay a mean over the past, and at first only the maps must
    learn. Nothing fades: over long texts what is near is lost in what is far, unless attention over a window stands beside it.

    Example:
        >>> LinearAttention().feature_map
        'two_softmaxes'

    References:
        Zhang et al., The Hedgehog and the Porcupine: Expressive Linear Attentions with Softmax Mimicry, 2024, arXiv:2402.04347.
        Zhang et al., LoLCATs: On Low-Rank Linearizing of Large Language Models, 2024, arXiv:2410.10254.
    """

    kind: Literal["linear_attention"] = "linear_attention"
    per_entry: ClassVar[int] = 4
    feature_map: Literal["one_softmax", "two_softmaxes"] = "two_softmaxes"
    """How features come from u and -u: by one softmax over both, twice as sharp, or by one for each."""

    def spec(self, shape: Shape) -> dict[str, Any]:
        taken = {name: value for name, value in shape.numbers().items() if name != "scale"}
        return self.numbers(**taken, feature_map=self.feature_map)

    def memory(self, shape: Shape) -> tuple[int, int, int]:
        return shape.heads, 2 * shape.head_dim, shape.head_dim + 1

    def flops(self, shape: Shape, length: int) -> float:
        return super().flops(shape, length) + 4.0 * shape.heads * shape.head_dim**2  # a matrix a head for queries, one for keys

    def begin(self, module: nn.Module, taught: Attention) -> dict[str, str]:
        return copy_attention(module, taught)
