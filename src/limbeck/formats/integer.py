"""Whole numbers of eight or four bits, with a scale a group."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from limbeck.formats.base import Format, amax, divided, number


@dataclass(frozen=True)
class Integer(Format):
    r"""Rounds to the nearest of 2^b equally spaced numbers, ties to the even one; 0 stays 0.

    $$ s = \frac{\mathrm{amax}(x)}{(2^b - 1) / 2}, \qquad \hat x = s \cdot \mathrm{clamp}(\mathrm{round}(x / s),\, -2^{b-1},\, 2^{b-1} - 1) $$

    The greatest magnitude lies half a step outside of the codes: all steps are smaller for it. b bits a number and 32 a group; a
    frozen scale holds for the whole tensor.

    References:
        Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference, 2018, arXiv:1712.05877.
    """

    bits: Literal[8, 4] = 8
    group: int | None = None
    """Numbers of a group, which are even in number where two codes fill a byte; None: a row."""

    @property
    def size(self) -> int | None:
        return self.group

    @property
    def half(self) -> int:
        """How many codes lie below 0."""
        return 2 ** (self.bits - 1)

    def measure(self, groups, frozen):
        return divided(amax(groups), self.half - 0.5) if frozen is None else groups.new_full((1,), frozen), None

    def made_for(self, amax, most):
        return divided(amax, self.half - 0.5), None

    def frozen(self, amax: float) -> float:
        return number(amax, lambda x: divided(x, self.half - 0.5))

    def reach(self, frozen: float) -> float:
        return (self.half - 0.5) * frozen

    def levels(self, scaled):
        return scaled.round().clamp(-self.half, self.half - 1) + 0.0  # no code says -0

    def pack(self, levels: Float[Tensor, "*unit dim"]) -> Shaped[Tensor, "*unit code"]:
        if self.bits == 8:
            return levels.to(torch.int8)
        code = (levels + self.half).to(torch.uint8)
        return code[..., ::2] | (code[..., 1::2] << 4)

    def unpack(self, packed: Shaped[Tensor, "*unit code"]) -> Float[Tensor, "*unit dim"]:
        if self.bits == 8:
            return packed.float()
        return torch.stack([packed & 15, packed >> 4], -1).flatten(-2).float() - self.half
