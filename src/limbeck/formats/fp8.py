"""FP8: numbers of eight bits with a sign, four bits of exponent and three of mantissa (E4M3), and a scale a row."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from limbeck.formats.base import Format, amax, divided, number

LARGEST = 448.0


@dataclass(frozen=True)
class FP8(Format):
    r"""Rounds to the nearest number of E4M3, with a scale that puts the greatest magnitude of each row on the largest of them.

    $$ s = \frac{\mathrm{amax}(x)}{448}, \qquad \hat x = s \cdot \mathrm{e4m3}(\mathrm{clamp}(x / s, -448, 448)) $$

    8 bits a number and 32 a row; a frozen scale holds for the whole tensor.

    References:
        Micikevicius et al., FP8 Formats for Deep Learning, 2022, arXiv:2209.05433.
    """

    @property
    def size(self) -> None:
        return None

    def measure(self, groups, frozen):
        return divided(amax(groups), LARGEST) if frozen is None else groups.new_full((1,), frozen), None

    def made_for(self, amax, most):
        return divided(amax, LARGEST), None

    def frozen(self, amax: float) -> float:
        return number(amax, lambda x: divided(x, LARGEST))

    def reach(self, frozen: float) -> float:
        return LARGEST * frozen

    def levels(self, scaled):
        return scaled.clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn).float()  # clamped first: past 448 the cast may say NaN

    def pack(self, levels: Float[Tensor, "*unit dim"]) -> Shaped[Tensor, "*unit dim"]:
        return levels.to(torch.float8_e4m3fn)

    def unpack(self, packed: Shaped[Tensor, "*unit dim"]) -> Float[Tensor, "*unit dim"]:
        return packed.float()
