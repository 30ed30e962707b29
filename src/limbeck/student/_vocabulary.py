"""Rows of an embedding for another tokenizer, made of the rows that are there."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from limbeck.text.bytes_of import Spelling
from limbeck.text.tokens import encoded

Sources = list[tuple[int, ...]]
"""New id -> the old ids whose rows it is the mean of; none: nothing is known of it."""


def sources(new: Spelling, old: Spelling, tokenizer: Any, num: int) -> Sources:
    """Where the rows of so many new ids come from.

    One that spells what an old id spells, or is a mark of its purpose, is that one; another one is what the old tokenizer makes of its
    bytes. A begin of a vocabulary without one is its end, which models read so.
    """
    spells = {b: i for i, b in enumerate(old.bytes) if b}
    marks = {mark: i for i, mark in old.marks.items()}
    marks.setdefault("begin", marks.get("end", -1))
    out: Sources = []
    for i in range(num):
        b = new.bytes[i] if i < len(new.bytes) else b""
        if not b:
            mark = marks.get(new.marks.get(i, ""), -1)
            out.append((mark,) if mark >= 0 else ())
        elif b in spells:
            out.append((spells[b],))
        else:
            out.append(cut(b, spells, old, tokenizer))
    return out


def cut(piece: bytes, spells: dict[bytes, int], old: Spelling, tokenizer: Any) -> tuple[int, ...]:
    """Old ids that spell some bytes: as the old tokenizer reads them; from the left, the longest first, where they are no text by themselves."""
    try:
        ids = tuple(encoded(piece.decode(), tokenizer))
        if b"".join(old.bytes[i] for i in ids) == piece:
            return ids
    except UnicodeDecodeError:
        pass
    found, start = [], 0
    while start < len(piece):
        end = next((end for end in range(len(piece), start, -1) if piece[start:end] in spells), 0)
        if not end:
            return ()
        found.append(spells[piece[start:end]])
        start = end
    return tuple(found)


@torch.no_grad()
def carried(rows: Float[Tensor, "old dim"], of: Sources, known: int, stream: torch.Generator) -> Float[Tensor, "new dim"]:
    """New rows; one of which nothing is known is drawn from the normal distribution of the `known` old rows, channel by channel."""
    old = rows[:known].double()
    new = old.mean(0).cpu() + old.std(0).cpu() * torch.randn(len(of), rows.shape[1], generator=stream, dtype=torch.float64, device="cpu")
    new = new.to(rows)
    single = [i for i, some in enumerate(of) if len(some) == 1]
    new[single] = rows[[of[i][0] for i in single]]
    for i, some in enumerate(of):
        if len(some) > 1:
            new[i] = old[list(some)].mean(0).to(rows)
    return new


def told(of: Sequence[tuple[int, ...]]) -> str:
    """How many rows came to be in which way."""
    counts = [sum(test(len(some)) for some in of) for test in (lambda n: n == 1, lambda n: n > 1, lambda n: n == 0)]
    return "{:,} taken over, {:,} means, {:,} drawn".format(*counts)
