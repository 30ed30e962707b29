"""What can stand in the place of a block's attention or MLP, and what it is given to begin with."""

import importlib
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic_core import PydanticCustomError
from torch import Tensor, nn

from limbeck.block._hybrid import built
from limbeck.component import KIND, Choice, Component, find
from limbeck.errors import Refused


@dataclass(frozen=True)
class Shape:
    """The sizes of an attention."""

    width: int
    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    """Factor on scores, as a rule 1 / sqrt(head_dim)."""
    bias: bool
    """Whether queries, keys and values have biases."""
    out_bias: bool
    """Whether the map back to the width has one."""
    rotary: bool
    """Whether queries and keys are turned by their positions."""
    norm_eps: float | None = None
    """Of the norms of queries and keys, where there are any."""
    window: int | None = None
    """How many positions each one sees, itself among them, where it does not see all before it."""

    @property
    def group(self) -> int:
        """Query heads a key head."""
        return self.heads // self.kv_heads

    def seen(self, length: int) -> int:
        """Positions that the last one of so many sees."""
        return length if self.window is None else min(length, self.window)

    def remembered(self, length: int) -> int:
        """Positions whose keys and values are needed for what comes after so many."""
        return length if self.window is None else min(length, self.window - 1)

    def numbers(self) -> dict[str, Any]:
        """As plain JSON, for the spec of a module that has these sizes itself; without the window, which few have."""
        names = ("width", "heads", "kv_heads", "head_dim", "scale", "bias", "out_bias", "rotary", "norm_eps")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Attention:
    """The weights of an attention, as `nn.Linear` lays them out, whatever family they are from."""

    shape: Shape
    weights: Mapping[str, Float[Tensor, "out dim"]]
    """query, key, value, output."""
    biases: Mapping[str, Float[Tensor, " out"] | None]
    norms: Mapping[str, Float[Tensor, " head_dim"]]
    """query and key: what each channel of a head is multiplied by after it was normalised; empty where nothing is."""

    def weight(self, part: str, per_query: bool = False) -> Float[Tensor, "out dim"]:
        """A weight; `per_query`: of key or value, one head for each query head."""
        return self.expanded(self.weights[part]) if per_query else self.weights[part]

    def bias(self, part: str, per_query: bool = False) -> Float[Tensor, " out"] | None:
        """A bias, the same way."""
        found = self.biases.get(part)
        return self.expanded(found) if per_query and found is not None else found

    def expanded(self, x: Tensor) -> Tensor:
        """One key head for each query head: query head j reads key head j // group. Whole heads are repeated, never single rows."""
        shape = self.shape
        return x.unflatten(0, (shape.kv_heads, shape.head_dim)).repeat_interleave(shape.group, 0).flatten(0, 1)


@dataclass(frozen=True)
class MlpShape:
    """The sizes of an MLP."""

    width: int
    inner: int
    activation: str
    """As transformers calls it: silu, gelu_new, ..."""
    gated: bool
    bias: bool
    """Whether gate and up have biases."""
    out_bias: bool


@dataclass(frozen=True)
class Mlp:
    """The weights of an MLP, as `nn.Linear` lays them out: down(act(gate x) * up x), or down(act(up x)) where there is no gate."""

    shape: MlpShape
    weights: Mapping[str, Float[Tensor, "out dim"]]
    """gate (if gated), up, down."""
    biases: Mapping[str, Float[Tensor, " out"] | None]


class Block(Component):
    """A module for one place of a block: described by numbers alone, so that a config can name it, and told what it begins with.

    The module's class stands in a file beside this one that has the name of the kind with a line before it, `_gated_delta_net.py`: exports
    carry that file along, so that it imports nothing but other packages, `limbeck.block._*`, and files beside it that are named so.
    """

    room: ClassVar[str] = "block"
    place: ClassVar[Literal["mixer", "mlp"]]
    """What it stands in the place of."""

    @abstractmethod
    def spec(self, shape: Any) -> dict[str, Any]:
        """Its kind and the numbers that its module is made of, as plain JSON.

        Raises:
            Refused: `shape`, where it does not fit: says what would.
        """

    @abstractmethod
    def begin(self, module: nn.Module, taught: Any) -> dict[str, str]:
        """Copies what it takes over from the part that stood there; name of each parameter that was copied -> from where. All others are new."""

    def numbers(self, **more: Any) -> dict[str, Any]:
        """A spec with the kind in front."""
        return {"kind": dict(self)["kind"], **more}


class FeedForward(Block):
    """Works on each position by itself, in the place of the MLP."""

    place: ClassVar[Literal["mixer", "mlp"]] = "mlp"

    @abstractmethod
    def spec(self, shape: MlpShape) -> dict[str, Any]: ...

    @abstractmethod
    def begin(self, module: nn.Module, taught: Mlp) -> dict[str, str]: ...


class Mixer(Block):
    """Mixes positions, in the place of attention; its module derives from `Mixing` and has three forms that agree."""

    place: ClassVar[Literal["mixer", "mlp"]] = "mixer"
    constant: ClassVar[bool] = True
    """Claim: while it decodes its state has the same size after any number of positions."""
    causal: ClassVar[bool] = True
    """Claim: what comes later changes nothing before it. One that looks ahead keeps no state, and cannot decode."""

    @abstractmethod
    def spec(self, shape: Shape) -> dict[str, Any]: ...

    @abstractmethod
    def begin(self, module: nn.Module, taught: Attention) -> dict[str, str]: ...

    @abstractmethod
    def state_bytes(self, shape: Shape, length: int, itemsize: int = 4) -> int:
        """Memory of one row's state after so many positions."""

    @abstractmethod
    def flops(self, shape: Shape, length: int) -> float:
        """Multiplications and additions of one position in a row of so many, beyond those of its matrices."""


def copy_linear(linear: nn.Linear, weight: Float[Tensor, "out dim"], bias: Float[Tensor, " out"] | None) -> None:
    """Sets weight and bias; a bias that is not there is zero."""
    with torch.no_grad():
        linear.weight.copy_(weight)
        if linear.bias is not None:
            linear.bias.copy_(torch.zeros_like(linear.bias) if bias is None else bias)


def copy_attention(module: Any, taught: Attention, per_query: bool = False) -> dict[str, str]:
    """Takes over all of an attention, into parts called q_proj, k_proj, v_proj, o_proj, q_norm and k_norm.

    `per_query`: the module has a key and a value head for each query head.
    """
    copied = {}
    for part, name in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj"), ("output", "o_proj")):
        each = per_query and part in ("key", "value")
        copy_linear(getattr(module, name), taught.weight(part, each), taught.bias(part, each))
        copied |= {f"{name}.{p}": part for p, _ in getattr(module, name).named_parameters()}
    for part, name in (("query", "q_norm"), ("key", "k_norm")):
        if part in taught.norms:
            with torch.no_grad():
                getattr(module, name).weight.copy_(taught.norms[part])
            copied[f"{name}.weight"] = f"{part}_norm"
    return copied


def class_name(kind: str) -> str:
    """`gated_delta_net` -> `GatedDeltaNet`: what the module of a kind is called."""
    return "".join(word.capitalize() for word in kind.split("_"))


def class_of(kind: str) -> type[nn.Module]:
    """The class of the modules of a kind: `GatedDeltaNet` in `_gated_delta_net.py`, beside the component; of `package:kind` in that package.

    Raises:
        Refused: `kind`, for one that is not there.
    """
    package, _, name = kind.rpartition(":") if isinstance(kind, str) and KIND.fullmatch(kind) else ("", "", "")
    try:
        home = find(Block, kind).__module__.rpartition(".")[0] if package else "limbeck.block"  # type: ignore[type-abstract]
        if not home:
            raise ImportError("it lies in no package")
        return getattr(importlib.import_module(f"{home}._{name}"), class_name(name))
    except (ImportError, AttributeError, PydanticCustomError) as error:
        do = f"install {package}, which brings it" if package else "export the student again"
        raise Refused("kind", "config.json  layer_parts", "a kind of block", repr(kind)[:80], do) from error


def module_of(spec: Mapping[str, Any], layer: int) -> nn.Module:
    """The module of a spec.

    Raises:
        Refused: `kind`, for one that is not there, or numbers that do not fit.
    """
    try:
        return built({"kind": None, **spec}, layer, class_of)
    except TypeError as error:
        expected = f"a kind of block with its numbers, not {spec['kind']} of these"
        raise Refused("kind", "config.json  layer_parts", expected, str(error)[:200], "export the student again") from error


def kinds_of(spec: Mapping[str, Any]) -> set[str]:
    """The kinds of a spec, and of those inside it."""
    return {str(spec["kind"])}.union(*(kinds_of(inner) for inner in spec.values() if isinstance(inner, Mapping) and "kind" in inner))


AnyMixer = Annotated[Mixer, Choice()]
AnyFeedForward = Annotated[FeedForward, Choice()]
