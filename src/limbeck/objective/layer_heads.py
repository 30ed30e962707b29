"""Predicts several layers of the teacher from one of the student."""

from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from limbeck.errors import Refused
from limbeck.numerics import upcast
from limbeck.objective.base import Objective
from limbeck.schedule import NonNegative
from limbeck.signals import Needs, Signals


class LayerHeads(Objective):
    r"""Holds what a learned head makes of one layer of the student against several layers of the teacher, in size and direction.

    $$ \frac{1}{|K|} \sum_{k \in K} \frac{1}{d} \lVert W_k g - h^T_k \rVert_1 - \lambda \log \sigma\big(\cos(W_k g, h^T_k)\big), \qquad
       g = \mathrm{GELU}(V h^S) $$

    V is shared by all layers k of the teacher and each has a part of what it gives; $W_k$ is its own. So a student of two layers need not
    have a layer for each that it learns from: it keeps what all of them can be read from. The head learns with the student and is left out
    of what is exported. The best value is not 0 but $\lambda \log(1 + 1/e)$, about 0.313 at $\lambda = 1$: compare cosines, not values.
    Where both have as many layers, `hidden_mse` or `hidden_cosine` with `layer_map` need no head.

    Example:
        >>> LayerHeads(layers=(4, 12)).needs["teacher"]
        ('hidden.4', 'hidden.12')

    References:
        Chang, Yang and Lee, DistilHuBERT: Speech Representation Learning by Layer-wise Distillation, 2021, arXiv:2110.01900.
    """

    kind: Literal["layer_heads"] = "layer_heads"
    layers: Annotated[tuple[int, ...], Field(min_length=1)] = (4, 8, 12)
    """Layers of the teacher that are predicted: 1 is the first block, -1 the last, 0 what the first block hears."""
    hears: int = -1
    """The layer of the student that they are predicted from."""
    cosine: NonNegative = 1.0
    """Weight of the direction beside the size."""

    @classmethod
    def example(cls) -> "LayerHeads":
        return cls(layers=(1, 3))

    @property
    def unit(self) -> str:
        return "pos"

    @property
    def needs(self) -> Needs:
        return {"student": (f"hidden.{self.hears}",), "teacher": tuple(f"hidden.{i}" for i in self.layers)}

    def build(self, example: Mapping[str, Signals]) -> nn.Module:
        (ours,), (first, *_) = (self.needs[seat] for seat in ("student", "teacher"))
        num, asked = (example[seat].num("pos") for seat in ("student", "teacher"))
        if num != asked:
            do = "start from a model that reads the same positions: of sounds, one with the teacher's convolutions"
            raise Refused("positions", "layer_heads", f"the teacher's {asked:,} positions", f"{num:,} of the student", do)
        return Heads(example["student"][ours].shape[-1], example["teacher"][first].shape[-1], len(self.layers))

    def values(self, student: Signals, teacher: Signals, learned: nn.Module) -> Float[Tensor, " pos"]:
        said = learned(upcast(student[self.needs["student"][0]]))
        target = torch.stack([upcast(teacher[name]) for name in self.needs["teacher"]], 1)
        size = (said - target).abs().mean(-1)
        direction = -torch.nn.functional.logsigmoid(torch.cosine_similarity(said, target, dim=-1))
        return (size + self.cosine * direction).mean(1)


class Heads(nn.Module):
    """One state to several: a shared map, then one for each."""

    def __init__(self, dim: int, out: int, number: int):
        super().__init__()
        self.shared = nn.Linear(dim, number * out)
        self.each = nn.ModuleList(nn.Linear(out, out) for _ in range(number))

    def forward(self, x: Float[Tensor, "pos dim"]) -> Float[Tensor, "pos layer out"]:
        parts = torch.nn.functional.gelu(self.shared(x)).chunk(len(self.each), -1)
        return torch.stack([one(part) for one, part in zip(self.each, parts, strict=True)], 1)
