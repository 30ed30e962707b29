"""Pictures in folders that are named after their classes, or with captions."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import UInt8
from pydantic import Field
from torch import Tensor

from limbeck.component import short
from limbeck.data._captions import captions_of
from limbeck.data._files import finish
from limbeck.data._images import SUFFIXES, Images
from limbeck.data.base import Place
from limbeck.errors import Refused
from limbeck.signals import Row

MODES = {1: "L", 3: "RGB"}


class ImageFolder(Images):
    """Reads PNG and JPEG files from folders, each named after the class of the pictures in it.

    The shorter side of a picture is scaled to `size`, and the middle is cut out. All pictures are in memory, one byte a channel and
    pixel: 150 KB each at 224 pixels. Classes are numbered in the order of their names. A file that cannot be read is named; so many
    as `max_bad` allows are left out, with a count.

    With `captions` the pictures lie anywhere below the folder, and each row has a `text` in place of a class. A picture without a caption
    counts as a file that cannot be read; a caption without a picture stops the run.

    Example:
        >>> ImageFolder(path="flowers", size=64).channels
        3
        >>> ImageFolder(path="scans", size=512, captions="metadata.jsonl").captions
        'metadata.jsonl'

    References:
        torchvision, `datasets.ImageFolder` (the layout).
        Hugging Face datasets, `imagefolder` (metadata.jsonl).
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

    captions: Annotated[str | None, Field(json_schema_extra={"since": 2})] = None
    """Where captions stand: `metadata.jsonl`, a file of JSON lines in the folder, with `file_name` (seen from that file) and `text`; or `.txt`, a
    file of text beside each picture, of the same name; none: folders are classes."""

    @classmethod
    def example(cls) -> "ImageFolder":
        return cls(path="pictures", size=8, channels=1, split=0.2)

    def read(self, place: Place, path: str | None) -> tuple[list[Row], Mapping[str, Any], list[str]]:
        root = Path(place.base) / (path or self.path)
        if self.captions is not None:
            return self.captioned(root, path)
        folders = sorted(folder for folder in root.iterdir() if folder.is_dir()) if root.is_dir() else []
        files = [file for folder in folders for file in sorted(folder.iterdir()) if file.suffix.lower() in SUFFIXES]
        if not files:
            got = "no folder" if not root.is_dir() else f"{len(folders)} folders without any"
            raise Refused("data", f"data image_folder  path: {short(str(root))}", "pictures in folders of their classes", got, "correct path")
        pixels, kept, notes = self.pictures(files, root)
        names = [folder.name for folder in folders]
        rows = self.made(pixels, [names.index(file.parent.name) for file in kept], names)
        return finish(self, rows, notes, path or self.path, kept or files, split=path is None)

    def captioned(self, root: Path, path: str | None) -> tuple[list[Row], Mapping[str, Any], list[str]]:
        """Rows with captions."""
        found = captions_of(root, str(self.captions))
        pixels, kept, notes = self.pictures(list(found.pictures), root, found.pictures)
        rows = self.with_texts(pixels, [str(found.pictures[file]) for file in kept])
        return finish(self, rows, notes, path or self.path, [*kept, *found.files] or [root], split=path is None)

    def pictures(
        self, files: Sequence[Path], root: Path, texts: Mapping[Path, str | None] | None = None
    ) -> tuple[UInt8[Tensor, "row channel height width"], list[Path], list[str]]:
        """Pixels of the files that are pictures, and have a text where texts are asked for; these files, and a note where others are left out."""
        found, kept, bad = [], [], []
        for file in files:
            try:
                if texts is not None and not texts[file]:
                    raise Bad("no caption")
                found.append(picture(file, root, self.size, MODES[self.channels]))
                kept.append(file)
            except Bad as reason:
                bad.append(f"{file}: {reason}")
                if len(bad) > self.max_bad:
                    do = f"replace it, or set max_bad: {len(bad)} to leave so many out"
                    expected = f"at most {self.max_bad} files that are no pictures" + " or have no caption" * (texts is not None)
                    raise Refused("data", f"data image_folder  {file}", expected, str(reason), do) from None
        pixels = torch.stack(found) if found else torch.zeros(0, self.channels, self.size, self.size, dtype=torch.uint8, device="cpu")
        what = "files that are no pictures" + " or have no caption" * (texts is not None)
        return pixels, kept, [f"image_folder: {len(bad):,} {what} left out, the first {bad[0]}"] if bad else []


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
