"""Images and labels in the IDX format of MNIST."""

import gzip
import struct
import zlib
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from jaxtyping import UInt8
from pydantic import Field
from torch import Tensor

from limbeck.data._files import finish, reading
from limbeck.data._images import Images
from limbeck.data.base import Place
from limbeck.errors import Failed, Refused
from limbeck.signals import Row

FASHION = Path("/usr/share/datasets/fashion-mnist")
CLOTHES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
"""Classes of Fashion-MNIST, as its authors list them."""
IMAGES, LABELS = (0x0803, 3), (0x0801, 1)
"""Magic number (unsigned bytes, so many axes) and number of axes."""
MOST_BYTES = 2**32


class IdxImages(Images):
    """Reads images in grey and their labels from a pair of IDX files, packed with gzip or not.

    The format of MNIST and of sets made in its likeness. The labels stand beside `...images-idx3-ubyte` as `...labels-idx1-ubyte`.
    Without a path it reads Fashion-MNIST, where Debian's package puts it: 60,000 pictures of clothes, 28 by 28, in ten classes;
    `held_out` names the 10,000 test pictures that are published beside them, for figures that others can compare.

    Example:
        >>> IdxImages(num=5000).path
        '/usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz'

    References:
        LeCun, Cortes and Burges, The MNIST Database of Handwritten Digits, 1998.
        Xiao, Rasul and Vollgraf, Fashion-MNIST, 2017, arXiv:1708.07747.
    """

    kind: Literal["idx_images"] = "idx_images"
    path: str = str(FASHION / "train-images-idx3-ubyte.gz")
    """File of the images; a relative one starts at the recipe."""
    classes: Annotated[tuple[str, ...], Field(min_length=2)] | None = None
    """Names of the classes, from 0; none: those of Fashion-MNIST for its files, else the numbers."""

    @classmethod
    def example(cls) -> "IdxImages":
        return cls(path="train-images-idx3-ubyte.gz", split=0.2)

    def read(self, place: Place, path: str | None) -> tuple[list[Row], Mapping[str, Any], list[str]]:
        file = Path(place.base) / (path or self.path)
        beside = file.with_name(file.name.replace("images-idx3", "labels-idx1"))
        if file == beside:
            raise Refused("data", f"data idx_images  path: {file.name}", "a name with images-idx3 in it", file.name, "name the file of the images")
        pixels, labels = idx(file, *IMAGES)[:, None], idx(beside, *LABELS).tolist()
        if len(pixels) != len(labels):
            got = f"{len(pixels):,} images and {len(labels):,} labels"
            raise Refused("data", f"data idx_images  path: {file.name}", "a label for each image", got, "take both files of one set")
        fashion = CLOTHES if file.parent == FASHION else tuple(str(i) for i in range(max(labels, default=0) + 1))
        rows = self.made(pixels, labels, self.classes or fashion)
        return finish(self, rows, [], path or self.path, [file, beside], split=path is None)


def idx(path: Path, magic: int, axes: int) -> UInt8[Tensor, "row *axes"]:
    """The tensor in a file; what it claims to hold is checked against what is there.

    Raises:
        Refused: if there is no such file.
        Failed: `corrupt`, for one that is no IDX file of this kind, or cut short.
    """
    if not path.is_file():
        do = "apt-get install dataset-fashion-mnist" if path.parent == FASHION else "correct path; a relative one starts at the folder of the recipe"
        raise Refused("data", f"data idx_images  path: {path}", "a file", "none", do)
    with reading(path):
        try:
            with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
                found, *shape = struct.unpack(f">{1 + axes}I", file.read(4 * (1 + axes)))
                number = prod(shape)
                fits = found == magic and 0 < number <= MOST_BYTES
                content = bytearray(file.read(number + 1)) if fits else bytearray()
        except (struct.error, EOFError, gzip.BadGzipFile, zlib.error) as error:
            got = f"{type(error).__name__}: {error}"
            raise Failed("corrupt", str(path), "an IDX file of bytes", got, "fetch or copy the file again") from None
    if not fits or len(content) != number:
        got = f"a magic number of {found:#06x}, {shape}, and {len(content):,} bytes or more"
        raise Failed("corrupt", str(path), f"an IDX file of {axes} axes of bytes, all of them there", got, "fetch or copy the file again")
    return torch.frombuffer(content, dtype=torch.uint8).view(shape)
