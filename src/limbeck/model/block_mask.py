"""Who sees whom where text is filled in block by block, and which tokens of it are hidden: pure functions of places."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from limbeck.errors import Refused
from limbeck.numerics import Streams
from limbeck.signals import View


@dataclass(frozen=True)
class Seats:
    """Where the positions of a sequence stand; all tensors have one shape, [pos] or [row pos]."""

    document: Int[Tensor, "*row pos"]
    """What position sees nothing of another document."""
    block: Int[Tensor, "*row pos"]
    """Number of the block in its document."""
    noisy: Bool[Tensor, "*row pos"]
    """Whether it is of the copy in which tokens are hidden; else of the clean one."""

    def __getitem__(self, i: Any) -> "Seats":
        return Seats(*(getattr(self, field.name)[i] for field in fields(self)))


def allowed(asks: Seats, told: Seats) -> Bool[Tensor, "*row asks told"]:
    """Whether each asking position sees each position of `told`: in one document, a noisy one sees its own noisy block and clean blocks
    before it, a clean one clean blocks up to its own.

    Every position sees itself, so that no row of the matrix is empty.
    """
    one = asks.document[..., :, None] == told.document[..., None, :]
    mine, theirs = asks.block[..., :, None], told.block[..., None, :]
    noisy, hidden = asks.noisy[..., :, None], told.noisy[..., None, :]
    return one & torch.where(hidden, noisy & (mine == theirs), torch.where(noisy, mine > theirs, mine >= theirs))


def as_attention_mask(seen: Bool[Tensor, "*row asks told"], module: Any) -> Tensor:
    """The same as a model of transformers takes it, in four axes, which it passes on as it is: added to scores, or true and false for SDPA."""
    seen = seen[:, None] if seen.ndim == 3 else seen[None, None]
    if module.config._attn_implementation == "sdpa":
        return seen
    dtype = module.dtype
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)


def refuse_attention(module: Any, where: str) -> None:
    """Refuses models whose attention takes no matrix of who sees whom, or in which some layers see less than others.

    Raises:
        Refused: `attention`.
    """
    config = module.config
    if getattr(config, "layer_parts", None) and any(config.layer_parts):
        got, do = "other modules in some places", "start from a model as its family builds it"
    elif set(getattr(config, "layer_types", None) or ()) - {"full_attention"}:
        got, do = "layers with a sliding window", "start from a family without, such as llama, qwen2 or qwen3"
    elif config._attn_implementation not in ("sdpa", "eager"):
        got, do = f"attn_implementation: {config._attn_implementation}", "open the model with sdpa"
    else:
        return
    raise Refused("attention", where, "full softmax attention in every block, which takes a matrix of who sees whom", got, do)


def whole_blocks(view: View, names: Sequence[str], block: Int[Tensor, " row"], where: str) -> None:
    """Refuses rows whose last block is not full.

    Raises:
        Refused: `block`, with the first such row.
    """
    over = (view.ragged % block).nonzero()[:, 0].tolist()
    if over:
        length, size = int(view.ragged[over[0]]), int(block[over[0]])
        do = f"pack with a length that {size} divides, and a shortest of as many (less begin and end); or add {{kind: fill_blocks, length: {size}}}"
        raise Refused("block", where, f"rows of a multiple of {size} tokens", f"row {names[over[0]]} of {length}", f"{do}; or whole: false")


def hidden_tokens(
    view: View, names: Sequence[str], rate: tuple[float, float], per: Literal["block", "row"], streams: Streams, place: tuple[object, ...]
) -> tuple[Bool[Tensor, " pos"], Float[Tensor, " pos"]]:
    """Which of the positions that may be are hidden, and the probability with which each was: drawn once a block or a row, evenly from `rate`.

    Each row has a stream of its own, which goes by its name.
    """
    rates, draws, (low, high) = [], [], rate
    for name, length, block in zip(names, view.ragged.tolist(), view.inputs["block_length"].tolist(), strict=True):
        stream = streams("mask", *place, name)
        num = -(-length // block) if per == "block" else min(length, 1)
        rates.append((low + (high - low) * torch.rand(num, generator=stream, device="cpu"))[block_of(length, block, per)])
        draws.append(torch.rand(length, generator=stream, device="cpu"))
    share, drawn = (torch.cat(x).to(view.device) for x in (rates, draws)) if rates else (torch.zeros(0, device=view.device),) * 2
    return (drawn < share) & maskable(view), share


def hiding(view: View, masked: Bool[Tensor, " pos"], weight: Float[Tensor, " pos"]) -> dict[str, Tensor]:
    """Inputs by which a view says which of its positions are hidden, what each counts for, and how many might have been."""
    might = torch.bincount(view.rows("pos"), maskable(view).double(), minlength=view.num_rows)
    return {"block_length": view.inputs["block_length"], "masked": masked, "mask_weight": weight, "maskable": might}


def block_of(length: int, block: int, per: str) -> Int[Tensor, " pos"]:
    """The number of each position's rate: that of its block, or 0."""
    place = torch.arange(length, device="cpu")
    return place // block if per == "block" else place * 0


def maskable(view: View) -> Bool[Tensor, " pos"]:
    """Positions that may be masked: those that are asked for, never the first of a row, never a prompt."""
    some = view.offsets >= 1
    return some if view.asked is None else some & view.asked
