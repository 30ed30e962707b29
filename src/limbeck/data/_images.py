"""What sources of images share: rows that hold pixels as bytes in one tensor, named by their content."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar

import torch
from jaxtyping import UInt8
from pydantic import Field
from torch import Tensor

from limbeck.data.base import Source, key_of
from limbeck.errors import Refused
from limbeck.signals import Row

SUFFIXES = (".png", ".jpg", ".jpeg")
"""Files that are read as pictures."""


class Images(Source):
    """Rows of pixels from 0 to 255, `[channel, height, width]`, with a class; the name of the class is the row's tag.

    The split is by a hash of the pixels, so that a picture that comes twice is on one side.
    """

    makes: ClassVar[str] = "images"

    size: Annotated[int, Field(gt=0, le=4096)] | None = None
    """Height and width that images are scaled to; none: as they are. Roles scale further to what they were made for."""
    num: Annotated[int, Field(gt=0)] | None = None
    """So many images of each file or folder at most, chosen by a hash of their pixels; none: all."""

    def made(self, pixels: UInt8[Tensor, "row channel height width"], labels: Sequence[int], names: Sequence[str]) -> list[Row]:
        """Rows of some images; each is a view into the tensor, which exists once."""
        kind = type(self).model_fields["kind"].default
        if wrong := [label for label in labels if not 0 <= label < len(names)]:
            raise Refused("label", f"data {kind}", f"a class from 0 to {len(names) - 1}", str(wrong[0]), "name all classes, or correct the labels")
        return [
            Row(key_of(source, str(labels[i])), {"pixels": image, "label": int(labels[i])}, names[labels[i]], source=source)
            for image, i, source in self.chosen(pixels)
        ]

    def with_texts(self, pixels: UInt8[Tensor, "row channel height width"], texts: Sequence[str]) -> list[Row]:
        """Rows of some images with a text each."""
        return [Row(key_of(source, texts[i]), {"pixels": image, "text": texts[i]}, source=source) for image, i, source in self.chosen(pixels)]

    def chosen(self, pixels: UInt8[Tensor, "row channel height width"]) -> Iterator[tuple[UInt8[Tensor, "channel high wide"], int, str]]:
        """The images that are taken, at the size asked for; the number of each, and a hash of its content."""
        hashes = [digest(image) for image in pixels]
        chosen = range(len(hashes)) if self.num is None else sorted(sorted(range(len(hashes)), key=hashes.__getitem__)[: self.num])
        if self.num is not None:
            pixels = pixels[list(chosen)]
        for image, i in zip(scaled(pixels, self.size), chosen, strict=True):
            yield image, i, hashes[i]


def digest(image: UInt8[Tensor, "channel height width"]) -> str:
    """A name of the content of an image, and its shape."""
    return hashlib.sha256(repr(tuple(image.shape)).encode() + image.numpy().tobytes()).hexdigest()[:24]


def scaled(pixels: UInt8[Tensor, "row channel height width"], size: int | None) -> UInt8[Tensor, "row channel high wide"]:
    """All images at one size."""
    if size is None or tuple(pixels.shape[-2:]) == (size, size):
        return pixels
    how: Any = {"mode": "bilinear", "antialias": True, "align_corners": False}
    parts = [torch.nn.functional.interpolate(some.float(), (size, size), **how) for some in pixels.split(1024)]
    return torch.cat(parts).round().clamp(0, 255).to(torch.uint8)
