"""Text of two tokenizers, in the stretches that both cut out alike."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field

from limbeck.align._chunks import MADE_OF, both_sides, pooled, shared_ids
from limbeck.align.base import Align
from limbeck.errors import Refused
from limbeck.model.base import Models
from limbeck.signals import Batch, View
from limbeck.text.bytes_of import exact
from limbeck.text.chunks import Chunks, Piece, coverage, laid, merged

MOST_ROWS = 1000
"""Rows that are looked at ahead of training, at most."""


class ByteChunks(Align):
    r"""Cuts what two tokenizers make of one text into chunks that begin and end at the same bytes.

    $$ \text{a chunk ends where } \sum_{i \le t} |b_i| = \sum_{j \le s} |b'_j|, \qquad
       \log P(\text{chunk}) = \sum_{t \in \text{chunk}} \log p(x_t \mid x_{<t}) $$

    It makes `chunk_logprob` of `target_logprob`. Answers are laid side by side one by one, prompts and templates left out. A chunk is
    kept where every token of it is predicted on both sides: without a begin of text the first token is not, so that a text's first chunk
    stays only where both tokenizers begin alike. A mark of one side alone, text that differs and what stands after the last common byte
    are in no chunk. For student and teacher with different tokenizers; with one tokenizer every token is a chunk, and `forward_kl` says more.

    The same bytes are not the same event: a tokenizer that would have written more of a word in one token says less of its beginning.
    With B the ids that begin with a space, tab or line feed, and all marks, `debias` adds that the word ends there, on both sides,

    $$ \log P(\text{chunk}) + \log \sum_{v \in B} p(v \mid \text{all up to the end of the chunk}) $$

    and `merge` joins a chunk after which the teacher finds that hardly possible with the next one, so that chunks end where words may.
    The last chunk of a row or an answer is followed by nothing that is asked for: it stays as it is. Nor is a gap joined over.

    Example:
        >>> from limbeck.text.chunks import Read, walked
        >>> walked(Read((b"ab", b"c"), ("", "")), Read((b"a", b"b", b"c"), ("", "", "")))
        (((0,), (0, 1)), ((1,), (2,)))

    References:
        Minixhofer et al., Universal Cross-Tokenizer Distillation via Approximate Likelihood Matching, 2025, arXiv:2503.20083.
    """

    kind: Literal["byte_chunks"] = "byte_chunks"
    crosses: ClassVar[bool] = True
    student: str = "student"
    """The role on the one side."""
    teacher: str = "teacher"
    """The role on the other side."""
    debias: bool = False
    """Whether the end of a word after each chunk is part of what is compared: for `chunk_likelihood`."""
    merge: Annotated[float, Field(gt=0, lt=1)] | None = None
    """A chunk is joined with the next where the teacher gives the end of a word after it at most this probability; 0.1 in the paper's runs."""

    @property
    def looks(self):
        return {} if self.merge is None else {self.teacher: ("boundary_logprob",)}

    def settle(self, models):
        if all(both_sides(self, models)):  # a plan may have none
            shared_ids(models, (self.student, self.teacher), "align.byte_chunks")
        return self

    def notes(self, rows, models):
        roles = [models[role] for role in (self.student, self.teacher) if role in models]
        if len(roles) < 2 or not rows:
            return ()
        some = rows[:: -(-len(rows) // MOST_ROWS)]
        found = coverage(some, [role.tokenizer for role in roles], [role.shift for role in roles], "align.byte_chunks")
        lost, of = sum(not one.chunks for one in found), f"{len(some):,}" + f" looked at, of {len(rows):,}" * (len(some) < len(rows))
        share = sum(one.inside for one in found) / max(1, sum(one.asked for one in found))
        return (f"byte_chunks: {lost:,} rows without a common chunk ({of}); {share:.1%} of the bytes lie in chunks",)

    def requires(self, role, names):
        mine = role in (self.student, self.teacher)
        ended = ("boundary_logprob",) * (mine and self.debias and "chunk_logprob" in names)
        return tuple(dict.fromkeys((*(MADE_OF.get(name, name) if mine else name for name in names), *ended)))

    def index(self, batch: Batch, models: Models) -> Batch:
        roles = self.student, self.teacher
        views = [batch.view(role) for role in roles]
        spelled = [exact(models[role].tokenizer, f"align.byte_chunks: tokenizer of {role}") for role in roles]
        sides = list(zip(*map(pieces, views), strict=True))
        rows = [laid(row, spelled) for row in sides]
        if rows and not any(rows) and all(len(view.targets) for view in views):
            raise Refused(
                "chunk",
                "align.byte_chunks",
                "rows in which both tokenizers reach the same byte of the same text",
                f"none in a window of {len(rows)} rows",
                "let both roles read the same text, or take longer rows",
            )
        if self.merge is not None:
            rows = self.joined(rows, batch)
        ids, new = shared_ids(models, roles, "align.byte_chunks"), {}
        for side, (role, view) in enumerate(zip(roles, views, strict=True)):
            ended = followed(view, rows, sides, side) if self.debias else None
            new[role] = replace(chunked(view, rows, side), shared=ids[side].to(view.device), chunk_end=ended)
        return replace(batch, views={**batch.views, **new})

    def joined(self, rows: Sequence[Chunks], batch: Batch) -> list[Chunks]:
        """The chunks, joined where the teacher does not expect the end of a word."""
        view, said = batch.view(self.teacher), batch.said[self.teacher]["boundary_logprob"]
        ended = torch.ones(int(view.ragged.sum()), dtype=torch.bool, device="cpu")  # nothing follows what is not asked for
        ended[view.targets.cpu()] = (said.exp() > self.merge).cpu()
        each = [[*one, True] for one in (x.tolist() for x in ended.split(view.ragged.tolist()))]
        return [merged(chunks, [well[theirs[-1] + 1] for _, theirs in chunks]) for chunks, well in zip(rows, each, strict=True)]

    def __call__(self, role, said, batch):
        return pooled(batch.view(role), said) if role in (self.student, self.teacher) else said


def pieces(view: View) -> list[Piece]:
    """The rows of a view."""
    ids, lengths = view.inputs["ids"], view.ragged.tolist()
    asked = torch.ones_like(ids, dtype=torch.bool) if view.asked is None else view.asked
    return [Piece(i.tolist(), a.tolist(), view.shift) for i, a in zip(ids.split(lengths), asked.split(lengths), strict=True)]


def chunked(view: View, rows: Sequence[Chunks], side: int) -> View:
    """The view, with the chunk of each of its targets."""
    row = torch.tensor([i for i, chunks in enumerate(rows) for _ in chunks], dtype=torch.long, device=view.device)
    return replace(view, chunk_of=numbered(view, [[chunk[side] for chunk in chunks] for chunks in rows]), chunk_row=row)


def followed(view: View, rows: Sequence[Chunks], sides: Sequence[Any], side: int) -> Any:
    """The chunk that ends just before each target, or -1; only where the place after the chunk is predicted on both sides."""

    def next_of(chunk: Any, row: Sequence[Piece]) -> tuple[int, ...]:
        after = [places[-1] + 1 for places in chunk]
        return (after[side],) if all(piece.predicted(place) for piece, place in zip(row, after, strict=True)) else ()

    return numbered(view, [[next_of(chunk, row) for chunk in chunks] for chunks, row in zip(rows, sides, strict=True)])


def numbered(view: View, rows: Sequence[Sequence[Sequence[int]]]) -> Any:
    """The number of the chunk that names each target, or -1; chunks of all rows are numbered through, and name places of their row."""
    of = torch.full((int(view.ragged.sum()),), -1, dtype=torch.long, device="cpu")
    starts, num = (view.ragged.cumsum(0) - view.ragged).tolist(), 0
    for start, chunks in zip(starts, rows, strict=True):
        for places in chunks:
            of[[start + place for place in places]] = num
            num += 1
    return of.to(view.device)[view.targets]
