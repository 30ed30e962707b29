"""Every student block gets the teacher's input to that block."""

from typing import Literal

import torch
from pydantic import Field

from limbeck.component import changed
from limbeck.errors import Refused
from limbeck.forward.base import Forward
from limbeck.signals import Needs


class Layerwise(Forward):
    """Feeds each student block what the teacher's block beside it hears, so that blocks learn independently.

    One pass and one backward give the gradients that a pass a block would: what a block hears is a constant. Blocks stand
    beside each other by number, or as `align: layer_map` says. Blocks no objective asks about hear their predecessor.

    Example:
        >>> Layerwise().requires({"student": ("hidden.2",), "teacher": ("hidden.2",)})["teacher"]
        ('hidden.2', 'input.2')

    References:
        Bick et al., MOHAWK, 2024, arXiv:2408.10189, stage 2.
    """

    kind: Literal["layerwise"] = "layerwise"
    heads: int | None = Field(default=None, gt=0, json_schema_extra={"since": 2})
    """So many heads of each block write their matrix out (`mixing.i`), drawn anew for each window: less memory, the same gradient on average.
    None: all."""

    def inputs(self, needs: Needs) -> tuple[str, ...]:
        """Names of the block inputs that are forced."""
        layers = {name.split(".")[1] for name in needs["student"] if "." in name}
        return tuple(f"input.{layer}" for layer in sorted(layers, key=int))

    def requires(self, needs):
        if self.heads and not any(name.startswith("mixing.") for name in needs["student"]):
            do = "leave heads out, or compare matrices: {kind: matrix_orientation}"
            raise Refused("heads", "forward.heads", "an objective that compares matrices of heads", "none", do)
        return {**needs, "teacher": (*needs.get("teacher", ()), *self.inputs(needs))}

    def in_full(self):
        return changed(self, heads=None)

    def draw(self, batch, streams, place):
        if self.heads is None:
            return batch
        drawn = torch.rand(self.heads, generator=streams("heads", *place), device="cpu").to(batch.weights)
        for role in batch.views:
            batch = batch.with_inputs(role, head_draw=drawn.expand(len(batch.keys), -1))
        return batch

    def __call__(self, models, batch, needs):
        teacher = models.says("teacher", batch, self.requires(needs)["teacher"])
        forced = {name: teacher[name] for name in self.inputs(needs)}
        said = {role: models.says(role, batch, names) for role, names in needs.items() if role not in ("student", "teacher")}
        return {**said, "teacher": teacher, "student": models.says("student", batch, needs["student"], inject=forced)}
