"""Crops and mirrors images of a window."""

from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Shaped
from pydantic import Field, model_validator
from torch import Tensor

from limbeck.data.base import Place, Step
from limbeck.errors import Refused
from limbeck.signals import Batch


class Augment(Step):
    """Shifts each image of a window by some pixels, and mirrors it or not: what is shifted in is black.

    The usual first augmentation of small images: pad by `pad` on all sides, cut out a window of the old size, flip left and right with
    the probability `flip`. Each row is drawn by its own key and the window's number, so that how a window is cut, and where a run was stopped,
    change nothing; teacher and student see the same image. Leave flip at 0 where left and right mean something, as in digits. A cached teacher
    has never seen the changed rows, and is refused.

    Example:
        >>> Augment(pad=2, flip=0.0).kind
        'augment'

    References:
        He et al., Deep Residual Learning for Image Recognition, 2016, arXiv:1512.03385, section 4.2.
    """

    kind: Literal["augment"] = "augment"
    inputs: ClassVar[tuple[str, ...]] = ("pixels",)
    pad: Annotated[int, Field(ge=0, le=1024)] = 4
    """Pixels that an image is shifted by at most, each way."""
    flip: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Probability that an image is mirrored, left to right."""

    @model_validator(mode="after")
    def changes_something(self) -> "Augment":
        if not self.pad and not self.flip:
            raise ValueError("pad or flip above 0: else nothing is changed")
        return self

    def window(self, batch: Batch, place: Place, memory: object) -> Batch:
        draws = [place.streams.number("augment", place.window, key) for key in batch.keys]
        side = 2 * self.pad + 1
        down, across = [n % side for n in draws], [n // side % side for n in draws]
        mirrored = [n // side**2 % 2**20 < self.flip * 2**20 for n in draws]
        views = dict(batch.views)
        for role, view in views.items():
            if "pixels" not in view.inputs:
                raise Refused("data", "data augment", "rows that hold pixels", ", ".join(view.inputs), "use a source of images, or remove augment")
            pixels = moved(view.inputs["pixels"], self.pad, down, across, mirrored)
            views[role] = replace(view, inputs={**view.inputs, "pixels": pixels})
        keys = tuple(f"{key}/{y}.{x}.{int(m)}" for key, y, x, m in zip(batch.keys, down, across, mirrored, strict=True))
        return replace(batch, views=views, keys=keys)


def moved(
    pixels: Shaped[Tensor, "row channel height width"], pad: int, down: list[int], across: list[int], mirrored: list[bool]
) -> Shaped[Tensor, "row channel height width"]:
    """Each image cut out of itself with a black border, from these places on; mirrored where that is asked for."""
    _, _, high, wide = pixels.shape
    padded = torch.nn.functional.pad(pixels, (pad,) * 4).permute(0, 2, 3, 1)
    lines, columns, row = (torch.arange(number, device=pixels.device) for number in (high, wide, len(pixels)))
    drawn = torch.tensor([down, across, mirrored], dtype=torch.long, device=pixels.device)[..., None]
    y, x, row = lines + drawn[0], torch.where(drawn[2] == 1, columns.flip(0), columns) + drawn[1], row[:, None, None]
    return padded[row, y[:, :, None], x[:, None, :]].permute(0, 3, 1, 2).contiguous()
