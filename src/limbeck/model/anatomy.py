"""Anatomy: where the parts of a model are, family by family, as data.

A family is one JSON file in `families/`, or in `$LIMBECK_HOME/families` for one's own; this module only reads them.
"""

import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from limbeck.component import Document, validate
from limbeck.errors import Failed, Refused
from limbeck.model.folder import HYBRID
from limbeck.model.headers import quoted, read_json
from limbeck.model.vision_family import vision_family
from limbeck.store import home

PARTS = {
    "body": "the model without its head",
    "before_head": "what some families put between the final state and the head",
    "head": "final state to logits, scores or labels",
    "front": "waveform to one vector a frame",
    "embedding": "token ids to vectors",
    "position": "learned positions",
    "token_type": "learned segment vectors",
    "embedding_norm": "norm of the embeddings",
    "blocks": "the list of blocks",
    "block": "one block",
    "mixer": "attention, or what stands in its place",
    "query": "to queries",
    "key": "to keys",
    "value": "to values",
    "output": "heads back to the width",
    "query_norm": "norm of queries",
    "key_norm": "norm of keys",
    "mixer_norm": "norm before the mixer",
    "mixer_post_norm": "norm after the mixer",
    "mlp": "the feed-forward part",
    "gate": "to what is activated",
    "up": "to the inner width",
    "down": "back from the inner width",
    "mlp_norm": "norm before the MLP",
    "mlp_post_norm": "norm after the MLP",
    "final_norm": "norm after the last block",
}
"""Every name a part can have."""
SIZES = ("layers", "width", "heads", "kv_heads", "head_dim", "mlp_width", "vocab", "context")
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,59}")


class Slice(Document):
    """A part that is one of several equal pieces of a layer's outputs."""

    path: str
    part: int
    """Which piece, from 0."""
    of: int
    """How many pieces."""


class Places(Document):
    """Where a class keeps body and head; the paths of parts start at the body."""

    body: str = ""
    """Empty where the class is the body itself."""
    before_head: str | None = None
    head: str | None = None


class Family(Document):
    """One family of models, as its JSON file says it."""

    family: str
    """`model_type` of its transformers config."""
    about: str
    causal: bool
    """Whether a position sees only what stands before it."""
    classes: dict[str, Places]
    """transformers classes; the first is the one to open where a config names none."""
    parts: dict[str, str | Slice]
    """Part -> path from the body; `{}` stands for the number of the block, from 0."""
    sizes: dict[str, str]
    """Size -> field of the config."""
    mlp_times_width: int | None = None
    """Inner width of the MLP in widths, where its field is not set."""
    transposed: tuple[str, ...] = ()
    """Parts that keep their weight as [in, out] (transformers' Conv1D)."""
    first_stays: bool = False
    """Whether the first block holds what all others use, so that it cannot be dropped."""
    other: tuple[str, ...] = ()
    """Parameters outside of every part: beginnings of names, from the body."""


@dataclass(frozen=True)
class Anatomy:
    """Where the parts of one class of a family are."""

    family: Family
    model_class: str
    places: Places

    @property
    def causal(self) -> bool:
        """Whether a position sees only what stands before it."""
        return self.family.causal

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the parts that this class has."""
        return tuple(name for name in PARTS if self.has(name))

    def has(self, part: str) -> bool:
        """Whether this class has such a part."""
        of_class = {"head": self.places.head, "before_head": self.places.before_head}
        return part == "body" or part in self.family.parts or of_class.get(part) is not None

    def path(self, part: str, layer: int | None = None) -> str:
        """The path of a part for `get_submodule`; of block `layer` (from 0) where it belongs to one.

        Raises:
            Refused: `part`, if the class has none of this name, or needs a layer, or takes none.
        """
        pattern = self.pattern(part)
        if (layer is None) == ("{}" in pattern):
            raise Refused(
                "part",
                f"{self.model_class}  {part}",
                "the number of a block" if layer is None else "no number: there is one",
                f"layer {layer}",
                f"ask for {part}.LAYER" if layer is None else f"ask for {part}",
            )
        return pattern.replace("{}", str(layer))

    def place(self, part: str) -> str:
        """The path of a part of a block from that block, like self_attn."""
        return self.pattern(part).removeprefix(self.pattern("block") + ".")

    def pattern(self, part: str) -> str:
        """The same with `{}` for the number of the block."""
        if part == "body":
            return self.places.body
        if not self.has(part):
            raise Refused("part", f"{self.model_class}  {part}", "a part of this class: " + ", ".join(self.parts), quoted(part), "name one of these")
        if part in ("head", "before_head"):
            return str(self.places.head if part == "head" else self.places.before_head)
        found = self.family.parts[part]
        path = found if isinstance(found, str) else found.path
        return f"{self.places.body}.{path}" if self.places.body else path

    def part(self, part: str) -> tuple[int, int] | None:
        """(i, n) where a part is the i-th of n equal pieces of what its layer says; None where it is all of it."""
        found = self.family.parts.get(part)
        return (found.part, found.of) if isinstance(found, Slice) else None

    def owner(self, name: str) -> tuple[tuple[str, ...], int | None]:
        """The parts that hold a parameter (several where they are pieces of one layer), and the block; no parts where it is listed as other.

        Raises:
            KeyError: no part holds it.
        """
        parts, layer, depth = [], None, -1
        for part in self.parts:
            pattern = self.pattern(part)
            found = re.match(re.escape(pattern).replace(r"\{\}", r"(\d+)") + r"\.", name) if pattern else None
            if found and part not in ("body", "blocks", "block", "mixer", "mlp") and pattern.count(".") >= depth:
                parts = [*parts, part] if pattern.count(".") == depth else [part]
                layer, depth = (int(found[1]) if found.groups() else None), pattern.count(".")
        if parts:
            return tuple(parts), layer
        body = f"{self.places.body}." if self.places.body else ""
        if any(name.startswith(body + beginning) for beginning in self.family.other):
            return (), None
        raise KeyError(name)

    def weight(self, module: nn.Module, part: str, layer: int | None = None) -> Float[Tensor, "out dim"]:
        """A view of a part's weight as `nn.Linear` lays it out, whatever the layer's own layout; writing to it writes to the model."""
        weight = module.get_submodule(self.path(part, layer)).weight
        assert isinstance(weight, Tensor)
        weight = weight.detach()
        return self.piece(weight.mT if part in self.family.transposed else weight, part)

    def bias(self, module: nn.Module, part: str, layer: int | None = None) -> Float[Tensor, " out"] | None:
        """A view of a part's bias, or None where it has none."""
        bias = getattr(module.get_submodule(self.path(part, layer)), "bias", None)
        return self.piece(bias.detach(), part) if isinstance(bias, Tensor) else None

    def piece(self, whole: Tensor, part: str) -> Tensor:
        """The rows of a weight or bias that belong to a part."""
        cut = self.part(part)
        return whole if cut is None else whole.chunk(cut[1], 0)[cut[0]]

    def size(self, config: Any, name: str) -> int:
        """A size by its plain name: layers, width, heads, kv_heads, head_dim, mlp_width, vocab, context."""
        config = config.get_text_config() if hasattr(config, "get_text_config") else config  # of a model that also sees
        value = getattr(config, self.family.sizes[name], None) if name in self.family.sizes else None
        if value is None and name == "kv_heads":
            return self.size(config, "heads")
        if value is None and name == "head_dim":
            return self.size(config, "width") // self.size(config, "heads")
        if value is None and name == "mlp_width" and self.family.mlp_times_width:
            return self.family.mlp_times_width * self.size(config, "width")
        if type(value) is not int:
            raise Refused(
                "family",
                f"{self.family.family}  {name}",
                f"a number in {self.family.sizes.get(name, 'a field')} of the config",
                quoted(value),
                "correct sizes in the family's JSON file, or the config",
            )
        return value

    def num_layers(self, config: Any) -> int:
        """How many blocks a config asks for."""
        return self.size(config, "layers")

    def context(self, config: Any) -> int | None:
        """How many positions a model was made for; None where the family has no such field."""
        return self.size(config, "context") if "context" in self.family.sizes else None


def anatomy(what: Any) -> Anatomy:
    """The anatomy of a module (exact), of a transformers config (its first class), or of a `model_type` (the family's first class).

    Raises:
        Refused: `family`, for one that has no JSON file: says how many parts are named as in the most similar one.
    """
    config = getattr(what, "config", what)
    model_type = what if isinstance(what, str) else getattr(config, "model_type", None)
    model_type = model_type.removeprefix(HYBRID) if isinstance(model_type, str) else model_type
    if (whole := vision_family(config)) is not None and (not isinstance(what, nn.Module) or type(what).__name__ == whole.model_class):
        return Anatomy(anatomy(config.text_config).family, whole.model_class, Places(body=whole.language, head=whole.head))
    files = {**family_files("speech"), **family_files()}
    if not isinstance(model_type, str) or model_type not in files:
        raise unknown(what, model_type, sorted(family_files()))
    family = read_family(files[model_type])
    if isinstance(what, nn.Module):
        names = [base.__name__ for base in type(what).__mro__]
    else:
        names = list(getattr(config, "architectures", None) or ())
    first = next(iter(family.classes))
    name = next((name for name in names if name in family.classes), None)
    if name is None and isinstance(what, nn.Module):  # another head on the same body
        prefix = str(getattr(what, "base_model_prefix", ""))
        return Anatomy(family, type(what).__name__, Places(body=prefix if prefix and hasattr(what, prefix) else ""))
    return Anatomy(family, name or first, family.classes[name or first])


def family_files(kind: str = "") -> dict[str, Path]:
    """Family -> its file; one's own come before those of limbeck. `kind`: of language models, or `speech` for those that write what they hear."""
    folders = (Path(__file__).with_name("families") / kind, home() / "families" / kind)
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.json")) if NAME.fullmatch(path.stem)}


@cache
def read_family(path: Path) -> Family:
    """A family from its JSON file.

    Raises:
        Refused: `key` or `value`, with the file, for one that does not say what it has to.
    """
    try:
        values = read_json(path, 1_000_000)
    except Failed as error:
        raise Refused("family", str(path), error.expected, error.got, "correct this file") from None
    family = validate(Family, values, str(path))
    for part in family.parts:
        if part not in PARTS or part in ("body", "before_head", "head"):
            raise Refused("family", f"{path}  parts", "one of " + ", ".join(PARTS), quoted(part), "rename it; body and head stand under classes")
    if family.family != path.stem or not family.classes:
        raise Refused("family", str(path), f"family: {path.stem}, and at least one class", quoted(family.family), "correct this file")
    return family


def unknown(what: Any, model_type: Any, known: list[str]) -> Refused:
    """The error of a family without a file."""
    like, found, total = likeness(what) or ("llama", 0, 0)
    got = quoted(model_type) + (f"; {found} of {total} parts are named as in {like}" if total else "")
    name = model_type if isinstance(model_type, str) and NAME.fullmatch(model_type) else "FAMILY"
    return Refused(
        "family",
        f"model_type {quoted(model_type)}",
        f"one of {len(known)} known families: {', '.join(known)}",
        got,
        f"copy {Path(__file__).with_name('families') / like}.json to {home() / 'families' / name}.json and correct its paths",
    )


def likeness(what: Any) -> tuple[str, int, int] | None:
    """The family whose parts are found most often in a module, or in what a config builds on the meta device."""
    import torch

    if not isinstance(what, nn.Module):
        if not hasattr(what, "model_type"):
            return None
        from transformers import AutoModel

        try:
            with torch.device("meta"):
                what = AutoModel.from_config(what)
        except Exception:  # a stranger's config may raise anything, and we only want to be helpful
            return None
    names, best = {name for name, _ in what.named_modules()}, None
    for path in family_files().values():
        family = read_family(path)
        for places in family.classes.values():
            one = Anatomy(family, "", places)
            paths = [one.pattern(part).replace("{}", "0") for part in one.parts]
            found = (family.family, sum(path in names for path in paths), len(paths))
            best = found if best is None or (found[1] / found[2], found[1]) > (best[1] / best[2], best[1]) else best
    return best


def describe() -> dict[str, str]:
    """Family -> one sentence, for `limbeck list family`."""
    return {name: json.loads(path.read_text(encoding="utf-8")).get("about", "") for name, path in family_files().items()}
