"""Signs: numbers of one bit, with a scale a group."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from limbeck.errors import Refused
from limbeck.formats.base import Format, finite


@dataclass(frozen=True)
class Binary(Format):
    r"""Keeps the sign of each number, and of their magnitudes the mean of the group: no two numbers a group are nearer in square.

    $$ \hat x = \mathrm{mean}(|x|) \cdot \mathrm{sign}(x), \qquad \mathrm{sign}(0) = 1 $$

    1 bit a number and 32 a group. It clips nothing: the gradient goes straight through everywhere. There are no frozen scales: it is
    for weights alone.

    References:
        Rastegari et al., Imagenet Classification Using Binary Convolutional Neural Networks, 2016, arXiv:1603.05279.
        Ma et al., Scaling Up Fully Binarized LLM from Scratch via Autoregressive Distillation, 2024, arXiv:2407.07093 (signs of 0, no clipping).
    """

    group: int | None = None
    """Numbers of a group, eight times a whole number; None: a row."""

    @property
    def size(self) -> int | None:
        return self.group

    def measure(self, groups, frozen):
        if frozen is not None:
            self.frozen(frozen)
        return finite(groups.abs().mean(-1)), None

    def made_for(self, amax, most):
        return self.frozen(0.0), None

    def frozen(self, amax: float) -> float:
        raise Refused("scale", "Binary", "weights, whose scale is measured", "a frozen scale", "use int8, fp8 or nvfp4 for what layers hear")

    def reach(self, frozen: float) -> float:
        return self.frozen(frozen)

    def levels(self, scaled):
        return torch.where(scaled.isnan(), scaled, torch.where(scaled < 0, -1.0, 1.0))

    def pack(self, levels: Float[Tensor, "*unit dim"]) -> UInt8[Tensor, "*unit code"]:
        code = (levels > 0).to(torch.uint8).unflatten(-1, (-1, 8))
        return (code << torch.arange(8, dtype=torch.uint8, device=levels.device)).sum(-1, dtype=torch.uint8)

    def unpack(self, packed: UInt8[Tensor, "*unit code"]) -> Float[Tensor, "*unit dim"]:
        places = torch.arange(8, dtype=torch.uint8, device=packed.device)
        return ((packed[..., None] >> places) & 1).flatten(-2).float() * 2 - 1
