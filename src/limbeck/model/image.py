"""Image classifiers of timm and transformers: pixels in, logits, features and stages out."""

import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from limbeck.component import Document, validate
from limbeck.errors import Refused
from limbeck.model.base import Role, Tap, listening, taps
from limbeck.model.headers import quoted, read_json
from limbeck.model.measured_cost import measured_cost
from limbeck.model.pixels import PROCESSOR, Preprocessing, refuse_pixels
from limbeck.signals import Head, Logits, Row, View
from limbeck.store import home

HEARD = frozenset({"features", "stage"})
NUMBER = str.maketrans("", "", "0123456789")


class ImageFamily(Document):
    """One family of image classifiers of transformers, as its JSON file says it."""

    family: str
    """`model_type` of its config."""
    about: str
    stages: str
    """Path of the list of stages, or of blocks where all of them are alike."""
    stem: str | None = None
    """What stands before the first stage, where it is one module that gives a map."""
    head: str = "classifier"
    """From features to logits."""
    prefix: int = 0
    """Tokens before those of the grid: of the class, of a distillation."""


class Places(NamedTuple):
    """Where the parts of a classifier are."""

    stages: tuple[str, ...]
    stem: str | None
    head: str | None
    """None where there is no single one."""
    prefix: int = 0
    channels_last: bool = False


def is_image(module: Any) -> bool:
    """Whether a module is a classifier of timm, or one of transformers that takes pixels."""
    return isinstance(getattr(module, "feature_info", None), (list, tuple)) or getattr(module, "main_input_name", None) == "pixel_values"


def places(module: Any) -> Places:
    """Where the parts of a module are: as timm says it itself, or by the JSON file of its family.

    Raises:
        Refused: `family`, for one of transformers that has no JSON file.
    """
    if not hasattr(module, "feature_info"):
        return of_family(module)
    found = [entry["module"] for entry in module.feature_info]
    stem = len(found) > 1 and found[0].translate(NUMBER) != found[1].translate(NUMBER)
    head = module.get_classifier()
    path = next((name for name, part in module.named_modules() if part is head and isinstance(part, nn.Linear)), None)
    last = getattr(module, "output_fmt", "NCHW")
    return Places(tuple(found[stem:]), found[0] if stem else None, path, getattr(module, "num_prefix_tokens", 0), str(last) == "NHWC")


def of_family(module: Any) -> Places:
    """Of a model of transformers."""
    files, model_type = image_families(), str(getattr(module.config, "model_type", ""))
    if model_type not in files:
        do = f"copy {files['vit']} to {home() / 'families' / 'image'} as {model_type}.json, and correct its paths"
        expected = f"a family of image classifiers: {', '.join(sorted(files))}"
        raise Refused("family", f"model_type {quoted(model_type)}", expected, quoted(model_type), do)
    family = read_family(files[model_type])
    number = len(module.get_submodule(family.stages))
    return Places(tuple(f"{family.stages}.{i}" for i in range(number)), family.stem, family.head, family.prefix)


def image_families() -> dict[str, Path]:
    """Family -> its file; one's own come before those of limbeck."""
    folders = (Path(__file__).parent / "families" / "image", home() / "families" / "image")
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.json"))}


@cache
def read_family(path: Path) -> ImageFamily:
    return validate(ImageFamily, read_json(path, 1_000_000), str(path))


def processed(module: Any, folder: Path | None) -> Preprocessing:
    """What a model of transformers expects of pixels: as its folder says, at the size that its config fixes, if it fixes one."""
    config = getattr(module.config, "vision_config", module.config)
    size, channels = getattr(config, "image_size", None), getattr(config, "num_channels", 3)
    plain: dict[str, Any] = {"size": size if type(size) is int or size is None else list(size)}
    path = folder / PROCESSOR if folder is not None else None
    if path is not None and path.is_file():
        values = read_json(path, 1_000_000)
        plain |= {name: values[key] for name, key in (("mean", "image_mean"), ("std", "image_std")) if key in values}
        asked = values.get("size")
        if isinstance(asked, Mapping) and {"height", "width"} <= asked.keys():
            plain["size"] = [asked["height"], asked["width"]]
    return Preprocessing.read(plain, str(path or type(module).__name__)).fitted(channels)


class Image(Role):
    """Speaks for an image classifier of any architecture.

    `stage.i` is what its i-th stage says, from 1 on, or the i-th block where all blocks are alike (a ViT, a mixer); `stage.0` what
    stands before the first, where that is one module. Tokens are laid on their grid, those of the class left out. `features` is what
    the head hears. Rows hold pixels as they were read; the role scales and normalises them itself, so that roles which expect
    other pixels look at the same rows, also after these were cropped or mixed. Batch norm in a student sees one micro-batch at a time.
    """

    offers = frozenset({"logits", "label"}) | HEARD
    ragged = False

    def __init__(self, module: nn.Module, preprocessing: Preprocessing | None = None):
        super().__init__(module)
        self.places = places(module)
        self.preprocessing: Preprocessing = preprocessing or getattr(module, "preprocessing", None) or Preprocessing()
        self.num_layers = len(self.places.stages)
        self.lacks = frozenset() if self.places.head else frozenset({"features"})
        self.offers = type(self).offers - self.lacks
        self.known: set[tuple[int, ...]] = set()
        """Shapes of pixels with which the module has been tried."""

    @property
    def vocab(self) -> int | None:
        """Its classes."""
        config = getattr(self.module, "config", None)
        return getattr(self.module, "num_classes", None) or getattr(config, "num_labels", None)

    def refuse_change(self, where, surgeries):
        do = f"remove {where.split('.')[-1]}, and start from another architecture"
        raise Refused("part", where, "a language model, whose blocks are known", type(self.module).__name__, do)

    def view(self, rows: Sequence[Row]) -> View:
        self.refuse(rows)
        pixels = torch.stack([row.content["pixels"] for row in rows])
        if not all("label" in row.content for row in rows):
            return View({"pixels": pixels})
        return View({"pixels": pixels, "label": torch.tensor([row.content["label"] for row in rows], dtype=torch.long, device="cpu")})

    def refuse(self, rows: Sequence[Row]) -> None:
        classes = self.vocab
        refuse_pixels(rows, self.preprocessing.channels)
        for row in rows:
            label = row.content.get("label", 0)
            if classes is not None and not 0 <= int(label) < classes:
                do = "give the model as many classes as the data has (num_classes), or drop these rows"
                raise Refused("label", f"row {row.key}", f"a class from 0 to {classes - 1:,}", f"{label}", do)
        for shape in {tuple(row.content["pixels"].shape) for row in rows} - self.known:
            self.dry(shape)

    def dry(self, shape: tuple[int, ...]) -> None:
        """Tries the module with one empty image, and remembers that it fits."""
        try:
            with listening(self.module), torch.no_grad():
                self.run(self.empty(shape))
        except (RuntimeError, ValueError, AssertionError) as error:
            got = f"{shape[1]}x{shape[2]}: {quoted(' '.join(str(error).split()), 120)}"
            do = "write size: at the source of the rows, larger"
            raise Refused("size", "pixels of the rows", "images of a size that the model can read", got, do) from None
        self.known.add(tuple(shape))

    def empty(self, shape: Sequence[int]) -> Tensor:
        first = next(self.module.parameters())
        return torch.zeros(1, *shape, dtype=torch.uint8, device=first.device)

    @property
    def head(self) -> Head | None:
        """Features to logits, where that is one matrix."""
        part = self.module.get_submodule(self.places.head) if self.places.head else None
        return Head(part.weight, part.bias) if type(part) is nn.Linear else None

    def run(self, pixels: Tensor) -> Tensor:
        out = self.module(self.preprocessing(pixels, next(self.module.parameters()).dtype))
        return out if isinstance(out, Tensor) else out.logits

    def layer(self, name: str) -> int:
        number, first = int(name.split(".")[1]), 0 if self.places.stem else 1
        found = number if number >= 0 else self.num_layers + 1 + number
        if not first <= found <= self.num_layers:
            raise Refused("layer", name, f"a stage from {first} to {self.num_layers}", str(number), "change the number")
        return found

    def tap(self, name: str) -> Tap:
        if name == "features":
            return Tap(str(self.places.head), "input")
        number = self.layer(name)
        return Tap(self.places.stages[number - 1] if number else str(self.places.stem))

    def says(self, view: View, names: Sequence[str], inject: Mapping[str, Tensor]) -> dict[str, Any]:
        if other := [name for name in inject if name != "features"]:
            raise Refused("inject", other[0], "features, which the head hears", other[0], "overwrite features")
        pixels, none, head = view.inputs["pixels"], view.num_rows == 0, self.head
        heard_names = dict.fromkeys((*names, *(("features",) if head and "logits" in names else ())))
        reads = {name: self.tap(name) for name in heard_names if name.split(".")[0] in HEARD}
        with taps(self.module, reads, {name: (self.tap(name), value) for name, value in inject.items()}) as heard:
            if none:  # a batch norm cannot be trained on nothing: one image is run as in evaluation, and nobody listens
                with listening(self.module):
                    logits = self.run(self.empty(pixels.shape[1:]))[:0]
            else:
                logits = self.run(pixels)
        high, wide = self.preprocessing.size or pixels.shape[-2:]
        said = {name: x.flatten(1) if name == "features" else self.as_map(x, high / wide) for name, x in heard.items()}
        said = {name: x[:0] if none else x for name, x in said.items()} | {"logits": logits, "label": view.inputs.get("label")}
        if head and "features" in said and said["features"].shape[-1] == head.weight.shape[-1]:  # made again when asked for, and kept as states
            said["logits"] = Logits(said["features"], head, torch.is_grad_enabled())
        return {name: said[name] for name in names}

    def as_map(self, x: Tensor, ratio: float) -> Tensor:
        """[row, dim, height, width], from tokens too: they are laid on a grid of the image's proportions."""
        if x.ndim == 4:
            return x.permute(0, 3, 1, 2) if self.places.channels_last else x
        number = x.shape[1] - self.places.prefix
        high = round(math.sqrt(number * ratio))
        if not high or number % high:
            raise Refused("stage", type(self.module).__name__, "tokens that fill a grid", f"{number} tokens", "compare logits or features")
        return x[:, self.places.prefix :].mT.unflatten(-1, (high, number // high))

    def row_cost(self, rows: Sequence[Row]) -> tuple[float, float] | None:
        shape = next((row.content["pixels"].shape for row in rows if "pixels" in row.content), None)
        size = self.preprocessing.size or (None if shape is None else tuple(shape[1:]))
        if size is None:
            return None
        return measured_cost(self.module, lambda: self.run(self.empty((self.preprocessing.channels, *size))))
