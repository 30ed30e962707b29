"""Pictures in folders that are named after their classes."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import UInt8
from pydantic import Field
from torch import Tensor

from limbeck.component import short
from limbeck.data._files import finish
from limbeck.data._images import Images
from limbeck.data.base import Place
from limbeck.errors import Refused
from limbeck.signals import Row

SUFFIXES = (".png", ".jpg", ".jpeg")
MODES = {1: "L", 3: "RGB"}


class ImageFolder(Images):
    """Reads PNG and JPEG files from folders, each named after the class of the pictures in it.

    The shorter side of a picture is scaled to `size`, and the middle is cut out. All pictures are in memory, one byte a channel and
    pixel: 150 KB each at 224 pixels. Classes are numbered in the order of their names. A file that cannot be read is named; so many
    as `max_bad` allows are left out, with a count.

    Example:
        >>> ImageFolder(path="flowers", size=64).channels
        3

    References:
        torchvision, `datasets.ImageFolder` (the layout).
    """

    kind: Literal["image_folder"] = "image_folder"
    names_classes: ClassVar[bool] = True
    path: str
    """The folder that holds one of each class; a relative one starts at the recipe."""
    size: Annotated[int, Field(gt=0, le=4096)] = 224
    """Height and width of what is kept of each picture."""
    channels: Literal[1, 3] = 3
    """3: colours; 1: grey."""
    max_bad: Annotated[int, Field(ge=0)] = 0
    """So many files that are no pictures may be left out, with a note; one more stops the run."""

    @classmethod
    def example(cls) -> "ImageFolder":
        return cls(path="pictures", size=8, channels=1, split=0.2)

    def read(self, place: Place, path: str | None) -> tuple[list[Row], Mapping[str, Any], list[str]]:
        root = Path(place.base) / (path or self.path)
        folders = sorted(folder for folder in root.iterdir() if folder.is_dir()) if root.is_dir() else []
        files = [file for folder in folders for file in sorted(folder.iterdir()) if file.suffix.lower() in SUFFIXES]
        if not files:
            got = "no folder" if not root.is_dir() else f"{len(folders)} folders without any"
            raise Refused("data", f"data image_folder  path: {short(str(root))}", "pictures in folders of their classes", got, "correct path")
        found, kept, bad = [], [], []
        for file in files:
            try:
                found.append(picture(file, root, self.size, MODES[self.channels]))
                kept.append(file)
            except Bad as reason:
                bad.append(f"{file}: {reason}")
                if len(bad) > self.max_bad:
                    do = f"replace it, or set max_bad: {len(bad)} to leave so many out"
                    where = f"data image_folder  {file}"
                    raise Refused("data", where, f"at most {self.max_bad} files that are no pictures", str(reason), do) from None
        names = [folder.name for folder in folders]
        pixels = torch.stack(found) if found else torch.zeros(0, self.channels, self.size, self.size, dtype=torch.uint8, device="cpu")
        rows = self.made(pixels, [names.index(file.parent.name) for file in kept], names)
        notes = [f"image_folder: {len(bad):,} files that are no pictures left out, the first {bad[0]}"] if bad else []
        return finish(self, rows, notes, path or self.path, kept or files, split=path is None)


class Bad(Exception):
    """Why a file is no picture."""


def picture(file: Path, root: Path, size: int, mode: str) -> UInt8[Tensor, "channel height width"]:
    """The middle of a picture, its shorter side scaled to a size; raises `Bad`."""
    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise Refused("extra", "data image_folder", "the package pillow", "not installed", "pip install 'limbeck[vision]'", 3) from None
    if not file.resolve().is_relative_to(root.resolve()):
        raise Bad("a link that leads out of the folder")
    try:
        with warnings.catch_warnings(), Image.open(file, formats=("PNG", "JPEG")) as opened:
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            whole = ImageOps.fit(ImageOps.exif_transpose(opened).convert(mode), (size, size), Image.Resampling.BILINEAR)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise Bad(short(f"{type(error).__name__}: {error}".replace(str(file), file.name), 160)) from None
    pixels = torch.from_numpy(np.array(whole))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1).contiguous()
