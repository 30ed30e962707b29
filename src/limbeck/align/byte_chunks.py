"""Text of two tokenizers, in the stretches that both cut out alike."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

import torch

from limbeck.align.base import Align
from limbeck.errors import Refused
from limbeck.model.base import Models
from limbeck.signals import Batch, View
from limbeck.text.bytes_of import Spelling, exact

Chunks = tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
"""Places of tokens on the one side and on the other, chunk by chunk."""


class Read(NamedTuple):
    """Tokens of a stretch of text."""

    bytes: tuple[bytes, ...]
    marks: tuple[str, ...]
    """What a token without bytes is for; empty for text."""


def read(ids: Sequence[int], spelled: Spelling) -> Read:
    """What some ids spell; one that the tokenizer does not name spells nothing."""
    known = [spelled.bytes[i] if i < len(spelled.bytes) else b"" for i in ids]
    return Read(tuple(known), tuple("" if b else spelled.marks.get(i, f"id {i}") for i, b in zip(ids, known, strict=True)))


def unled(one: Read, other: Read, led: bool) -> Read:
    """Without the space that the tokenizer put in front, where the other side does not begin with so many."""
    ours, theirs = (b"".join(r.bytes) for r in (one, other))
    if not led or len(ours) - len(ours.lstrip(b" ")) <= len(theirs) - len(theirs.lstrip(b" ")):
        return one
    first = next(i for i, b in enumerate(one.bytes) if b)
    return one._replace(bytes=tuple(b[1:] if i == first else b for i, b in enumerate(one.bytes)))


def walked(one: Read, other: Read) -> Chunks:
    """Cuts two stretches wherever both stand at the same byte, and keeps the chunks that spell the same.

    Marks end no text: those that both sides have at one place, for the same purpose, are chunks of their own; others are in no chunk.
    """
    sides = one, other
    ends = [cumulated(side.bytes) for side in sides]
    common = sorted(set(ends[0]) & set(ends[1]) | {0})
    found: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    for start, end in zip([None, *common], common, strict=False):  # None: what stands before the first byte
        inside = [[i for i, e in enumerate(ends[s]) if sides[s].bytes[i] and start is not None and start < e <= end] for s in (0, 1)]
        texts = [b"".join(side.bytes[i] for i in some) for side, some in zip(sides, inside, strict=True)]
        if texts[0] and texts[0] == texts[1]:
            found.append((tuple(inside[0]), tuple(inside[1])))
        at = [[i for i, e in enumerate(ends[s]) if e == end and sides[s].marks[i]] for s in (0, 1)]
        if [one.marks[i] for i in at[0]] == [other.marks[i] for i in at[1]]:
            found += [((i,), (j,)) for i, j in zip(*at, strict=True)]
    return tuple(found)


def cumulated(pieces: Sequence[bytes]) -> list[int]:
    """Bytes up to the end of each piece."""
    total, out = 0, []
    for piece in pieces:
        total += len(piece)
        out.append(total)
    return out


def stretches(asked: Sequence[bool]) -> list[range]:
    """Runs of positions that are asked for: each answer of a chat by itself."""
    edges = [i for i, (a, b) in enumerate(zip([False, *asked], [*asked, False], strict=True)) if a != b]
    return [range(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True)]


class ByteChunks(Align):
    r"""Cuts what two tokenizers make of one text into chunks that begin and end at the same bytes.

    $$ \text{a chunk ends where } \sum_{i \le t} |b_i| = \sum_{j \le s} |b'_j|, \qquad
       \log P(\text{chunk}) = \sum_{t \in \text{chunk}} \log p(x_t \mid x_{<t}) $$

    It makes `chunk_logprob` of `target_logprob`. Answers are laid side by side one by one, prompts and templates left out. A chunk is
    kept where every token of it is predicted on both sides: without a begin of text the first token is not, so that a text's first chunk
    stays only where both tokenizers begin alike. A mark of one side alone, text that differs and what stands after the last common byte
    are in no chunk. For student and teacher with different tokenizers; with one tokenizer every token is a chunk, and `forward_kl` says more.

    Example:
        >>> walked(Read((b"ab", b"c"), ("", "")), Read((b"a", b"b", b"c"), ("", "", "")))
        (((0,), (0, 1)), ((1,), (2,)))

    References:
        Minixhofer et al., Universal Cross-Tokenizer Distillation via Approximate Likelihood Matching, 2025, arXiv:2503.20083.
    """

    kind: Literal["byte_chunks"] = "byte_chunks"
    student: str = "student"
    """The role on the one side."""
    teacher: str = "teacher"
    """The role on the other side."""

    def settle(self, models):
        for role in (self.student, self.teacher):
            if role not in models:
                raise Refused("role", "align.byte_chunks", f"one of {', '.join(models)}", role, "change the name")
            if models[role].tokenizer is not None:  # a plan may have none
                exact(models[role].tokenizer, f"align.byte_chunks: tokenizer of {role}")
        return self

    def requires(self, role, names):
        mine = role in (self.student, self.teacher)
        return tuple(dict.fromkeys("target_logprob" if mine and name == "chunk_logprob" else name for name in names))

    def index(self, batch: Batch, models: Models) -> Batch:
        roles = self.student, self.teacher
        views = [batch.view(role) for role in roles]
        spelled = [exact(models[role].tokenizer, f"align.byte_chunks: tokenizer of {role}") for role in roles]
        rows: list[Chunks] = [self.row(one, other, spelled) for one, other in zip(pieces(views[0]), pieces(views[1]), strict=True)]
        if rows and not any(rows) and all(len(view.targets) for view in views):
            raise Refused(
                "chunk",
                "align.byte_chunks",
                "rows in which both tokenizers reach the same byte of the same text",
                f"none in a window of {len(rows)} rows",
                "let both roles read the same text, or take longer rows",
            )
        new = {role: chunked(view, rows, side) for side, (role, view) in enumerate(zip(roles, views, strict=True))}
        return replace(batch, views={**batch.views, **new})

    def row(self, one: tuple[list[int], list[bool], int], other: tuple[list[int], list[bool], int], spelled: Sequence[Spelling]) -> Chunks:
        """The chunks of one row, as places in the row."""
        sides, found = (one, other), []
        runs = [stretches(asked) for _, asked, _ in sides]
        if len(runs[0]) != len(runs[1]):
            return ()
        for pair in zip(*runs, strict=True):
            reads = [read([ids[i] for i in run], s) for (ids, _, _), run, s in zip(sides, pair, spelled, strict=True)]
            led = [any(s.led(ids[i]) for i in first(run, r)) for (ids, _, _), run, r, s in zip(sides, pair, reads, spelled, strict=True)]
            laid = unled(reads[0], reads[1], led[0]), unled(reads[1], reads[0], led[1])
            found += [(tuple(pair[0][i] for i in a), tuple(pair[1][j] for j in b)) for a, b in walked(*laid)]
        return tuple(c for c in found if all(place >= shift for places, (_, _, shift) in zip(c, sides, strict=True) for place in places))

    def __call__(self, role, said, batch):
        if role not in (self.student, self.teacher) or "target_logprob" not in said.values:
            return said
        view, each = batch.view(role), said.values["target_logprob"]
        assert view.chunk_of is not None and view.chunk_row is not None, "indexed before it is used"
        inside = view.chunk_of >= 0
        pooled = each.new_zeros(len(view.chunk_row)).index_add(0, view.chunk_of[inside], each[inside])
        return replace(said, values={**said.values, "chunk_logprob": pooled})


def first(run: range, side: Read) -> list[int]:
    """The place of the first token with bytes, if there is one."""
    return [place for place, piece in zip(run, side.bytes, strict=True) if piece][:1]


def pieces(view: View) -> list[tuple[list[int], list[bool], int]]:
    """Ids of each row, which of them are asked for, and how many cannot be predicted."""
    ids, lengths = view.inputs["ids"].tolist(), view.ragged.tolist()
    asked = [True] * len(ids) if view.asked is None else view.asked.tolist()
    ends = [sum(lengths[: i + 1]) for i in range(len(lengths))]
    return [(ids[e - n : e], asked[e - n : e], view.shift) for e, n in zip(ends, lengths, strict=True)]


def chunked(view: View, rows: Sequence[Chunks], side: int) -> View:
    """The view, with the chunk of each of its targets."""
    of = torch.full((int(view.ragged.sum()),), -1, dtype=torch.long, device=view.device)
    starts, row, num = (view.ragged.cumsum(0) - view.ragged).tolist(), [], 0
    for i, (start, chunks) in enumerate(zip(starts, rows, strict=True)):
        for chunk in chunks:
            of[[start + place for place in chunk[side]]] = num
            num += 1
            row.append(i)
    return replace(view, chunk_of=of[view.targets], chunk_row=torch.tensor(row, dtype=torch.long, device=view.device))
