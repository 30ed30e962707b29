"""States of two tokenizers' tokens, stretch by stretch of the same letters, where nothing is hidden."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch

from limbeck.align._chunks import both_sides, pooled
from limbeck.align.base import Align
from limbeck.errors import Refused
from limbeck.model.base import Models
from limbeck.signals import Batch, View
from limbeck.text.bytes_of import exact
from limbeck.text.chunks import Chunk, beside


class VisibleChunks(Align):
    r"""Lays the states of tokens that spell the same letters side by side: the mean over the positions of each stretch, on either side.

    $$ \bar h_c = \frac{1}{|c|} \sum_{i \in c} h_i, \qquad c \text{ the shortest stretches that begin and end at the same bytes in both tokenizers} $$

    It makes `chunk_hidden.i` of `hidden.i`, for objectives that compare states: six positions of a student that reads single bases become one
    beside a token of six bases; a base that the teacher reads alone stays alone. A stretch with a hidden position on either side is in no
    chunk, nor is a mark, such as the begin of a sequence, which spells nothing. Rows that nothing is hidden of are laid side by side whole.
    For models that see both sides of a position; where every next token is predicted, `byte_chunks` compares what is said of the text.

    Example:
        >>> from limbeck.text.bytes_of import Spelling
        >>> one, other = Spelling((b"", b"ACG", b"T"), {0: "begin"}, False), Spelling((b"A", b"C", b"G", b"T"), {}, False)
        >>> beside([0, 1, 2], [0, 1, 2, 3], (one, other))
        (((1,), (0, 1, 2)), ((2,), (3,)))

    References:
        Yang et al., HAD: Hybrid Architecture Distillation Outperforms Teacher in Genomic Sequence Modeling, 2025, arXiv:2505.20836.
    """

    kind: Literal["visible_chunks"] = "visible_chunks"
    crosses: ClassVar[bool] = True
    student: str = "student"
    """The role on the one side."""
    teacher: str = "teacher"
    """The role on the other side."""

    def settle(self, models):
        for role, tokenizer in zip((self.student, self.teacher), both_sides(self, models), strict=True):
            if tokenizer is not None:  # a plan may have none
                exact(tokenizer, f"align.visible_chunks: tokenizer of {role}")
        return self

    def requires(self, role, names):
        mine = role in (self.student, self.teacher)
        return tuple(dict.fromkeys(name.removeprefix("chunk_") if mine and name.startswith("chunk_hidden.") else name for name in names))

    def index(self, batch: Batch, models: Models) -> Batch:
        roles = self.student, self.teacher
        views = [batch.view(role) for role in roles]
        spelled = [exact(models[role].tokenizer, f"align.visible_chunks: tokenizer of {role}") for role in roles]
        rows = [self.row(sides, spelled) for sides in zip(*(read(view) for view in views), strict=True)]
        if rows and not any(rows) and all(len(view.inputs["ids"]) for view in views):
            expected, got = "rows in which both roles see a stretch of the same letters", f"none in a window of {len(rows)} rows"
            raise Refused("chunk", "align.visible_chunks", expected, got, "let both roles read the same text, hide less of it, or take longer rows")
        sides = [[[chunk[side] for chunk in chunks] for chunks in rows] for side in range(2)]
        new = {role: placed(view, side) for role, view, side in zip(roles, views, sides, strict=True)}
        return replace(batch, views={**batch.views, **new})

    def row(self, sides: Sequence[Any], spelled: Sequence[Any]) -> list[Chunk]:
        """The stretches of one row in which both sides see every position."""
        (one, ours), (other, theirs) = sides
        return [c for c in beside(one, other, spelled) if all(ours[i] for i in c[0]) and all(theirs[j] for j in c[1])]

    def __call__(self, role, said, batch):
        return pooled(batch.view(role), said) if role in (self.student, self.teacher) else said


def read(view: View) -> list[tuple[list[int], list[bool]]]:
    """Ids of each row as they were before some were hidden, and which of them are visible."""
    ids = view.inputs.get("original", view.inputs["ids"])
    hidden = view.asked if "original" in view.inputs else None
    seen = torch.ones_like(ids, dtype=torch.bool) if hidden is None else ~hidden
    lengths = view.ragged.tolist()
    return [(i.tolist(), s.tolist()) for i, s in zip(ids.split(lengths), seen.split(lengths), strict=True)]


def placed(view: View, rows: Sequence[Sequence[Sequence[int]]]) -> View:
    """The view, with the chunk of each of its positions; none of its targets is in one."""
    at = torch.full((int(view.ragged.sum()),), -1, dtype=torch.long, device="cpu")
    starts = (view.ragged.cumsum(0) - view.ragged).tolist()
    chunks = [(row, [start + place for place in places]) for row, (start, some) in enumerate(zip(starts, rows, strict=True)) for places in some]
    for number, (_, places) in enumerate(chunks):
        at[places] = number
    row = torch.tensor([row for row, _ in chunks], dtype=torch.long, device=view.device)
    none = torch.full((len(view.targets),), -1, dtype=torch.long, device=view.device)
    return replace(view, chunk_at=at.to(view.device), chunk_of=none, chunk_row=row)
