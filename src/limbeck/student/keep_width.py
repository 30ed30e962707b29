"""Fewer heads, fewer inner channels, a narrower residual stream."""

from collections import Counter
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from limbeck.component import short
from limbeck.errors import Refused
from limbeck.model.anatomy import Anatomy
from limbeck.model.base import Role
from limbeck.student import _channels as cutting
from limbeck.student._channels import Kept, ranked
from limbeck.student.base import Score, Surgery

WHERE = "student.surgery  keep_width"
SHARE = 0.75
"""Of the MLP, where no size is named."""
GROUPS = 16
"""In so many groups are the inner channels of an MLP measured."""

SETTLE = "settle the surgery for this model"
Number = Annotated[int, Field(ge=1, strict=True)]
Size = Annotated[float, Field(gt=0, lt=1)] | Number


class KeepWidth(Surgery):
    r"""Narrows a model: fewer attention heads, fewer inner channels of the MLP, fewer channels of the residual stream.

    By `magnitude`, a head weighs its mean share of squared norm over queries, keys, values and output; a channel its largest
    share over the matrices M that have it, since one of them is enough to need it:

    $$ I_{head} = \tfrac{1}{4} \sum_W \|W_{head}\|^2 / \|W\|^2, \qquad I_c = \max_{W \in M} \|W_c\|^2 / \|W\|^2 $$

    M: gate, up and down for an inner channel; for a residual channel all that read or write the stream. Gains of norms are folded
    in. The heaviest stay, of equals the earlier. Weights do not show everything: a few light channels, often in the first and last
    blocks, may carry huge activations. `influence` measures instead (mean KL to the teacher), once with each head silenced, and
    once with each of 16 groups of inner channels, made by magnitude. Residual channels always go by magnitude.

    Query heads stay in whole groups (head j reads KV head $\lfloor j/g \rfloor$): `heads` alone keeps equally many in each group where
    it can, else whole groups; `kv_heads` alone keeps whole groups. The size of a head stays, and the config says it, so heads and
    width need a family whose config has it (Llama, Qwen, Gemma 3). Gains of norms are corrected for the share of the stream that
    stays: channels that are zero everywhere go without a trace. What is left is near chance until it is trained: this is a start.
    For a given number of parameters `drop_blocks` gives a faster model, and this one may be closer: compare both.

    Example:
        >>> KeepWidth(width=0.5, mlp=0.5).width
        0.5

    References:
        Sreenivas et al., LLM Pruning and Distillation in Practice: The Minitron Approach, 2024, arXiv:2408.11796.
        Muralidharan et al., Compact Language Models via Pruning and Knowledge Distillation, 2024, arXiv:2407.14679.
        Ma et al., LLM-Pruner: On the Structural Pruning of Large Language Models, 2023, arXiv:2305.11627.
    """

    kind: Literal["keep_width"] = "keep_width"
    reduces: ClassVar[frozenset[str]] = frozenset({"parameters", "width"})
    heads: Number | None = None
    """Query heads that stay in each block."""
    kv_heads: Number | None = None
    """KV heads that stay in each block; left out: all, or as few as go with `heads`."""
    mlp: Size | None = None
    """Inner channels of each MLP that stay; below 1 a share. Three quarters, where no size is named at all."""
    width: Size | None = None
    """Channels of the residual stream that stay; below 1 a share, to the nearest multiple of the number of heads."""
    choose: Literal["magnitude", "influence"] = "magnitude"
    """By the norms of weights, or by what silencing costs."""
    kept_heads: tuple[tuple[int, ...], ...] | None = None
    """What stays, written out, in place of sizes: query heads by block, from 0, ascending."""
    kept_mlp: tuple[tuple[int, ...], ...] | None = None
    """The same for inner channels."""
    kept_width: tuple[int, ...] | None = None
    """The same for residual channels, once for all blocks."""

    @model_validator(mode="after")
    def either_way(self) -> "KeepWidth":
        sizes = [name for name in ("heads", "kv_heads", "mlp", "width") if getattr(self, name) is not None]
        if self.written and sizes:
            raise ValueError(f"either sizes or lists of what is kept, not both: without {sizes[0]}")
        if self.choose == "influence" and (self.written or sizes == ["width"]):
            raise ValueError("choose: influence where heads, kv_heads or mlp are sizes, since nothing else is measured")
        return self

    @property
    def written(self) -> bool:
        """Whether what stays is written out."""
        return any(kept is not None for kept in (self.kept_heads, self.kept_mlp, self.kept_width))

    def measures(self, role: Role) -> int:
        if self.choose != "influence":
            return 0
        heads = cutting.anatomy_of(role, WHERE, narrows=True).size(role.module.config, "heads") if self.heads or self.kv_heads else 0
        return role.num_layers * (heads + GROUPS * bool(self.mlp or not (heads or self.width)))

    def settle(self, role: Role, score: Score) -> "KeepWidth":
        return self.chosen(role, score if self.choose == "influence" else None)

    def shape(self) -> "KeepWidth":
        return KeepWidth(**{**dict(self), "choose": "magnitude"})

    def __call__(self, role: Role) -> Role:
        if self.choose == "influence":
            raise Refused("settle", WHERE, "heads and channels that have been measured", "choose: influence, not settled", "settle it first")
        settled = self.chosen(role, None)
        cutting.shrink(role, Kept(settled.kept_heads, settled.kept_mlp, settled.kept_width), WHERE)
        return role

    def chosen(self, role: Role, score: Score | None) -> "KeepWidth":
        """The same with what stays written out; measured if there is a score.

        Raises:
            Refused: `width`, if the model has too few, or its config cannot say it; `part`, if its parts are not known; `adapters`.
        """
        anatomy, config, layers = cutting.anatomy_of(role, WHERE, narrows=True), role.module.config, range(role.num_layers)
        num, kv, inner, dim, size = (anatomy.size(config, name) for name in ("heads", "kv_heads", "mlp_width", "width", "head_dim"))
        if self.written:
            check(Kept(self.kept_heads, self.kept_mlp, self.kept_width), len(layers), num, num // kv, inner, dim)
            return self
        groups, per = grouping(num, kv, self.heads, self.kv_heads) if self.heads or self.kv_heads else (0, 0)
        share = SHARE if not (groups or self.width or self.mlp) else self.mlp
        num_mlp = fewer("mlp", share, inner) if share else 0
        num_width = fewer("width", self.width, dim, groups * per or num) if self.width else 0
        wanted = {"heads": groups * per, "kv_heads": groups, "mlp_width": num_mlp, "width": num_width}
        cutting.narrower(config, anatomy, {name: stays for name, stays in wanted.items() if stays}, WHERE)       # refused before it is measured
        heads = None
        if groups and score is not None:
            costs = [[cutting.cost(role, anatomy, score, "output", i, range(head * size, head * size + size)) for head in range(num)] for i in layers]
            heads = tuple(pick(torch.tensor(row, device="cpu"), kv, groups, per) for row in costs)
        elif groups:
            heads = tuple(pick(cutting.weigh_heads(role, anatomy, i, size), kv, groups, per) for i in layers)
        mlp = tuple(tuple(sorted(order(role, anatomy, i, score)[:num_mlp])) for i in layers) if num_mlp else None
        stream = ranked(cutting.weigh_width(role, anatomy, cutting.READS | cutting.WRITES).amax(0)) if num_width else []
        width = tuple(sorted(stream[:num_width])) or None
        return KeepWidth(kept_heads=heads, kept_mlp=mlp, kept_width=width)


def fewer(name: str, size: int | float, num: int, multiple: int = 1) -> int:
    """How many of `num` stay; of a share, to the nearest multiple."""
    stay = size if isinstance(size, int) else max(1, round(size * num / multiple)) * multiple
    if stay >= num:
        raise Refused("width", f"{WHERE}.{name}", f"fewer than the {num} there are", f"{name}: {size}", f"change {name}, or leave it out")
    return stay


def grouping(num: int, kv: int, heads: int | None, kv_heads: int | None) -> tuple[int, int]:
    """How many KV heads stay, and how many query heads for each."""
    group = num // kv
    if kv_heads is None:
        assert heads is not None
        groups = kv if heads % kv == 0 else heads // group
        possible = {kv * n for n in range(1, group)} | {group * n for n in range(1, kv)}
    else:
        groups, heads = kv_heads, heads or kv_heads * group
        possible = {kv_heads * n for n in range(1, group + 1)} - {num}
    if heads not in possible or groups > kv:
        raise Refused("width", f"{WHERE}.heads", f"whole groups out of {num} query heads and {kv} KV heads", f"heads: {heads}, kv_heads: {groups}",
                      f"heads: {' or '.join(map(str, sorted(possible)))}" if possible and groups <= kv else "fewer KV heads")
    return groups, heads // groups


def pick(weights: Float[Tensor, " head"], kv: int, groups: int, per: int) -> tuple[int, ...]:
    """The heaviest KV groups, and in each the heaviest query heads."""
    rows = weights.view(kv, -1)
    best = [ranked(row)[:per] for row in rows]
    heaviest = ranked(torch.stack([row[some].sum() for row, some in zip(rows, best, strict=True)]))[:groups]
    return tuple(sorted(group * rows.shape[1] + head for group in heaviest for head in best[group]))


def order(role: Role, anatomy: Anatomy, layer: int, score: Score | None) -> list[int]:
    """The inner channels of an MLP from the heaviest; if measured, group by group."""
    channels = ranked(cutting.weigh_mlp(role, anatomy, layer))
    if score is None:
        return channels
    parts = [part.tolist() for part in torch.tensor(channels, device="cpu").tensor_split(min(GROUPS, len(channels)))]
    return [channel for part in sorted(parts, key=lambda part: -cutting.cost(role, anatomy, score, "down", layer, part)) for channel in part]


def check(kept: Kept, layers: int, num: int, group: int, inner: int, dim: int) -> None:
    """Holds lists against the model that they are for."""
    width = None if kept.width is None else (kept.width,)
    for name, lists, most, many in (("kept_heads", kept.heads, num, layers), ("kept_mlp", kept.mlp, inner, layers), ("kept_width", width, dim, 1)):
        if lists is not None and not (len(lists) == many and len({len(row) for row in lists}) == 1 and all(
                row and row[0] >= 0 and row[-1] < most and list(row) == sorted(set(row)) for row in lists)):
            raise Refused("width", f"{WHERE}.{name}", f"{many} equally long lists of ascending numbers from 0 to {most - 1}", short(lists), SETTLE)
    shapes = {tuple(sorted(Counter(head // group for head in row).values())) for row in kept.heads or ()}
    if len({size for shape in shapes for size in shape}) > 1:
        raise Refused("width", f"{WHERE}.kept_heads", "equally many query heads for each KV head that stays", short(kept.heads), SETTLE)
