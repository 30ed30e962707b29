"""NVFP4: numbers of four bits in blocks of 16, with a scale of eight bits a block and one for the whole tensor."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from limbeck.formats.base import Format, amax, divided, number

BLOCK = 16
"""Numbers that share a scale."""
LEVELS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""What the lower three bits of a code stand for (E2M1); the highest is the sign."""
LARGEST = 6.0
LARGEST_SCALE = 448.0
"""The largest number of E4M3."""
SMALLEST_SCALE = 2.0**-6
"""The smallest normal number of E4M3: no block has a smaller scale. Others stop at the smallest subnormal, 2^-9."""
WHOLE = LARGEST * LARGEST_SCALE
SMALLEST_AMAX, LARGEST_AMAX = 2.0**-100, 2.0**126
"""Between these no scale leaves float32; the scale of the whole tensor is made for the nearer of them, outside."""


@dataclass(frozen=True)
class NVFP4(Format):
    r"""Rounds to the nearest of fifteen numbers, ties to the even code, in blocks of 16 with scales of two levels.

    $$ g = \frac{\mathrm{amax}(x)}{448 \cdot 6}, \quad
       c_b = \mathrm{e4m3}\!\left(\mathrm{clamp}\!\left(\frac{\mathrm{amax}(x_b)}{6\,g},\, 2^{-6},\, 448\right)\right), \quad
       \hat x = c_b\,g \cdot \mathrm{e2m1}\!\left(\mathrm{clamp}\!\left(\frac{x}{c_b\,g},\, -6,\, 6\right)\right) $$

    4.5 bits a number. Of g the reciprocal is kept, in float32, as files keep it. A frozen scale is that reciprocal; blocks are always
    measured.

    References:
        NVIDIA, Introducing NVFP4 for Efficient and Accurate Low-Precision Inference, 2025, https://developer.nvidia.com/blog.
        Open Compute Project, OCP Microscaling Formats (MX) Specification 1.0, 2023 (E2M1).
        Micikevicius et al., FP8 Formats for Deep Learning, 2022, arXiv:2209.05433 (E4M3).
    """

    @property
    def size(self) -> int:
        return BLOCK

    def measure(self, groups, frozen):
        block = amax(groups)
        return self.two_levels(block, reciprocal(amax(block.flatten())) if frozen is None else groups.new_full((), frozen))

    def made_for(self, amax, most):
        return self.two_levels(amax, reciprocal(most))

    def two_levels(self, block: Float[Tensor, "*unit group"], whole: Float[Tensor, ""]) -> tuple[Tensor, Tensor]:
        """Scales of blocks, and the number for the whole tensor."""
        scale = (divided(block, LARGEST) * whole).clamp(SMALLEST_SCALE, LARGEST_SCALE)  # before the cast: past 448 it may say NaN
        return scale.to(torch.float8_e4m3fn), whole[None]

    def frozen(self, amax: float) -> float:
        return number(amax, reciprocal)

    def reach(self, frozen: float) -> float:
        return WHOLE / frozen

    def levels(self, scaled):
        size = scaled.abs().clamp(max=LARGEST)
        spacing = torch.full_like(size, 0.5).masked_fill_(size >= 2, 1.0).masked_fill_(size >= 4, 2.0)
        return torch.copysign((size / spacing).round() * spacing, scaled)  # `round` takes ties to the even one

    def pack(self, levels: Float[Tensor, "*unit dim"]) -> UInt8[Tensor, "*unit code"]:
        size = levels.abs()
        code = torch.where(size < 2, 2 * size, torch.where(size < 4, size + 2, size / 2 + 4)).to(torch.uint8)
        code = code | (levels.signbit().to(torch.uint8) << 3)
        return code[..., ::2] | (code[..., 1::2] << 4)

    def unpack(self, packed: UInt8[Tensor, "*unit code"]) -> Float[Tensor, "*unit dim"]:
        code = torch.stack([packed & 15, packed >> 4], -1).flatten(-2).long()
        table = torch.tensor([*LEVELS, *(-level for level in LEVELS)], dtype=torch.float32, device=packed.device)
        return table[code]


def reciprocal(amax: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """1 / g for the greatest magnitude of a tensor."""
    return amax.new_full((), WHOLE) / amax.clamp(SMALLEST_AMAX, LARGEST_AMAX)
