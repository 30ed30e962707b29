"""Linear layers that compute with weights of few bits."""

from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from limbeck.component import changed, nearest
from limbeck.errors import Refused
from limbeck.formats.base import Format
from limbeck.formats.binary import Binary
from limbeck.formats.fp8 import FP8
from limbeck.formats.integer import Integer
from limbeck.formats.nvfp4 import BLOCK, NVFP4
from limbeck.model.adapters import adapted
from limbeck.model.base import Role
from limbeck.model.quantised import Scales, by_rows, quantise, quantised
from limbeck.student._channels import anatomy_of
from limbeck.student.base import Score, Surgery
from limbeck.student.lora import fits, linear

WHERE = "student.surgery  quantize"
GROUPS = (128, 64, 32, 16, 8)
"""Sizes of a group that are tried, where none is given."""


class Quantize(Surgery):
    r"""Rounds the weights of linear layers to few bits, and what they hear too where asked; the weights learn on as if exact.

    $$ y = Q_a(x)\, Q_w(W)^\top + b, \qquad \partial Q(v) / \partial v = 1 \text{ inside of the range, } 0 \text{ outside} $$

    - `nvfp4`: 4.5 bits a weight, for GPUs that compute in it. `fp8`: 8 bits and a scale a row.
    - `int8`: 8 bits and a scale a row, or a group. `int4`: 4 bits and a scale a group: 4.25 bits in groups of 128, 4.5 in groups of 64.
    - `binary`: signs and a scale a group; far from the model that it was, and for long training.

    The exact weights stay, learn, and are rounded anew at each step, with scales measured anew (or as `scales` says). What layers hear is rounded
    with scales measured once, on training rows (by the exact model), and frozen; `nvfp4` measures its blocks on the way. Everything else stays as it
    is: embeddings, norms, attention, and the head unless asked for. It is meant to be taught by the model that it was: `forward_kl`, at a learning
    rate not above that of its fine-tuning. It makes files smaller, and is faster only where a reader has kernels for the format: here it is computed
    in floats, and training takes longer than without. Exported by `packed`, it is as small as it sounds; by `safetensors`, it holds the rounded
    weights in full size. Narrow a model before, not after; adapters (`lora`) may come after, beside rounded weights.

    Example:
        >>> Quantize(weights="int4", group=64, skip=("down_proj",)).policy
        'stock'

    References:
        Xin et al., Quantization-Aware Distillation for NVFP4 Inference Accuracy Recovery, 2026, arXiv:2601.20088.
        Esser et al., Learned Step Size Quantization, 2019, arXiv:1902.08153 (scales that learn).
        Bengio et al., Estimating or Propagating Gradients Through Stochastic Neurons for Conditional Computation, 2013, arXiv:1308.3432.
    """

    kind: Literal["quantize"] = "quantize"
    weights: Literal["nvfp4", "fp8", "int8", "int4", "binary"] = "nvfp4"
    """The format of weights."""
    activations: Literal["none", "nvfp4", "fp8", "int8"] = "none"
    """The format of what layers hear: that of the weights, or exact."""
    group: Annotated[int, Field(ge=8, multiple_of=8)] | None = None
    """Weights that share a scale, along the inputs of a layer. None: 16 for nvfp4; a row for fp8 and int8; else the largest of 128, 64, 32,
    16, 8 that divides the inputs of every layer."""
    skip: tuple[str, ...] = ()
    """Patterns of names of linear layers that stay exact, whole or the last part (`q_proj`, `*.mlp.*`)."""
    edges: int = Field(default=0, ge=0)
    """So many blocks at either end stay exact."""
    scales: Scales = Field(default="measured", json_schema_extra={"since": 2})
    """Scales of weights. measured: anew at each step. frozen: measured once, at the beginning; what grows out of them is clipped (nvfp4: that of
    the whole tensor; blocks are always measured). learned: each begins as it was measured, and learns by the loss, as a factor."""
    head: bool = False
    """Whether the head is rounded too; it must have weights of its own."""
    amax: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    """Layer -> the greatest magnitude that it heard; written by the run that measured it."""

    @model_validator(mode="after")
    def together(self) -> "Quantize":
        if self.activations not in ("none", self.weights):
            raise ValueError(f"activations: none, or those of the weights: {self.weights}; not {self.activations}")
        if self.group is not None and (self.weights == "fp8" or self.weights == "nvfp4" and self.group != BLOCK):
            raise ValueError(f"no group for {self.weights}, whose groups are " + ("rows" if self.weights == "fp8" else f"blocks of {BLOCK}"))
        if self.weights == "binary" and self.scales != "measured":
            raise ValueError("scales: measured, for binary, whose scale is a mean that has to follow its weights")
        return self

    @property
    def policy(self) -> Literal["stock", "import"]:  # type: ignore[override]
        """A stock class has no place for the rounding of what layers hear."""
        return "stock" if self.activations == "none" else "import"

    def measures(self, role: Role) -> int:
        return int(self.activations != "none" and not self.amax)

    def settle(self, role: Role, score: Score) -> "Quantize":
        if self.activations == "none" or self.amax:
            return self
        layers, heard = self.layers(role), {}

        def hear(name: str, x: Tensor) -> None:
            heard[name] = torch.maximum(heard.get(name, x.new_zeros(())), x.detach().abs().amax())

        hooks = [part.register_forward_pre_hook(lambda _, args, name=name: hear(name, args[0])) for name, part in layers.items()]
        try:
            score(role)
        finally:
            for hook in hooks:
                hook.remove()
        return changed(self, amax={name: float(x) for name, x in heard.items() if 0 < float(x) < float("inf")})

    def shape(self) -> "Quantize":
        return changed(self, activations="none", amax={})

    def __call__(self, role: Role) -> Role:
        layers = self.layers(role)
        weights = self.number_format(self.weights, self.size(layers))
        inputs = None if self.activations == "none" else self.number_format(self.activations, None)
        for name in layers if inputs is not None else ():
            if name not in self.amax:
                do = "settle it first, or skip layers that hear nothing"
                raise Refused("settle", f"{WHERE}.amax", "the greatest magnitude that each layer heard", f"none for {name}", do)
        for name, part in layers.items():
            quantise(part, weights, inputs, None if inputs is None else inputs.frozen(self.amax[name]), self.scales)
        return role

    def layers(self, role: Role) -> dict[str, Any]:
        """Name -> linear layer that is rounded.

        Raises:
            Refused: `adapters`, `quantised`; `pattern`, for one that fits no linear layer; `tied`; `layer`, where nothing is left to round.
        """
        if adapted(role.module) or quantised(role.module):
            slug, got = ("adapters", "adapters already") if adapted(role.module) else ("quantised", "rounded layers already")
            raise Refused(slug, WHERE, "a model of exact layers", got, "keep one quantize, before lora")
        found = {name: part for name, part in linear(role) if type(part) is nn.Linear or not isinstance(part, nn.Linear)}
        for pattern in self.skip:
            if not any(fits(name, (pattern,)) for name in found):
                last = list(dict.fromkeys(name.rpartition(".")[2] for name in found))
                expected = f"a pattern that fits linear layers: {', '.join(last)}"
                raise Refused("pattern", f"{WHERE}.skip", expected, pattern, f"write {nearest(pattern, last)}")
        ends = exact_blocks(role, self.edges) if self.edges else ()
        out = {name: part for name, part in found.items() if not fits(name, self.skip) and not name.startswith(ends)}
        if self.head:
            out |= head_of(role)
        if not out:
            raise Refused("layer", WHERE, "layers to round", "none: skip and edges leave nothing", "change skip, or edges")
        return out

    def size(self, layers: dict[str, Any]) -> int | None:
        """Weights that share a scale.

        Raises:
            Refused: `group`, where they do not divide the inputs of a layer.
        """
        widths = {name: by_rows(part).shape[1] for name, part in layers.items()}
        if self.weights == "fp8" or self.weights == "int8" and self.group is None:
            return None
        tried = (BLOCK,) if self.weights == "nvfp4" else GROUPS if self.group is None else (self.group,)
        found = next((size for size in tried if not any(width % size for width in widths.values())), None)
        if found is None:
            name = next(name for name, width in widths.items() if width % tried[-1])
            fit = [size for size in GROUPS if self.weights != "nvfp4" and not any(width % size for width in widths.values())]
            do = f"write group: {fit[0]}" if fit else f"skip: [{name}], or weights: fp8"
            raise Refused("group", f"{WHERE}.group", f"groups of {tried[-1]} that come out even", f"{name} has {widths[name]} inputs", do)
        return found

    @staticmethod
    def number_format(name: str, size: int | None) -> Format:
        """The number format of a name."""
        return {"nvfp4": NVFP4(), "fp8": FP8(), "int8": Integer(8, size), "int4": Integer(4, size), "binary": Binary(size)}[name]


def exact_blocks(role: Role, edges: int) -> tuple[str, ...]:
    """Beginnings of names in so many blocks at either end."""
    anatomy, num = anatomy_of(role, WHERE), role.num_layers
    if 2 * edges >= num:
        raise Refused("layer", f"{WHERE}.edges", f"fewer than half of the {num} blocks", f"edges: {edges}", "lower edges")
    return tuple(anatomy.path("block", i) + "." for i in range(num) if not edges <= i < num - edges)


def head_of(role: Role) -> dict[str, Any]:
    """The head, by its name.

    Raises:
        Refused: `tied`, where its weight is the embedding's; `part`, where there is no head that is a matrix.
    """
    head: Any = getattr(role.module, "get_output_embeddings", lambda: None)()
    if type(head) is not nn.Linear:
        raise Refused("part", f"{WHERE}.head", "a head that is a matrix", "none", "leave head out")
    table: Any = getattr(role.module, "get_input_embeddings", lambda: None)()
    if table is not None and table.weight is head.weight:
        raise Refused("tied", f"{WHERE}.head", "a head with weights of its own", "those of the embedding", "leave head out")
    return {next(name for name, part in role.module.named_modules() if part is head): head}
