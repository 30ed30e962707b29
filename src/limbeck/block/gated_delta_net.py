"""A gated delta rule."""

from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import nn

from limbeck.block._linear_mixer import AbstractLinearMixer
from limbeck.block.base import Attention, Shape, copy_attention


class GatedDeltaNet(AbstractLinearMixer):
    r"""A state that fades, and in which each position replaces a share of what stood under its key.

    $$ S_t = \alpha_t S_{t-1} (I - \beta_t k_t k_t^\top) + \beta_t v_t k_t^\top, \qquad
    y_t = W_o \big( \mathrm{norm}(S_t q_t) \odot \mathrm{silu}(g_t) \big) $$

    with $\alpha_t = \exp(-e^A\, \mathrm{softplus}(a_t + \delta))$, $\beta_t = \sigma(b_t)$, and queries and keys of length 1 after SiLU. Queries,
    keys, values and output are those of attention, as a rule with one key head for each query head; rates and gate are new. To be chosen where
    facts are recalled and replaced: writing under a key removes what stood there, so that the state does not fill up. In return each chunk is a
    triangular system to solve. Positions count only through the decay: queries and keys are not turned.

    Example:
        >>> GatedDeltaNet().conv
        0

    References:
        Yang et al., Gated Delta Networks: Improving Mamba2 with Delta Rule, 2024, arXiv:2412.06464.
        Li et al., Distilling to Hybrid Attention Models via KL-Guided Layer Selection, 2025, arXiv:2512.20569.
    """

    kind: Literal["gated_delta_net"] = "gated_delta_net"
    per_entry: ClassVar[int] = 7
    conv: int = Field(default=0, ge=0)
    """Positions that a convolution of queries, keys and values sees, the current one among them, before SiLU; 0: there is none."""
    expand: bool = Field(default=True, json_schema_extra={"since": 2})
    """A key and a value head for each query head, which begin as copies; false: query heads go on sharing those of attention. That begins with the
    same function, and makes a smaller student, hardly a faster one."""

    def spec(self, shape: Shape) -> dict[str, Any]:
        return self.numbers(**self.attention(shape, self.expand), conv=self.conv)

    def begin(self, module: nn.Module, taught: Attention) -> dict[str, str]:
        return copy_attention(module, taught, per_query=self.expand)
