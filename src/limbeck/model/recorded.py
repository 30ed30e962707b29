"""A model that is not at hand, but what it said about some rows is."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import Refused
from limbeck.model.base import Role
from limbeck.model.folder import Folder
from limbeck.model.loading import bytes_tokenizer, open_tokenizer
from limbeck.model.text import text_view
from limbeck.signals import Head, Row, View
from limbeck.store import Answers, corrupt, is_sound_or_aside, load_tensors, new_folder, read_json, save_tensors, write_json
from limbeck.text.bytes_tokenizer import ByteTokenizer
from limbeck.text.spans import fingerprint

TEACHER = "teacher"
"""Folder within a cache: what stands in for the model."""
CAPTURE = "limbeck capture RECIPE --into "

FACTS: dict[str, Any] = {
    "models": list,
    "offers": list,
    "vocab": int | None,
    "shift": int,
    "context": int | None,
    "layers": int,
    "provenance": dict,
}
"""What is read of a cache's facts, and its type."""


class Recorded(Role):
    """Offers what was kept, and is never run: a teacher attaches its answers to each window."""

    at_hand = False

    def __init__(self, folder: Path, about: Mapping[str, Any], tokenizer: Any, head: Head | None):
        super().__init__(nn.Module())
        facts = about["facts"]
        self.folder, self.about, self.tokenizer = folder, about, tokenizer
        self.offers = frozenset(facts["offers"])
        self.vocab, self.shift, self.context, self.num_layers = facts["vocab"], facts["shift"], facts["context"], facts["layers"]
        self.provenance = facts["provenance"]
        self.form = head
        for name, x in {} if head is None else {"weight": head.weight, "bias": head.bias}.items():
            self.module.register_parameter(name, None if x is None else nn.Parameter(x, requires_grad=False))

    @property
    def models(self) -> tuple[str, ...]:
        """References of the models that spoke."""
        return tuple(self.about["facts"]["models"])

    @property
    def head(self) -> Head:
        """The model's head, which makes logits of its final states."""
        assert self.form is not None, "no hidden states were kept"
        return self.form.of(self.module.weight, self.module.bias)  # type: ignore[arg-type]

    def view(self, rows: Sequence[Row]) -> View:
        return text_view(rows, self.tokenizer, self.shift)

    def says(self, view: View, names: Sequence[str], inject: Mapping[str, Tensor]) -> dict[str, Any]:
        expected = f"what was recorded: {', '.join(sorted(self.offers))}"
        raise Refused("cache", str(self.folder), expected, f"{', '.join(names)}, to be asked now", f"name the model itself: {self.models[0]}", 3)


def facts_of(role: Role, models: Sequence[str]) -> dict[str, Any]:
    """What a cache tells about the model that spoke, as plain data."""
    import safetensors
    import transformers

    return {
        "models": list(models),
        "offers": sorted(role.offers),
        "vocab": role.vocab,
        "shift": role.shift,
        "context": getattr(role, "context", None),
        "layers": role.num_layers,
        "provenance": dict(role.provenance),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__, "safetensors": safetensors.__version__},
    }


def furnish(answers: Answers, role: Role) -> None:
    """Writes into a cache what stands in for the model: its tokenizer, and the head if hidden states are kept."""
    place, head = answers.folder / TEACHER, getattr(role, "head", None) if "logits" in answers.about["facts"]["offers"] else None
    if place.is_dir() and is_sound_or_aside(place):
        return
    with new_folder(place, sum(x.numel() * x.element_size() for x in head.tensors) if isinstance(head, Head) else 0) as folder:
        known = isinstance(head, Head)
        if head is not None and not known:
            raise Refused("need", "teacher.keep", "a head that is one matrix", "one that is more", "write keep: top_k", 3)
        role.tokenizer.save_pretrained(str(folder))
        kind = "bytes" if isinstance(role.tokenizer, ByteTokenizer) else "files"
        write_json(folder / "about.json", {"tokenizer": kind, "scale": head.scale, "cap": head.cap} if known else {"tokenizer": kind})
        if known:
            save_tensors(folder / "head.safetensors", {name: x for name, x in {"weight": head.weight, "bias": head.bias}.items() if x is not None})


def refuse_missing(folder: Path, num: int, missing: int) -> None:
    """Refuses rows that a model which is not at hand was never asked about."""
    if missing:
        do = f"{CAPTURE}{folder}, where the teacher is at hand"
        raise Refused("cache", str(folder), f"what the teacher said about {num:,} rows", f"nothing about {missing:,} of them", do)


def open_recorded(folder: Path, weights: bool = True) -> Recorded:
    """The role of a cache that `limbeck capture` wrote; without `weights`, it has no head.

    Raises:
        Refused: `cache`, for another folder, or one that lacks the teacher's tokenizer or head.
    """
    about, place = Answers(folder).about, folder / TEACHER
    for name, kind in FACTS.items():
        if not isinstance(about["facts"].get(name, ...), kind):
            raise corrupt(folder / "about.json", f"facts with {name} as limbeck capture writes it", ascii(about["facts"].get(name, "none"))[:80])
    if not place.is_dir() or not is_sound_or_aside(place):
        raise Refused("cache", str(folder), "the teacher's tokenizer and head beside its answers", f"no sound folder {TEACHER}", f"{CAPTURE}{folder}")
    plain, head = read_json(place / "about.json"), None
    if weights and (place / "head.safetensors").is_file():
        tensors = load_tensors(place / "head.safetensors")
        head = Head(tensors["weight"], tensors.get("bias"), float(plain["scale"]), None if plain["cap"] is None else float(plain["cap"]))
    tokenizer = bytes_tokenizer() if plain["tokenizer"] == "bytes" else open_tokenizer(Folder(place, {}, {}), None, str(place))
    if (got := fingerprint(tokenizer)) != (expected := about["identity"].get("tokenizer")):
        raise Refused("tokenizer", str(folder), f"the tokenizer that was recorded, {expected}", got, f"remove it, and capture again: {CAPTURE}DIR")
    return Recorded(folder, about, tokenizer, head).eval()
