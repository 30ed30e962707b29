"""What a model expects of pixels: rows hold them as they were read, from 0 to 255, and each model scales and normalises them itself."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from limbeck.errors import Refused
from limbeck.signals import Row

PROCESSOR = "preprocessor_config.json"
"""Where a folder of transformers says what the model expects of pixels."""
HALF = (0.5, 0.5, 0.5)
MOST_SIDE = 4096


@dataclass(frozen=True)
class Preprocessing:
    """Size, mean and spread that a model was made for; of pixels between 0 and 1."""

    mean: tuple[float, ...] = HALF
    std: tuple[float, ...] = HALF
    size: tuple[int, int] | None = None
    """Height and width; None: whatever the rows have."""

    @property
    def channels(self) -> int:
        return len(self.mean)

    def fitted(self, channels: int) -> "Preprocessing":
        """The same for another number of channels, by the mean over those that there are."""
        if channels == self.channels:
            return self
        mean, std = ((sum(each) / len(each),) * channels for each in (self.mean, self.std))
        return Preprocessing(mean, std, self.size)

    def __call__(self, pixels: Shaped[Tensor, "row channel height width"], dtype: torch.dtype) -> Float[Tensor, "row channel high wide"]:
        """Pixels from 0 to 255 as the model hears them."""
        x = pixels.to(dtype) / 255
        if self.size is not None and tuple(x.shape[-2:]) != self.size:
            x = torch.nn.functional.interpolate(x, self.size, mode="bilinear", antialias=True, align_corners=False)
        mean, std = (x.new_tensor(each)[:, None, None] for each in (self.mean, self.std))
        return (x - mean) / std

    def processor(self) -> dict[str, Any]:
        """What transformers reads beside a model: how pixels from 0 to 255 become what the model hears."""
        size = {} if self.size is None else {"size": {"height": self.size[0], "width": self.size[1]}}
        return {
            "image_processor_type": "ViTImageProcessor",
            "do_resize": self.size is not None,
            **size,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
        }

    @classmethod
    def read(cls, plain: Mapping[str, Any], where: str) -> "Preprocessing":
        """From plain data of a config: mean, std, size.

        Raises:
            Refused: `value`, with the field.
        """
        mean, std = (numbers(plain.get(name, HALF), f"{where}  {name}") for name in ("mean", "std"))
        if len(mean) != len(std) or min(std) <= 0:
            raise Refused("value", f"{where}  std", f"{len(mean)} numbers above 0, one a channel", str(list(std)), "correct std")
        size = plain.get("size")
        if size is None:
            return cls(mean, std)
        sides = [size, size] if type(size) is int else size
        if not isinstance(sides, Sequence) or len(sides) != 2 or not all(type(x) is int and 0 < x <= MOST_SIDE for x in sides):
            raise Refused("value", f"{where}  size", f"height and width, from 1 to {MOST_SIDE}", str(size)[:80], "write size: [224, 224]")
        return cls(mean, std, (sides[0], sides[1]))


def numbers(value: Any, where: str) -> tuple[float, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str) or not 0 < len(value) <= 64 or not all(type(x) in (int, float) for x in value):
        raise Refused("value", where, "numbers, one a channel", str(value)[:80], "write [0.5, 0.5, 0.5]")
    return tuple(float(x) for x in value)


def refuse_pixels(rows: Sequence[Row], channels: int) -> None:
    """Refuses rows that do not all hold an image of so many channels and one size: `data`, `channels`, `size`."""
    for row in rows:
        pixels = row.content.get("pixels")
        if not isinstance(pixels, Tensor) or pixels.ndim != 3:
            got = "none" if pixels is None else f"shape {tuple(getattr(pixels, 'shape', ()))}"
            raise Refused("data", f"row {row.key}", "pixels of [channel, height, width]", got, "use a source of images: image_folder, idx_images")
        if pixels.shape[0] != channels:
            do = f"write channels: {channels} at the source of the rows, or start from a model that takes {pixels.shape[0]}"
            raise Refused("channels", f"row {row.key}", f"images of {channels} channels", f"{pixels.shape[0]}", do)
        if pixels.shape != rows[0].content["pixels"].shape:
            sizes = " and ".join("x".join(map(str, shape[1:])) for shape in (rows[0].content["pixels"].shape, pixels.shape))
            raise Refused("size", f"row {row.key}", "images of one size", sizes, "write size: at the sources, so that all are scaled to it")
