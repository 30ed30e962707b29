"""Answers of two tokenizers, token by token, wherever each of them stands in the text."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch

from limbeck.align._chunks import both_sides, pooled
from limbeck.align.base import Align
from limbeck.align.byte_chunks import chunked, pieces
from limbeck.errors import Refused
from limbeck.model.base import Models
from limbeck.signals import Batch
from limbeck.text.chunks import Chunks, Piece, stretches


def bare(run: Sequence[int], ids: Sequence[int], marks: Sequence[int], end: bool) -> Sequence[int]:
    """An answer's places without the marks before it, and without those after it unless its `end` is kept."""
    while run and ids[run[0]] in marks:
        run = run[1:]
    while run and not end and ids[run[-1]] in marks:
        run = run[:-1]
    return run


class ByPosition(Align):
    r"""Pairs the i-th token of each answer of the student with the i-th of the teacher's, whatever they spell.

    $$ \{(s_i, t_i) : i \le \min(n_S, n_T)\} $$

    where the student's end of text is left out and the teacher's is not. What is left over of the longer answer is paired with nothing, and
    so is a token that one side cannot predict: the first of a text without a begin. A pair is a chunk, so that an objective of chunks hears
    it as it hears `byte_chunks`. It needs no bytes of a tokenizer, and the texts drift apart after the first word that is cut differently:
    objectives that look at what is said gain nothing here, so it makes what `sorted_l1` needs and no more. A baseline; `byte_chunks` says more.

    Example:
        >>> list(bare(range(1, 4), [256, 104, 105, 257], [256, 257], end=False))
        [1, 2]

    References:
        Boizard et al., ULD, 2024, arXiv:2402.12030.
    """

    kind: Literal["by_position"] = "by_position"
    crosses: ClassVar[bool] = True
    student: str = "student"
    """The role on the one side."""
    teacher: str = "teacher"
    """The role on the other side."""
    skip_end: bool = True
    """Whether the student's end of text is paired with nothing."""

    def settle(self, models):
        both_sides(self, models)
        return self

    def requires(self, role, names):
        made: dict[str, tuple[str, ...]] = {"last_logits": ("logits",), "lead_logprob": ()} if role in (self.student, self.teacher) else {}
        return tuple(dict.fromkeys(raw for name in names for raw in made.get(name, (name,))))

    def index(self, batch: Batch, models: Models) -> Batch:
        roles = self.student, self.teacher
        views = [batch.view(role) for role in roles]
        marks = [models[role].tokenizer.all_special_ids for role in roles]
        rows = [self.row(one, other, marks) for one, other in zip(pieces(views[0]), pieces(views[1]), strict=True)]
        if rows and not any(rows) and all(len(view.targets) for view in views):
            expected, got = "rows in which both roles predict a token of an answer", f"none in a window of {len(rows)} rows"
            raise Refused("chunk", "align.by_position", expected, got, "let both roles read the same text, or take longer rows")
        new = {role: chunked(view, rows, side) for side, (role, view) in enumerate(zip(roles, views, strict=True))}
        return replace(batch, views={**batch.views, **new})

    def row(self, one: Piece, other: Piece, marks: Sequence[Any]) -> Chunks:
        """The pairs of one row, as places in the row."""
        runs = stretches(one.asked), stretches(other.asked)
        if len(runs[0]) != len(runs[1]):
            return ()
        found = []
        for ours, theirs in zip(*runs, strict=True):
            answers = bare(ours, one.ids, marks[0], not self.skip_end), bare(theirs, other.ids, marks[1], True)
            found += [((i,), (j,)) for i, j in zip(*answers, strict=False) if one.predicted(i) and other.predicted(j)]
        return tuple(found)

    def __call__(self, role, said, batch):
        if role not in (self.student, self.teacher):
            return said
        found = pooled(batch.view(role), said)
        alone = torch.zeros(found.num("chunk"), device=batch.view(role).device)  # nothing stands before the only target of a chunk
        return replace(found, values={**found.values, "lead_logprob": alone})
