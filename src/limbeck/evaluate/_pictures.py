"""Pictures of samples: plain lists of bytes, which the report turns into images."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from limbeck.model.base import Role
from limbeck.signals import Row

SIDE = 64
"""Pixels of a picture, each way."""
CAPTIONS, MOST = 3, 24
"""Captions that are shown, and pictures at all."""


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


def conditions(role: Role) -> tuple[str, ...]:
    """What a denoiser hears beside a label, by its name in a view: captions."""
    return getattr(role.speakers[0], "conditions", ())


def pictured(role: Role, samples: Float[Tensor, "row *axes"]) -> Float[Tensor, "row *axes"]:
    """What is to be looked at of samples."""
    return getattr(role.speakers[0], "pictured", lambda samples: samples)(samples)


def shown(role: Role, samples: Float[Tensor, "row *axes"], rows: Sequence[Row], label: str) -> list[dict[str, Any]]:
    """Entries of a report: one picture of many samples, or with captions one of each of the first."""
    if not conditions(role):
        return [{"pixels": drawn(samples, rows), "label": label}]
    num = min(CAPTIONS, len(rows), len(samples))
    images = pictured(role, samples[:num])
    if max(images.shape[2:]) > SIDE:
        images = torch.nn.functional.interpolate(images, scale_factor=SIDE / max(images.shape[2:]), mode="bilinear", antialias=True)
    pixels = ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return [{"pixels": pixels[i].tolist(), "label": label, "prompt": rows[i].content["text"]} for i in range(num)]


def by_caption(pictures: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same entries, those of one caption after each other, and of so many captions as a report shows whole."""
    order = list(dict.fromkeys(one.get("prompt") for one in pictures))
    fit = order[: max(1, MOST * len(order) // max(1, len(pictures)))]
    return sorted((one for one in pictures if one.get("prompt") in fit), key=lambda one: order.index(one.get("prompt")))


def in_steps(steps: int) -> str:
    """What a picture or a figure is called."""
    return f"{steps} step{'s' * (steps != 1)}"
