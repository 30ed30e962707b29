"""Cutting heads, MLP channels and residual channels out of a model, everywhere at once, so that its own class still fits.

What weighs is a share of a matrix's squared norm, the gain of the norm beside it folded in: shares have no unit, so that a large
embedding does not outvote a small projection, and it does not matter whether a factor stands in a norm or in the matrix behind it.
"""

import copy
import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from limbeck.component import short
from limbeck.errors import Refused
from limbeck.model.adapters import adapted
from limbeck.model.anatomy import Anatomy
from limbeck.model.base import Role
from limbeck.student.base import Score

log = logging.getLogger(__name__)

READS = {"query": "mixer_norm", "key": "mixer_norm", "value": "mixer_norm", "gate": "mlp_norm", "up": "mlp_norm", "head": "final_norm"}
"""What reads the residual stream, and the norm in front of it."""
WRITES = {"embedding": "", "position": "", "token_type": "", "output": "mixer_post_norm", "down": "mlp_post_norm"}
"""What writes to it, and the norm behind it."""
NORMS = ("embedding_norm", "mixer_norm", "mixer_post_norm", "mlp_norm", "mlp_post_norm", "final_norm")
AXES: dict[str, tuple[str | None, str | None]] = {
    "embedding": (None, "width"),
    "position": (None, "width"),
    "token_type": (None, "width"),
    "head": (None, "width"),
    "query": ("heads", "width"),
    "key": ("kv_heads", "width"),
    "value": ("kv_heads", "width"),
    "output": ("width", "heads"),
    "gate": ("mlp", "width"),
    "up": ("mlp", "width"),
    "down": ("width", "mlp"),
    **dict.fromkeys(NORMS, ("width", None)),
}
"""What the axes of a part's weight are made of; a vector has the first."""


@dataclass(frozen=True)
class Kept:
    """Numbers of what stays, ascending; None: all of it."""

    heads: tuple[tuple[int, ...], ...] | None = None
    """Query heads, block by block."""
    mlp: tuple[tuple[int, ...], ...] | None = None
    """Inner channels of the MLP, block by block."""
    width: tuple[int, ...] | None = None
    """Channels of the residual stream, the same everywhere."""

    def kv_heads(self, layer: int, group: int) -> tuple[int, ...]:
        """The KV heads that the query heads of a block read: head j reads j // group."""
        assert self.heads is not None
        return tuple(sorted({head // group for head in self.heads[layer]}))

    def sizes(self, group: int) -> dict[str, int]:
        """How much stays, by names of sizes, of what does not stay whole."""
        heads = {} if self.heads is None else {"heads": len(self.heads[0]), "kv_heads": len(self.kv_heads(0, group))}
        lists = {"mlp_width": self.mlp and self.mlp[0], "width": self.width}
        return heads | {name: len(some) for name, some in lists.items() if some is not None}

    def index(self, axis: str | None, layer: int | None, group: int, head_dim: int) -> Sequence[int] | None:
        """What stays of an axis; None: all of it."""
        if axis == "width":
            return self.width
        if axis == "mlp" and self.mlp is not None and layer is not None:
            return self.mlp[layer]
        if axis in ("heads", "kv_heads") and self.heads is not None and layer is not None:
            heads = self.heads[layer] if axis == "heads" else self.kv_heads(layer, group)
            return [head * head_dim + i for head in heads for i in range(head_dim)]
        return None


def anatomy_of(role: Role, where: str, narrows: bool = False) -> Anatomy:
    """Where the parts of a role are.

    Raises:
        Refused: `part`, for a role whose parts have no names, or are others in some blocks; `adapters`, where it is to become narrower and has some.
    """
    if narrows and adapted(role.module):
        raise Refused("adapters", where, "a model without adapters", "adapters, which would not fit any more", "narrow it before lora")
    found = getattr(role, "anatomy", None)
    if not isinstance(found, Anatomy):
        raise Refused("part", where, "a model whose parts are known by name: a text model", type(role.module).__name__, "leave it out", code=3)
    if narrows and any(getattr(role.module.config, "layer_parts", None) or ()):
        raise Refused("part", where, "blocks as their family builds them", "other modules in some places", "narrow it before they are changed")
    return found


def use_config(module: nn.Module, config: Any) -> None:
    """Gives a model a config of its own: the teacher may hold the same object."""
    old = module.config
    for part in module.modules():
        if getattr(part, "config", None) is old:
            part.config = config


def offset(norm: nn.Module) -> float:
    """What a norm adds to its weight: Gemma's multiplies by 1 + weight, and says so only in its code."""
    weight = norm.weight
    assert isinstance(weight, Tensor)
    if isinstance(norm, nn.LayerNorm) or weight.is_meta:
        return 0.0
    return float(((norm(torch.ones_like(weight)[None])[0] - weight).float().mean() > 0.5).item())


def each(role: Role, anatomy: Anatomy, parts: Iterable[str]) -> Iterator[tuple[str, int | None]]:
    """Part and block of every place where a role has one of these parts, and a weight in it."""
    for part in parts:
        for layer in (range(role.num_layers) if "{}" in anatomy.pattern(part) else (None,)) if anatomy.has(part) else ():
            if getattr(role.module.get_submodule(anatomy.path(part, layer)), "weight", None) is not None:
                yield part, layer


def gain(role: Role, anatomy: Anatomy, part: str, layer: int | None) -> Float[Tensor, " dim"] | None:
    """What the norm beside a part multiplies the stream by; None where there is none."""
    name = (READS | WRITES)[part]
    norm = role.module.get_submodule(anatomy.path(name, None if part == "head" else layer)) if anatomy.has(name) else None
    weight = getattr(norm, "weight", None)
    return weight.detach().float() + offset(norm) if norm is not None and weight is not None else None


@torch.no_grad()
def shares(role: Role, anatomy: Anatomy, part: str, layer: int | None, axis: int) -> Float[Tensor, " channel"]:
    """The share of each row (axis 0) or column (axis 1) in the squared norm of a part's weight, with the gain of its norm."""
    weight, factor, wide = anatomy.weight(role.module, part, layer), gain(role, anatomy, part, layer), AXES[part].index("width")
    if factor is not None and axis != wide:
        weight = weight * (factor if wide == 1 else factor[:, None])
    squares = torch.linalg.vector_norm(weight, dim=1 - axis, dtype=torch.promote_types(weight.dtype, torch.float32)).square()
    squares = squares * factor.square() if factor is not None and axis == wide else squares  # no copy of a large head
    return squares / squares.sum().clamp_min(torch.finfo(torch.float32).tiny)


def weigh_heads(role: Role, anatomy: Anatomy, layer: int, head_dim: int) -> Float[Tensor, " head"]:
    """What the query heads of a block weigh: their queries, their columns of the output matrix, their part of keys and values."""
    total = shares(role, anatomy, "output", layer, 1).view(-1, head_dim).sum(1)
    for part in ("query", "key", "value"):
        rows = shares(role, anatomy, part, layer, 0).view(-1, head_dim).sum(1)
        total = total + rows.repeat_interleave(len(total) // len(rows)) * len(rows) / len(total)
    return total / 4


def weigh_mlp(role: Role, anatomy: Anatomy, layer: int) -> Float[Tensor, " channel"]:
    """What the inner channels of an MLP weigh."""
    parts = [part for part in ("gate", "up", "down") if anatomy.has(part)]
    return torch.stack([shares(role, anatomy, part, layer, AXES[part].index("mlp")) for part in parts]).amax(0)


def weigh_width(role: Role, anatomy: Anatomy, parts: Iterable[str]) -> Float[Tensor, "matrix dim"]:
    """What the residual channels weigh in each matrix of these parts."""
    return torch.stack([shares(role, anatomy, part, layer, AXES[part].index("width")) for part, layer in each(role, anatomy, parts)])


def ranked(weights: Float[Tensor, " channel"]) -> list[int]:
    """Channels from the heaviest; of equals the earlier first, and without weights in their order."""
    return list(range(len(weights))) if weights.is_meta else weights.sort(descending=True, stable=True).indices.tolist()


@contextmanager
def silenced(role: Role, anatomy: Anatomy, part: str, layer: int, columns: Sequence[int]) -> Iterator[None]:
    """Inside, a part hears zeros on some of its inputs; no weight is touched."""

    def mute(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        index: Int[Tensor, " channel"] = torch.tensor(columns, dtype=torch.long, device=args[0].device)
        return (args[0].index_fill(-1, index, 0.0), *args[1:])

    handle = role.module.get_submodule(anatomy.path(part, layer)).register_forward_pre_hook(mute)
    try:
        yield
    finally:
        handle.remove()


def cost(role: Role, anatomy: Anatomy, score: Score, part: str, layer: int, columns: Sequence[int]) -> float:
    """The score without some inputs of a part; what makes it NaN is needed most."""
    with silenced(role, anatomy, part, layer, columns):
        value = float(score(role))
    log.info("keep_width: block %d, %s without %d inputs: score %.6g", layer, part, len(columns), value)
    return math.inf if math.isnan(value) else value


def narrower(config: Any, anatomy: Anatomy, sizes: Mapping[str, int], where: str) -> Any:
    """A copy of a config with other sizes; heads keep theirs.

    Raises:
        Refused: `width`, if the family cannot say it, or transformers would not take it back.
    """
    if "head_dim" not in anatomy.family.sizes and ("heads" in sizes or "width" in sizes):
        raise Refused(
            "width",
            where,
            f"mlp alone: in {anatomy.family.family} the size of a head is width / heads, and would change",
            "heads or width",
            "name mlp only, or use drop_blocks",
            code=3,
        )
    out = copy.deepcopy(config)
    sizes = {name: anatomy.size(config, name) for name in ("width", "heads", "kv_heads", "head_dim", "mlp_width")} | dict(sizes)
    for name, value in sizes.items():
        if name in anatomy.family.sizes:
            setattr(out, anatomy.family.sizes[name], value)
    try:
        back = type(config).from_dict(out.to_dict())
    except Exception as error:  # a config's own checks may raise anything
        raise Refused(
            "width",
            where,
            f"sizes that {type(config).__name__} accepts",
            short(str(error).split("\n")[-1].strip(), 160),
            f"a width that is a multiple of {sizes['heads']}, or other heads",
        ) from error
    lost = [f"{name}: {value}" for name, value in sizes.items() if anatomy.size(back, name) != value]
    if lost:
        raise Refused("width", where, f"sizes that {type(config).__name__} keeps", ", ".join(lost), "name mlp only, or use drop_blocks", code=3)
    return out


@torch.no_grad()
def shrink(role: Role, kept: Kept, where: str) -> None:
    """Cuts a role down to what stays: parameters, config, and the numbers that its modules remember. Tied weights stay tied.

    Raises:
        Refused: `width` or `part`, before anything is changed.
    """
    module, anatomy = role.module, anatomy_of(role, where)
    config = narrower(module.config, anatomy, kept.sizes(anatomy.size(module.config, "heads") // anatomy.size(module.config, "kv_heads")), where)
    with torch.device("meta"):
        twin = type(module)(config)  # type: ignore[call-arg]
    cuts, shapes = {}, {name: tuple(parameter.shape) for name, parameter in twin.named_parameters(remove_duplicate=False)}
    for name, parameter in module.named_parameters():
        cuts[name] = cut(module.config, anatomy, name, parameter, kept)
        after = tuple(len(cuts[name].get(axis, range(size))) for axis, size in enumerate(parameter.shape))
        if shapes.get(name) != after:
            raise Refused(
                "part",
                f"{where}  {name}",
                f"{list(shapes.get(name, ()))}, as {type(module).__name__} has it",
                str(list(after)),
                "name mlp only",
                code=3,
            )
    gains = {} if kept.width is None or any(p.is_meta for p in module.parameters()) else corrections(role, anatomy, kept.width, twin)
    holders: dict[int, list[tuple[nn.Module, str]]] = {}
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False, remove_duplicate=False):
            holders.setdefault(id(parameter), []).append((part, name))
    for name, parameter in list(module.named_parameters()):
        if not cuts[name] and id(parameter) not in gains:
            continue
        value = parameter.detach()
        for axis, index in cuts[name].items():
            value = value.index_select(axis, torch.tensor(index, dtype=torch.long, device=value.device))
        if id(parameter) in gains:
            factor, added = gains[id(parameter)]
            exact = value.to(torch.promote_types(value.dtype, torch.float32))
            value = ((exact + added) * factor - added).to(value.dtype)
        small = nn.Parameter(value, requires_grad=parameter.requires_grad)
        for part, own in holders[id(parameter)]:
            setattr(part, own, small)
    use_config(module, config)
    remember(module, twin)


def cut(config: Any, anatomy: Anatomy, name: str, parameter: Tensor, kept: Kept) -> dict[int, Sequence[int]]:
    """Axis of a parameter -> what stays of it, for the axes that lose something."""
    try:
        parts, layer = anatomy.owner(name)
    except KeyError:
        return {}
    part = parts[0] if parts else ""
    axes = AXES.get(part, (None, None))[: parameter.ndim]
    heads, head_dim = anatomy.size(config, "heads"), anatomy.size(config, "head_dim")
    found = [kept.index(axis, layer, heads // anatomy.size(config, "kv_heads"), head_dim) for axis in axes]
    if part in anatomy.family.transposed and parameter.ndim == 2:
        found.reverse()
    return {axis: index for axis, index in enumerate(found) if index is not None}


def corrections(role: Role, anatomy: Anatomy, width: Sequence[int], twin: nn.Module) -> dict[int, tuple[float, float]]:
    r"""Identity of a parameter -> what to multiply it by, and what is added to it before and taken away after.

    A norm over fewer channels divides by another mean square, so gains are multiplied by $\sqrt{r\,d/d'}$, with d channels before, d'
    after, and r the share, of what is written to the stream, that stays. Where what goes was zero, r is 1 and the function stays
    (but for the norm's epsilon); where all channels weigh alike, r is d'/d and gains stay. Layer norms also take a mean away: for
    them it is exact where the channels that stay have mean zero. Embeddings that are scaled by $\sqrt{d}$ (Gemma) take up the
    difference, and the final norm takes it back where they are the head as well.
    """
    module, weights = role.module, weigh_width(role, anatomy, WRITES).mean(0)
    wider = float(weights[list(width)].sum() * len(weights) / len(width)) ** 0.5
    embedding, small = (model.get_submodule(anatomy.path("embedding")) for model in (module, twin))
    scale = getattr(embedding, "scalar_embed_scale", 1.0) / getattr(small, "scalar_embed_scale", 1.0)
    tied = anatomy.has("head") and getattr(module.get_submodule(anatomy.path("head")), "weight", None) is embedding.weight
    out = {id(embedding.weight): (scale, 0.0)}
    for part, layer in each(role, anatomy, NORMS):
        norm = module.get_submodule(anatomy.path(part, layer))
        out[id(norm.weight)] = (wider / scale if part == "final_norm" and tied else wider, offset(norm))
    return out


def remember(module: nn.Module, twin: nn.Module) -> None:
    """Numbers that modules keep as attributes (sizes, groups of heads, scales), as in a model built small."""
    for name, part in twin.named_modules():
        own = module.get_submodule(name)
        for key, value in vars(part).items():
            if type(value) in (int, float) and getattr(own, key, value) != value:
                setattr(own, key, value)
        if hasattr(own, "scalar_embed_scale"):
            own.embed_scale.fill_(own.scalar_embed_scale)  # type: ignore[union-attr, operator, arg-type]
