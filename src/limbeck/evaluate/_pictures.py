"""Pictures of samples: plain lists of bytes, which the report turns into images."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from limbeck.signals import Row

SIDE = 64
"""Pixels of a picture, each way."""


def drawn(samples: Float[Tensor, "row *axes"], rows: Sequence[Row]) -> list[Any]:
    """A picture of samples: images side by side, or of points how many lie where, up to the farthest held-out one."""
    if samples.ndim == 4:
        pixels = ((samples.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        across = max(1, SIDE // max(pixels.shape[2:]))
        tiled = [torch.cat(list(pixels[i : i + across]), -1) for i in range(0, min(across**2, len(pixels) // across * across), across)]
        return torch.cat(tiled, -2).tolist() if tiled else pixels[0].tolist()
    farthest = 1.2 * float(torch.stack([torch.as_tensor(row.content["clean"], device="cpu").flatten()[:2].abs().max() for row in rows]).max())
    place = ((samples.flatten(1)[:, :2].float() / farthest + 1) / 2 * SIDE).long()
    here = place[((place >= 0) & (place < SIDE)).all(1)]
    count = torch.bincount(here[:, -1].neg().add(SIDE - 1) * SIDE + here[:, 0], minlength=SIDE**2).reshape(1, SIDE, SIDE)
    return (count * 255 // max(1, int(count.max()))).tolist()
