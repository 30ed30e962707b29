"""Families of vision-language models: where each keeps its vision tower, its connector and its language part, as data."""

from functools import cache
from pathlib import Path
from typing import Any

from limbeck.component import Document, validate
from limbeck.model.headers import read_json
from limbeck.store import home


class VisionFamily(Document):
    """One family of models that see an image and write, as its JSON file says it. The language part is of a family of its own."""

    family: str
    """`model_type` of its config."""
    about: str
    model_class: str
    """Its transformers class."""
    language: str
    """Path of the language model without its head."""
    head: str
    """Path of the map to logits."""
    vision: str
    """Path of the vision tower."""
    connector: str
    """Path of what makes visual tokens out of what the tower says."""


def vision_families() -> dict[str, Path]:
    """Family -> its file; one's own come before those of limbeck."""
    folders = (Path(__file__).parent / "families" / "vision_language", home() / "families" / "vision_language")
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.json"))}


def vision_family(what: Any) -> VisionFamily | None:
    """The family of a module, or of a config or `model_type`; None for one that is no vision-language model."""
    config = getattr(what, "config", what)
    model_type = what if isinstance(what, str) else getattr(config, "model_type", None)
    path = vision_families().get(model_type) if isinstance(model_type, str) else None
    return None if path is None else read_family(path)


@cache
def read_family(path: Path) -> VisionFamily:
    return validate(VisionFamily, read_json(path, 1_000_000), str(path))
