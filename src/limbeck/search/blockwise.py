"""Many parts for each block of one model: all learn at once to stand in for what is there, are tried out one by one, and put together."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from itertools import groupby, product
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.align.layer_map import LayerMap
from limbeck.block._hybrid import blocks_of, put
from limbeck.block.base import Block, FeedForward, Mixer
from limbeck.block.narrow_mlp import NarrowMlp, contributions
from limbeck.data.base import Rows
from limbeck.model.base import Models, Role, Tap, clone, taps
from limbeck.model.blocks import causal, mlp_of
from limbeck.model.text import Text
from limbeck.numerics import Streams
from limbeck.objective.hidden_nmse import HiddenNMSE
from limbeck.search.library import Choice
from limbeck.signals import Row, View
from limbeck.student._parts import Begun, begun, put_parts
from limbeck.student.base import Score
from limbeck.student.replace_parts import Parts, ReplaceParts
from limbeck.train.loop import Loop, World
from limbeck.train.optimiser import Optimiser
from limbeck.train.stage import Stage, Turn

WHERE = "search.blockwise"
Slot = tuple[str, int, int]
"""mixer or mlp, the number of the variant (0: what was there), the block."""


class Shelf:
    """Variants of the mixer and of the MLP of every block of a model, each with weights of its own.

    An option of a block is a pair of them, and a choice names one option a block: 0 is the block as it was. They learn apart, a mixer
    beside the block's own MLP and an MLP beside its own mixer: m + n parts a block stand for m times n options. Where they are also chosen
    `apart`, a choice names first the mixer and then the MLP of each block, and m + n measurements stand for m times n.
    """

    def __init__(
        self, whole: Role, mixers: Sequence[Mixer], mlps: Sequence[FeedForward], rows: Sequence[Row] = (), apart: bool = False, seed: int = 0
    ):
        """Args:
        whole: the model; it is not changed.
        mixers: what may stand in the place of its attention.
        mlps: what may stand in the place of its MLP.
        rows: what narrow MLPs are measured on, to find the channels that stay; none: their weights tell.
        apart: see above.
        seed: of weights that are drawn.
        """
        self.whole = causal(whole, WHERE)
        self.num_layers, self.seed = whole.num_layers, seed
        every: dict[str, list[list[Block]]] = {"mixer": [[block] * self.num_layers for block in mixers], "mlp": [[b] * self.num_layers for b in mlps]}
        if rows and any(isinstance(block, NarrowMlp) for block in mlps):
            worth = self.worth(rows)
            every["mlp"] = [[b.measured(w) if isinstance(b, NarrowMlp) else b for b, w in zip(some, worth, strict=True)] for some in every["mlp"]]
        self.blocks: dict[Slot, Block] = {
            (part, n, layer): block for part, some in every.items() for n, column in enumerate(some, 1) for layer, block in enumerate(column)
        }
        self.parts: dict[Slot, Begun] = {slot: begun(block, self.whole, slot[2], seed) for slot, block in self.blocks.items()}
        each = {"mixer": [{"mixer": n} for n in range(len(mixers) + 1)], "mlp": [{"mlp": n} for n in range(len(mlps) + 1)]}
        groups = list(each.values()) if apart else [[{**a, **b} for a, b in product(*each.values())]]
        self.places: list[tuple[int, list[dict[str, int]]]] = [(layer, some) for layer in range(self.num_layers) for some in groups]
        """For each number of a choice the block that it is about, and its options: which variant of which part."""

    def worth(self, rows: Sequence[Row]) -> list[Tensor]:
        """What the inner channels of each MLP contribute to what it says."""
        view = self.whole.view(rows).to(next(self.whole.parameters()).device)
        flat, _, inputs = self.whole.lay_out(view)
        reads = {str(layer): Tap(self.whole.anatomy.path("mlp", layer), "input") for layer in range(self.num_layers)}
        with torch.no_grad(), taps(self.whole.module, reads, {}) as heard:
            self.whole.body(**inputs)
        return [contributions(mlp_of(self.whole.module, layer), flat(heard[str(layer)])) for layer in range(self.num_layers)]

    @property
    def sizes(self) -> Choice:
        """How many options each number of a choice has."""
        return tuple(len(options) for _, options in self.places)

    def slots(self, choice: Choice) -> list[Slot]:
        """The parts of a choice, without those that were there."""
        chosen = zip(self.places, choice, strict=True)
        return [(part, n, layer) for (layer, options), option in chosen for part, n in options[option].items() if n]

    def surgery(self, choice: Choice) -> ReplaceParts:
        """A choice as a recipe writes it, with parts as they begin."""
        named: list[dict[str, Any]] = [{} for _ in range(self.num_layers)]
        for slot in self.slots(choice):
            named[slot[2]][slot[0]] = self.blocks[slot]
        return ReplaceParts(blocks=tuple(Parts(**some) for some in named), seed=self.seed)

    def assembled(self, choice: Choice) -> Text:
        """A choice as a model of its own, with copies of the parts as they are now."""
        role = clone(self.whole)
        assert isinstance(role, Text)
        chosen: dict[int, dict[str, Begun]] = {}
        for slot in self.slots(choice):
            part = self.parts[slot]
            chosen.setdefault(slot[2], {})[slot[0]] = replace(part, module=copy.deepcopy(part.module))
        put_parts(role, chosen)
        return role.eval()

    def placed(self, slots: Sequence[Slot]) -> AbstractContextManager[Text]:
        """Inside, the model has these parts in its blocks; afterwards it is what it was."""
        return self.standing({(slot[0], slot[2]): self.parts[slot].module for slot in slots})

    @contextmanager
    def standing(self, modules: Mapping[tuple[str, int], nn.Module]) -> Iterator[Text]:
        """Inside, the model has these modules in its blocks, each named by part and block; afterwards it is what it was."""
        module: Any = self.whole.module
        places = [(blocks_of(module)[layer], self.whole.anatomy.place(part)) for part, layer in modules]
        before = [(block, place, block.get_submodule(place)) for block, place in places]
        try:
            for new, (block, place) in zip(modules.values(), places, strict=True):
                put(block, place, new)
            yield self.whole
        finally:
            for block, place, part in before:
                put(block, place, part)

    def scorer(self, score: Score) -> Callable[[Choice], float]:
        """How far a choice moves the model, by a score such as the mean KL to it. What is compared with is asked first, while it is whole."""
        score(self.whole)

        def measure(choice: Choice) -> float:
            with self.placed(self.slots(choice)) as role:
                return float(score(role))

        return measure

    def errors(self, rows: Sequence[Row]) -> dict[Slot, float]:
        """How far what a block says with each part is from what it said, heard on the same inputs: squared error over the size of the target."""
        columns = Columns(self)
        models = Models({"student": columns, "teacher": self.whole})
        batch = models.batch(rows).to(next(self.whole.parameters()).device)
        names = [f"{signal}.{layer}" for layer in range(1, self.num_layers + 1) for signal in ("hidden", "input")]
        found: dict[Slot, float] = {}
        with torch.no_grad():
            teacher = models.says("teacher", batch, names)
            for column, pairs in groupby(columns.pairs, lambda pair: columns.slots[pair[0] - 1][:2]):
                layers = dict(pairs)
                said = columns.says(
                    batch.view("student"), [f"hidden.{k}" for k in layers], {f"input.{k}": teacher[f"input.{i}"] for k, i in layers.items()}
                )
                for k, layer in layers.items():
                    a, b = (batch.signals("student", {"hidden.1": x}) for x in (said[f"hidden.{k}"], teacher[f"hidden.{layer}"]))
                    found[*column, layer - 1] = float(HiddenNMSE(layers=(1,)).values(a, b).mean())
        return found


class Columns(Role):
    """All parts of a shelf as one role: `hidden.k` is what the block of the k-th part (from 1) says with it, given what it hears as `input.k`."""

    offers = frozenset({"hidden", "input"})

    def __init__(self, shelf: Shelf):
        self.slots = sorted(shelf.parts)
        super().__init__(nn.ModuleDict({"_".join(map(str, slot)): shelf.parts[slot].module for slot in self.slots}))
        self.shelf, self.num_layers, self.tokenizer, self.shift = shelf, len(self.slots), shelf.whole.tokenizer, shelf.whole.shift

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """Number of each part, and the layer whose place it takes."""
        return tuple((k, slot[2] + 1) for k, slot in enumerate(self.slots, 1))

    def view(self, rows: Sequence[Row]) -> View:
        return self.shelf.whole.view(rows)

    def says(self, view: View, names: Sequence[str], inject: Mapping[str, Tensor]) -> dict[str, Any]:
        asked: dict[tuple[str, int], dict[int, int]] = {}
        for k in (self.layer(name) for name in names):
            part, n, layer = self.slots[k - 1]
            asked.setdefault((part, n), {})[layer] = k
        out: dict[str, Any] = {}
        for (part, n), layers in asked.items():  # no two of them in one block: they are heard in one pass
            with self.shelf.placed([(part, n, layer) for layer in layers]) as role:
                forced = {f"input.{layer + 1}": inject[f"input.{k}"] for layer, k in layers.items()}
                said = role.says(view, tuple(f"hidden.{layer + 1}" for layer in layers), forced)
            out |= {f"hidden.{k}": said[f"hidden.{layer + 1}"] for layer, k in layers.items()}
        return out


def learning(shelf: Shelf, rows: Rows, steps: int, batch: int = 8, optimiser: Optimiser | None = None, seed: int = 0, **turn: Any) -> Loop:
    """A loop in which all parts learn at once, each from the block it stands in for: what that hears and what it says in the whole model.

    No gradient of one part reaches another one, and each learns as it would alone: by default gradients, whose norm is that of all parts
    together, are not clipped. Run it with `run()`.
    """
    columns = Columns(shelf)
    fields = {
        "objective": (HiddenNMSE(layers="all", weight=float(len(columns.slots))),),  # the sum over parts
        "forward": "layerwise",
        "align": (LayerMap(map="explicit", pairs=columns.pairs),),
        "optimiser": optimiser or Optimiser(clip=None),
        "batch": batch,
    }
    stage = Stage(steps=steps, turn=(Turn.model_validate({**fields, **turn}),))
    return Loop(stage, World(Models({"student": columns, "teacher": shelf.whole}), rows, streams=Streams(seed)))
