"""Fewer heads, fewer inner channels, a narrower residual stream."""

import logging
import math
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from limbeck.errors import Refused
from limbeck.model.anatomy import Anatomy
from limbeck.model.base import Role
from limbeck.student._channels import READS, WRITES, Kept, anatomy_of, on_meta, ranked, shrink, silenced, weigh_heads, weigh_mlp, weigh_width
from limbeck.student.base import Score, Surgery

log = logging.getLogger(__name__)
WHERE = "student.surgery  keep_width"
SHARE = 0.75
"""Of the MLP, where no size is named."""
GROUPS = 16
"""In so many groups are the inner channels of an MLP measured."""

Number = Annotated[int, Field(ge=1)]
Size = Number | Annotated[float, Field(gt=0, lt=1)]
PerBlock = tuple[tuple[int, ...], ...]


class KeepWidth(Surgery):
    r"""Narrows a model: fewer attention heads, fewer inner channels of the MLP, fewer channels of the residual stream.

    A head or channel c weighs, by `magnitude`, its mean share of squared norm over the matrices that have it; the heaviest stay:

    $$ I_c = \frac{1}{|M|} \sum_{W \in M} \|W_c\|^2 / \|W\|^2 $$

    M: queries, keys, values and output for a head; gate, up and down for an inner channel; for a residual channel all that read
    or write the stream, times the gains of their norms. Of equals the earlier stays. `influence` measures instead, with one head
    silenced at a time, and one of 16 groups of inner channels, made by magnitude: mean KL to the teacher, once each. Residual
    channels always go by magnitude.

    Query heads stay in whole groups (head j reads KV head $\lfloor j/g \rfloor$): `heads` alone keeps equally many in each group where
    it can, else whole groups; `kv_heads` alone keeps whole groups. The size of a head stays, and the config says it, so heads and
    width need a family whose config has it (Llama, Qwen, Gemma 3). Gains of norms are corrected for the share of the stream that
    stays: channels that are zero everywhere go without a trace. What is left is near chance until it is trained: this is a start.
    For a given number of parameters it is mostly a closer one than `drop_blocks`, and a slower one.

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
    kept_heads: PerBlock | None = None
    """What stays, written out, in place of sizes: query heads by block, from 0, ascending."""
    kept_mlp: PerBlock | None = None
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

    def settle(self, role: Role, score: Score) -> "KeepWidth":
        return self if self.written else self.chosen(role, score if self.choose == "influence" else None)

    def __call__(self, role: Role) -> Role:
        if self.choose == "influence" and not on_meta(role):
            raise Refused("settle", WHERE, "heads and channels that have been measured", "a surgery that is not settled", "settle it first, or choose: magnitude")
        settled = self if self.written else self.chosen(role, None)
        kept = Kept(settled.kept_heads, settled.kept_mlp, settled.kept_width)
        check(role, kept)
        shrink(role, kept, WHERE)
        return role

    def chosen(self, role: Role, score: Score | None) -> "KeepWidth":
        """The same with what stays written out; measured if there is a score."""
        anatomy, config, layers = anatomy_of(role, WHERE), role.module.config, range(role.num_layers)
        num, kv, inner, dim = (anatomy.size(config, name) for name in ("heads", "kv_heads", "mlp_width", "width"))
        mlp = SHARE if (self.heads, self.kv_heads, self.mlp, self.width) == (None,) * 4 else self.mlp
        heads = channels = stream = None
        if self.heads is not None or self.kv_heads is not None:
            sized(anatomy, "heads")
            groups, per = grouping(num, kv, self.heads, self.kv_heads)
            weights = [weigh_heads(role, anatomy, i, anatomy.size(config, "head_dim")) for i in layers]
            if score is not None:
                weights = [measure_heads(role, anatomy, i, num, score) for i in layers]
            heads, num = tuple(pick_heads(w, kv, groups, per) for w in weights), groups * per
        if mlp is not None:
            stay = fewer("mlp", inner, mlp, 1)
            ...
        if self.width is not None:
            ...
