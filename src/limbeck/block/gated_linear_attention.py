"""Linear attention with a decay a channel."""

from typing import Any, Literal

from pydantic import Field

from limbeck.block._linear_mixer import AbstractLinearMixer
from limbeck.block.base import Shape


class GatedLinearAttention(AbstractLinearMixer):
    r"""A state each of whose rows, one a channel of the keys, fades at a rate of its own.

    $$ S_t = \mathrm{diag}(\alpha_t)\, S_{t-1} + k_t v_t^\top, \qquad
    y_t = W_o \big( \mathrm{norm}(S_t^\top q_t / \sqrt{d}) \odot \mathrm{silu}(g_t) \big) $$

    with $\alpha_t = \sigma(W_2 W_1 x_t + b)^{1/\tau}$. Queries, keys, values and output are those of attention, one key head for each query head;
    decay and gate are new. The root keeps the decay near 1 to begin with, so that it sees far. To be chosen where some channels should remember and
    others look near, which one decay a head cannot. Nothing is ever replaced: for that there is `gated_delta_net`. Positions count only through the
    decay: queries and keys are not turned.

    Example:
        >>> GatedLinearAttention(rank=32).temperature
        16.0

    References:
        Yang et al., Gated Linear Attention Transformers with Hardware-Efficient Training, 2023, arXiv:2312.06635.
    """

    kind: Literal["gated_linear_attention"] = "gated_linear_attention"
    rank: int = Field(default=16, gt=0)
    """Channels between the input and the decay."""
    temperature: float = Field(default=16.0, gt=0)
    """The root of the decay that is taken."""

    def spec(self, shape: Shape) -> dict[str, Any]:
        return self.numbers(**self.attention(shape), scale=shape.scale, rank=self.rank, temperature=self.temperature)
