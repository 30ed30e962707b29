"""Denoisers that are told how far they are to be guided, beside the time."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from limbeck.errors import Refused

PROJECTION = "cond_proj"
"""From the embedded scale to what the first layer for the time hears: as diffusers calls it, in whose U-Nets for latents it is."""


def embedded(scale: Float[Tensor, " row"], dim: int) -> Float[Tensor, "row dim"]:
    r"""A scale in the convention `extra` as waves: $\sin(1000\, s\, \omega_i)$, then cosines, $\omega_i$ from 1 down to 1/10,000."""
    half = dim // 2
    frequency = torch.exp(torch.arange(half, dtype=torch.float32, device=scale.device) * (-math.log(10_000) / max(1, half - 1)))
    angle = 1000 * scale.float()[:, None] * frequency
    return nn.functional.pad(torch.cat([angle.sin(), angle.cos()], -1), (0, dim % 2))


def of_time(network: Any, where: str) -> tuple[nn.Module, nn.Module]:
    """The module that holds the projection, and the first layer that hears the time.

    Raises:
        Refused: `part`, for a network without such a layer.
    """
    if isinstance(getattr(network, "of_time", None), nn.Module):
        return network, network.of_time
    owner = getattr(network, "time_embedding", None)
    if isinstance(getattr(owner, "linear_1", None), nn.Module):
        return owner, owner.linear_1  # type: ignore[return-value]
    raise Refused("part", where, "a perceptron or U-Net that embeds the time", type(network).__name__, "remove it, or start from another denoiser")


def with_projection(network: Any, dim: int, where: str, zero: bool) -> Any:
    """The network with a projection of so many waves, unless it has one: zero, so that it says what it said, or drawn as a layer is."""
    owner, first = of_time(network, where)
    if getattr(owner, PROJECTION, None) is None:
        like = next(first.parameters())
        made = nn.Linear(dim, first.in_features, bias=False, device=like.device, dtype=like.dtype)  # type: ignore[arg-type]
        if zero:
            nn.init.zeros_(made.weight)
        setattr(owner, PROJECTION, made)
    return network


@contextmanager
def told(network: Any, scale: Float[Tensor, " row"] | None) -> Iterator[None]:
    """Inside, the first layer that hears the time also hears the scale of each row; None: nothing."""
    if scale is None:
        yield
        return
    owner, first = of_time(network, "forward")
    projection: Any = getattr(owner, PROJECTION)

    def add(_: nn.Module, heard: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (heard[0] + projection(embedded(scale, projection.in_features).to(heard[0])), *heard[1:])

    hook = first.register_forward_pre_hook(add)
    try:
        yield
    finally:
        hook.remove()
