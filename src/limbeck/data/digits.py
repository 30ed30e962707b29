"""Handwritten digits that come with scikit-learn."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from limbeck.data._images import Images
from limbeck.data.base import Place
from limbeck.errors import Refused
from limbeck.signals import Row
from limbeck.store import sha256_json

NAMES = tuple("0123456789")


class Digits(Images):
    """Reads the 1,797 handwritten digits of scikit-learn, 8 by 8 pixels in grey, ten classes.

    For trials and tests, where nothing may be downloaded: a small network learns them in seconds. The brightest of 17 shades becomes 255.

    Example:
        >>> Digits(num=100).split
        0.2

    References:
        Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, 1998, UCI Machine Learning Repository.
    """

    kind: Literal["digits"] = "digits"
    split: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Share of images that is held out for evaluation, chosen by hash."""
    licence: str | None = "CC-BY-4.0"
    """Licence of the images, for the model card."""

    def read(self, place: Place, path: str | None) -> tuple[list[Row], Mapping[str, Any], list[str]]:
        if path is not None:
            raise Refused("key", "data digits  held_out", "images, of which split holds out a share", f"held_out: {path}", "remove held_out")
        try:
            from sklearn.datasets import load_digits
        except ImportError:
            raise Refused("extra", "data digits", "the package scikit-learn", "not installed", "pip install scikit-learn", 3) from None
        found: Any = load_digits()
        pixels = torch.as_tensor(found.images, device="cpu").mul(255 / 16).round().to(torch.uint8)[:, None]
        rows = self.made(pixels, found.target.tolist(), NAMES)
        facts = {"name": "digits of scikit-learn", "sha256": sha256_json([row.key for row in rows]), "rows": len(rows), "licence": self.licence}
        return rows, facts, []
