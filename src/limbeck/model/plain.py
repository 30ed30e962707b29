"""Any module that takes the inputs of a row by name and returns one signal, or a mapping of signals."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.model.base import Role, Tap, taps
from limbeck.signals import Row, View


class Plain(Role):
    """Speaks for image classifiers, generators, perceptrons: whatever a user holds as an `nn.Module`."""

    def __init__(
        self,
        module: nn.Module,
        says: str = "logits",
        takes: tuple[str, ...] = ("features",),
        parts: Mapping[str, str] | None = None,
        num_layers: int = 0,
    ):
        """Args:
        module: called with the inputs named in `takes`, in that order.
        says: the signal that it returns; a module that returns a mapping may say all its keys.
        takes: names of inputs, as in `limbeck.signals.VOCABULARY`.
        parts: signal -> path of the part that says it, with `{}` for the layer number from 1: {"hidden": "block.{}"}.
        num_layers: how many layers `parts` has.
        """
        super().__init__(module)
        self.main, self.takes, self.parts, self.num_layers = says, takes, dict(parts or {}), num_layers
        self.offers = frozenset({says, "label", *self.parts})

    def view(self, rows: Sequence[Row]) -> View:
        """Stacks the contents of the rows, name by name."""
        names = rows[0].content.keys()
        return View({name: torch.stack([torch.as_tensor(row.content[name]) for row in rows]) for name in names})

    def tap(self, name: str) -> Tap:
        signal, _, layer = name.partition(".")
        return Tap(self.parts[signal].replace("{}", str(self.layer(name))) if layer else self.parts[signal])

    def says(self, view: View, names: Sequence[str], inject: Mapping[str, Tensor]) -> dict[str, Any]:
        reads = {name: self.tap(name) for name in names if name.split(".")[0] in self.parts}
        with taps(self.module, reads, {name: (self.tap(name), value) for name, value in inject.items()}) as heard:
            out = self.module(*(view.inputs[name] for name in self.takes))
        said = {**(out if isinstance(out, Mapping) else {self.main: out}), **heard}
        return {name: view.inputs["label"] if name == "label" else said[name] for name in names}
