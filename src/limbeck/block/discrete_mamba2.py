"""Mamba-2 without a step size."""

from typing import Annotated, Any, Literal

from pydantic import Field
from torch import nn

from limbeck.block._linear_mixer import AbstractLinearMixer
from limbeck.block.base import Attention, Shape, copy_attention
from limbeck.errors import Refused

Number = Annotated[int, Field(gt=0)]


class DiscreteMamba2(AbstractLinearMixer):
    r"""A state that fades by a factor a head and position, and what goes past it, gated.

    $$ S_t = \sigma(-a_t)\, S_{t-1} + B_t x_t^\top, \qquad y_t = W_o \big( (S_t^\top C_t + D\, x_t) \odot \mathrm{silu}(z_t + b_z) \big) $$

    C, B and x (queries, keys and values) are maps of the input and then of the last few positions, without an activation; a and z are maps of the
    input. Convolution, gate and D begin as the identity. The one to choose where matrices are matched first (`matrix_orientation`): M is
    $C_t \cdot B_s$ times the decay between them, and D on its diagonal. Nothing is normalised: with `transfer`, scores come in without a softmax over
    them, and until matrices were matched the output is far too large. Without it, all of this is drawn anew.

    Example:
        >>> DiscreteMamba2(transfer=True).conv
        4

    References:
        Bick et al., Transformers to SSMs: Distilling Quadratic Knowledge to Subquadratic Models, 2024, arXiv:2408.10189.
        Bick et al., Llamba: Scaling Distilled Recurrent Models for Efficient Language Processing, 2025, arXiv:2502.14458.
        Dao and Gu, Transformers are SSMs, 2024, arXiv:2405.21060.
    """

    kind: Literal["discrete_mamba2"] = "discrete_mamba2"
    state: Number | None = None
    """Channels of the keys of a head; left out: as many as in attention."""
    head_dim: Number | None = None
    """Channels of the values of a head; left out: as many as in attention."""
    conv: int = Field(default=4, ge=0)
    """Positions that the convolution sees, the current one among them; 0: none."""
    expand: bool = Field(default=True, json_schema_extra={"since": 2})
    """A head of B and x for each head of C; false: as many as attention has key heads, each heard by several heads of C. With `transfer` both begin
    with the same function; the second makes a smaller student."""
    transfer: bool = False
    """Takes over attention: C from its queries, B and x from its keys and values, output from output."""

    def spec(self, shape: Shape) -> dict[str, Any]:
        dims = {"key_dim": self.state or shape.head_dim, "value_dim": self.head_dim or shape.head_dim}
        if self.transfer and set(dims.values()) != {shape.head_dim}:
            got = f"state: {dims['key_dim']}, head_dim: {dims['value_dim']}"
            do = f"leave out state and head_dim, or transfer: they are {shape.head_dim} in attention"
            raise Refused("shape", "discrete_mamba2.transfer", "as many channels a head as in attention", got, do)
        fresh = {} if self.transfer else {"bias": False, "out_bias": False, "norm_eps": None}
        return self.numbers(**{**self.attention(shape, self.expand), **dims, **fresh}, conv=self.conv)

    def begin(self, module: nn.Module, taught: Attention) -> dict[str, str]:
        return copy_attention(module, taught, per_query=self.expand) if self.transfer else {}
