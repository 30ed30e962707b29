"""Fewer blocks."""

import copy
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator
from torch import nn

from limbeck.errors import Refused
from limbeck.model.base import Role
from limbeck.model.text import Text
from limbeck.student._channels import anatomy_of, use_config
from limbeck.student.base import Score, Surgery

log = logging.getLogger(__name__)
WHERE = "student.surgery  drop_blocks"


class DropBlocks(Surgery):
    r"""Removes whole blocks; those that stay keep their weights and their order.

    Blocks are counted from 0, as in names of weights. With L blocks, n of them to drop, and $s(D)$ the measured score
    (mean KL to the teacher) of the model without the blocks D:

    - `uniform` keeps the blocks $\lfloor i (L-1)/(L-n-1) + 1/2 \rfloor$ for $i = 0 \dots L-n-1$: spread evenly, both ends kept;
      where one block is left it is the first. Nothing is measured.
    - `influence` drops the n blocks with the least $s(\{i\})$: L measurements.
    - `greedy` drops the block with the least $s(D \cup \{i\})$, n times over: $nL - n(n-1)/2$ measurements, and the closest start.
    - `contiguous` drops the run with the least $s(\{i, \dots, i+n-1\})$: $L-n+1$ measurements.

    Where scores are equal, the later block goes. Every block less saves the same share of time and memory, on any device:
    the surgery to begin with where speed is what matters. For a given number of parameters a narrower model (`keep_width`) may
    be closer: compare both.

    Example:
        >>> DropBlocks(keep=(0, 1, 3)).keep
        (0, 1, 3)

    References:
        Men et al., ShortGPT: Layers in Large Language Models are More Redundant Than You Expect, 2024, arXiv:2403.03853.
        Gromov et al., The Unreasonable Ineffectiveness of the Deeper Layers, 2024, arXiv:2403.17887.
    """

    kind: Literal["drop_blocks"] = "drop_blocks"
    reduces: ClassVar[frozenset[str]] = frozenset({"parameters", "layers"})
    drop: Annotated[int, Field(ge=1)] | None = None
    """How many blocks to remove; one, where neither this nor `keep` is given."""
    keep: tuple[int, ...] | None = None
    """The blocks that stay, from 0, ascending."""
    choose: Literal["uniform", "influence", "greedy", "contiguous", "given"] | None = None
    """How the blocks are chosen; `given`: they are in `keep`. Left out: given where there is a `keep`, else uniform."""

    @model_validator(mode="after")
    def either_way(self) -> "DropBlocks":
        if self.keep is not None and self.drop is not None:
            raise ValueError("either keep, the blocks that stay, or drop, how many go; not both")
        if self.keep is not None and self.choose not in (None, "given"):
            raise ValueError(f"keep without choose: {self.choose}, since keep leaves nothing to choose")
        if self.keep is None and self.choose == "given":
            raise ValueError("keep, the blocks that stay, where choose is given")
        if self.keep is not None and (not self.keep or self.keep[0] < 0 or any(b <= a for a, b in zip(self.keep, self.keep[1:], strict=False))):
            raise ValueError("keep: at least one block, numbers from 0, ascending, each once")
        return self

    def measures(self, role: Role) -> int:
        asked: list[Any] = []
        self.chosen(count(role), lambda keep: asked.append(keep) or 0.0)
        return len(asked)

    def settle(self, role: Role, score: Score) -> "DropBlocks":
        def cost(keep: Sequence[int]) -> float:
            if keep[0] != 0 and holds(role):
                return math.inf
            with only(role, keep):
                value = float(score(role))
            log.info("drop_blocks: blocks %s score %.6g", tuple(keep), value)
            return math.inf if math.isnan(value) else value

        return DropBlocks(keep=self.chosen(count(role), cost))

    def shape(self) -> "DropBlocks":
        return DropBlocks(drop=self.drop, keep=self.keep)

    def __call__(self, role: Role) -> Role:
        if self.choose in ("influence", "greedy", "contiguous"):
            raise Refused("settle", WHERE, "blocks that have been measured", f"choose: {self.choose}, not settled", "settle it first")
        keep = self.chosen(count(role), lambda keep: 0.0)
        if keep[0] != 0 and holds(role):
            got = f"keep: {list(keep)}"
            raise Refused("layer", f"{WHERE}.keep", "block 0 among them: it holds what the attention of all blocks uses", got, "add 0 to keep")
        take(role, keep)
        return role.renumbered(keep) if isinstance(role, Text) else role

    def chosen(self, num: int, cost: Callable[[Sequence[int]], float]) -> tuple[int, ...]:
        """The blocks that stay, out of `num`.

        Raises:
            Refused: `layer`, if none would stay, none would go, or one is not there.
        """
        if self.keep is not None:
            if self.keep[-1] >= num or len(self.keep) == num:
                raise Refused("layer", f"{WHERE}.keep", f"some, not all, of the blocks 0 to {num - 1}", f"keep: {list(self.keep)}", "change keep")
            return self.keep
        if (drop := self.drop or 1) >= num:
            do = f"drop at most {num - 1}" if num > 1 else "leave this surgery out"
            raise Refused("layer", f"{WHERE}.drop", f"fewer than all {num} blocks", f"drop: {drop}", do)
        every = range(num)
        if self.choose == "influence":
            costs = [cost(without(every, (i,))) for i in every]
            return without(every, sorted(every, key=lambda i: (costs[i], -i))[:drop])
        if self.choose == "contiguous":
            runs = [range(start, start + drop) for start in range(num - drop + 1)]
            return without(every, min(runs, key=lambda run: (cost(without(every, run)), -run[0])))
        if self.choose == "greedy":
            left = tuple(every)
            for _ in range(drop):
                left = min((without(left, (i,)) for i in reversed(left)), key=cost)
            return left
        return spread(num, num - drop)


def spread(num: int, stay: int) -> tuple[int, ...]:
    """So many of the numbers below `num`, evenly, both ends among them; halves go to the later one."""
    return tuple((2 * i * (num - 1) + stay - 1) // (2 * (stay - 1)) for i in range(stay)) if stay > 1 else (0,)


def without(blocks: Sequence[int], gone: Sequence[int]) -> tuple[int, ...]:
    """Those that are not gone."""
    return tuple(i for i in blocks if i not in gone)


def listed(role: Role) -> nn.ModuleList:
    """The list of blocks.

    Raises:
        Refused: `part`, if it is not known; `layer`, if the model computes with the number of a block.
    """
    blocks = role.module.get_submodule(anatomy_of(role, WHERE).path("blocks"))
    assert isinstance(blocks, nn.ModuleList)
    if getattr(role.module.config, "scale_attn_by_inverse_layer_idx", False):
        got = "attention scaled by it: scale_attn_by_inverse_layer_idx"
        raise Refused("layer", WHERE, "blocks that do not know their number", got, "use keep_width, or another teacher", code=3)
    return blocks


def count(role: Role) -> int:
    """How many blocks a role has."""
    return len(listed(role))


def holds(role: Role) -> bool:
    """Whether the first block of a role holds what all others use."""
    return anatomy_of(role, WHERE).family.first_stays


def take(role: Role, keep: Sequence[int]) -> Callable[[], None]:
    """Leaves a role these blocks alone, in place, its config to match; returns what puts everything back. No weight is copied."""
    blocks, config = listed(role), role.module.config
    before = list(blocks)
    put(role, blocks, [before[i] for i in keep], shorter(config, anatomy_of(role, WHERE).family.sizes["layers"], keep, len(before)))
    return lambda: put(role, blocks, before, config)


@contextmanager
def only(role: Role, keep: Sequence[int]) -> Iterator[None]:
    """Inside, a role has these blocks alone; afterwards it is what it was."""
    back = take(role, keep)
    try:
        yield
    finally:
        back()


def put(role: Role, blocks: nn.ModuleList, members: Sequence[nn.Module], config: Any) -> None:
    """Sets the blocks of a role. Their attention is numbered anew: a cache of keys and values has one place a number."""
    del blocks[:]
    blocks.extend(members)
    for i, block in enumerate(members):
        for part in block.modules():
            if isinstance(getattr(part, "layer_idx", None), int):
                part.layer_idx = i  # type: ignore[assignment]
    use_config(role.module, config)
    role.num_layers = len(members)


def shorter(config: Any, field: str, keep: Sequence[int], num: int) -> Any:
    """A copy of a config for fewer blocks, with its lists of one entry a block (`layer_types`, `no_rope_layers`) cut to match."""
    inner = (out := copy.deepcopy(config)).get_text_config()  # of a model that also sees; else itself
    for name, value in list(vars(inner).items()):
        if "layer" in name and isinstance(value, (list, tuple)) and len(value) == num:
            setattr(inner, name, type(value)(value[i] for i in keep))
    setattr(inner, field, len(keep))
    return out
