"""An MLP with fewer inner channels."""

import math
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from limbeck.block.base import FeedForward, Mlp, MlpShape, copy_linear
from limbeck.errors import Refused
from limbeck.numerics import upcast

WHERE = "block  narrow_mlp"
SHARE = 0.5
"""Of the channels, where no size is named."""


class NarrowMlp(FeedForward):
    r"""Keeps the inner channels of an MLP that contribute most; those that stay keep their weights and their order.

    $$ I_c = \frac{1}{N} \sum_n |a_c(x_n)| \cdot \|W_{down}[:, c]\|, \qquad a = \mathrm{act}(W_{gate} x) \odot W_{up} x $$

    `contributions` measures this on what an MLP hears, and `kept` takes the channels that it finds. Where nothing was heard, $|a_c|$ is taken
    to be as large as $\|W_{gate}[c]\| \cdot \|W_{up}[c]\|$, which is what it grows with. Each block may have another inner width; for one
    and the same width everywhere `keep_width` gives a model of a stock class.

    Example:
        >>> NarrowMlp(kept=(0, 3, 4)).stays(8)
        3

    References:
        Bercovich et al., Puzzle: Distillation-Based NAS for Inference-Optimized LLMs, 2024, arXiv:2411.19146.
        Muralidharan et al., Compact Language Models via Pruning and Knowledge Distillation, 2024, arXiv:2407.14679.
    """

    kind: Literal["narrow_mlp"] = "narrow_mlp"
    inner: Annotated[float, Field(gt=0, lt=1)] | Annotated[int, Field(ge=1, strict=True)] | None = None
    """Inner channels that stay, below 1 a share of them; half, where neither this nor `kept` is given."""
    kept: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    """The channels that stay, from 0, ascending, in place of how many."""

    @model_validator(mode="after")
    def either_way(self) -> "NarrowMlp":
        if self.kept is not None and self.inner is not None:
            raise ValueError("either kept, the channels that stay, or inner, how many; not both")
        if self.kept is not None and (not self.kept or any(b <= a for a, b in zip(self.kept, self.kept[1:], strict=False))):
            raise ValueError("kept: at least one channel, ascending, each once")
        return self

    def stays(self, num: int) -> int:
        """How many of so many channels stay.

        Raises:
            Refused: `shape`, for one that is not there, or more than there are.
        """
        if self.kept is not None:
            if self.kept[-1] >= num:
                raise Refused("shape", f"{WHERE}.kept", f"channels 0 to {num - 1}", str(self.kept[-1]), "name channels of this MLP")
            return len(self.kept)
        inner = SHARE if self.inner is None else self.inner
        stay = inner if isinstance(inner, int) else max(1, round(inner * num))
        if stay > num:
            raise Refused("shape", f"{WHERE}.inner", f"at most the {num} channels that there are", str(stay), f"inner: {num}, or less")
        return stay

    def measured(self, worth: Float[Tensor, " inner"]) -> "NarrowMlp":
        """The same with the channels written out that are worth most; of equals the earlier."""
        if self.kept is not None:
            return self
        order = sorted(range(len(worth)), key=worth.tolist().__getitem__, reverse=True)
        return NarrowMlp(kept=tuple(sorted(order[: self.stays(len(worth))])))

    def spec(self, shape: MlpShape) -> dict[str, Any]:
        sizes = {"width": shape.width, "activation": shape.activation, "gated": shape.gated, "bias": shape.bias, "out_bias": shape.out_bias}
        return self.numbers(**sizes, inner=self.stays(shape.inner))

    def begin(self, module: nn.Module, taught: Mlp) -> dict[str, str]:
        down, num = taught.weights["down"], self.stays(taught.shape.inner)
        if self.kept is not None:
            index = torch.tensor(self.kept, device=down.device)
        else:
            index = grown(taught).argsort(descending=True, stable=True)[:num].sort().values
        copied = {}
        for part, weight in taught.weights.items():
            axis, bias = int(part == "down"), taught.biases.get(part)
            linear: Any = module.get_submodule(f"{part}_proj")
            copy_linear(linear, weight.index_select(axis, index), bias if bias is None or axis else bias.index_select(0, index))
            copied |= {f"{part}_proj.{name}": part for name, _ in linear.named_parameters()}
        return copied


def grown(mlp: Mlp) -> Float[Tensor, " inner"]:
    """What channels contribute as far as weights tell."""
    rows = [upcast(weight).norm(dim=1) for part, weight in mlp.weights.items() if part != "down"]
    return math.prod(rows[1:], start=rows[0]) * upcast(mlp.weights["down"]).norm(dim=0)


def contributions(mlp: Mlp, heard: Float[Tensor, "pos dim"]) -> Float[Tensor, " inner"]:
    """What channels contribute to what an MLP says, from what it hears: mean size of their activation times the norm of their column."""
    from transformers.activations import ACT2FN

    inner = {part: nn.functional.linear(heard, weight, mlp.biases.get(part)) for part, weight in mlp.weights.items() if part != "down"}
    act = ACT2FN[mlp.shape.activation]
    said = act(inner["gate"]) * inner["up"] if "gate" in inner else act(inner["up"])
    return upcast(said).abs().mean(0) * upcast(mlp.weights["down"]).norm(dim=0)
