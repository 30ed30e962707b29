"""Documents cut to a length, and gathered into bins of that length."""

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import Field

from limbeck.data._shorten import shorten, whole_characters
from limbeck.data.base import Part, Place, Rows, Step, key_of
from limbeck.errors import Refused
from limbeck.signals import Row
from limbeck.text.spans import encode
from limbeck.text.tokens import Tokens, fingerprint, specials, tokens

Sized = tuple[Row, int]
"""A row and its number of tokens."""


class Pack(Step):
    r"""Cuts documents into pieces, and puts pieces into bins that are drawn together.

    A piece, and a bin, is at most `length` tokens of the student's tokenizer, with the begin and end that it adds: so a
    batch of 8 is 8 bins, and nearly the same work each step. Pieces stay rows of their own, so that none sees another.
    Texts are cut between two characters; their pieces joined are the text again, for other tokenizers too. Chats and
    answers lose their end instead, and are dropped if nothing of an answer is left. Held-out rows are cut alike, and stay
    alone. Rows that must stay together already (pairs) are cut, and not put into bins.

    Bins are filled best-fit decreasing: the longest piece first, each into the fullest bin that still takes it. It wastes
    less than filling them in turn, and draws are shuffled anyway.

    Example:
        >>> Pack(length=1024).shortest
        1

    References:
        Johnson, Demers, Ullman, Garey and Graham, Worst-Case Performance Bounds for Simple One-Dimensional Packing
        Algorithms, SIAM Journal on Computing 3(4), 1974.
    """

    kind: Literal["pack"] = "pack"
    length: Annotated[int, Field(ge=2)]
    """Tokens of the longest piece, and of a bin."""
    shortest: Annotated[int, Field(ge=1)] = 1
    """Pieces of documents with fewer tokens are dropped."""

    @classmethod
    def example(cls) -> "Pack":
        return cls(length=128)

    def rows(self, rows: Rows, place: Place) -> Rows:
        tokenizer = place.models["student"].tokenizer if "student" in place.models else None
        if tokenizer is None:
            raise Refused("tokenizer", "data pack", "a student with a tokenizer", "one without", "remove pack: it cuts text")
        cutter = Cutter(tokenizer, self.length, self.shortest)
        parts = [Part(tuple(binned(list(cutter.cut(part.rows)), self.length)), part.share) for part in rows.parts]
        held = tuple(row for row, _ in cutter.cut(rows.held_out))
        if rows.parts and not any(part.rows for part in parts):
            raise Refused(
                "data",
                "data pack",
                f"something to train on within {self.length} tokens",
                f"nothing of {len(rows.train):,} rows",
                "raise length" + (", or lower shortest" if self.shortest > 1 else ""),
            )
        return replace(rows, parts=tuple(part for part in parts if part.rows), held_out=held, notes=(*rows.notes, *cutter.notes()))


@dataclass
class Cutter:
    """Cuts rows for one tokenizer, and counts what is lost."""

    tokenizer: Any
    length: int
    shortest: int
    lost: Counter[str] = field(default_factory=Counter)
    same: dict[int, int] = field(default_factory=dict)
    """One object for each id: a tokenizer makes new ones all the time, and they are larger than the text."""

    @cached_property
    def around(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Begin and end that the tokenizer gives each text."""
        return specials(self.tokenizer)

    def notes(self) -> Iterator[str]:
        """What was left out or cut, where anything was."""
        lost = self.lost
        if lost["pieces"]:
            yield f"pack: {lost['pieces']:,} pieces of fewer than {self.shortest} tokens dropped ({lost['tokens']:,} tokens)"
        if lost["cut"]:
            yield f"pack: {lost['cut']:,} rows cut at their end to {self.length:,} tokens"
        if lost["rows"]:
            yield f"pack: {lost['rows']:,} rows dropped: no answer within {self.length:,} tokens"

    def cut(self, rows: Sequence[Row]) -> Iterator[Sized]:
        """Rows of at most `length` tokens."""
        for row in rows:
            if "text" in row.content and not row.content.keys() & {"messages", "prompt"}:
                yield from self.pieces(row)
            elif (num := len(encode(row, self.tokenizer)[0])) <= self.length:
                yield row, num
            elif content := shorten(row, self.tokenizer, self.length):
                self.lost["cut"] += 1
                mark = fingerprint(self.tokenizer)
                yield replace(row, key=key_of(row.key, mark, str(self.length)), content=content), len(content["ids"][mark])
            else:
                self.lost["rows"] += 1

    def pieces(self, row: Row) -> Iterator[Sized]:
        """Pieces of a document, in its order."""
        (before, after), mark, text = self.around, fingerprint(self.tokenizer), row.content["text"]
        found, framed = tokens(text, self.tokenizer), len(before) + len(after)
        if framed >= self.length:
            raise Refused("value", "data pack  length", f"more than the {framed} tokens around each text", f"length: {self.length}", "raise length")
        ends = list(cuts(found, self.length - framed))
        for start, end in zip([0, *ends], ends, strict=False):
            if end - start < self.shortest:
                self.lost.update(pieces=1, tokens=end - start)
                continue
            first, last = found.starts[start] if start else 0, found.starts[end] if end < len(found.ids) else len(text)
            ids = tuple(self.same.setdefault(i, i) for i in (*before, *found.ids[start:end], *after))
            content = {**row.content, "text": text[first:last], "ids": {mark: ids}}
            yield replace(row, key=key_of(row.key, mark, str(first), str(start), str(end)), content=content), len(ids)


def cuts(found: Tokens, room: int) -> Iterator[int]:
    """Where pieces end: after at most `room` tokens, between two characters unless one character is longer."""
    start, total = 0, len(found.ids)
    while start < total:
        end = min(start + room, total)
        between = whole_characters(found, end)
        start = between if between > start else end
        yield start


def binned(pieces: Sequence[Sized], length: int) -> list[Row]:
    """The rows in their order, each with the name of its bin as its group, unless it has one."""
    room: list[tuple[int, int]] = []  # tokens that still fit, and number of the bin: sorted
    bins: list[list[int]] = []
    for i in sorted((i for i, (row, _) in enumerate(pieces) if not row.group), key=lambda i: -pieces[i][1]):
        size = pieces[i][1]
        at = bisect_left(room, (size, -1))
        left, number = room.pop(at) if at < len(room) else (length, len(bins))
        if number == len(bins):
            bins.append([])
        bins[number].append(i)
        if left > size:
            insort(room, (left - size, number))
    names = {i: key_of("bin", str(some[0]), *(pieces[j][0].key for j in some)) for some in bins for i in some}
    return [replace(row, group=names[i]) if i in names else row for i, (row, _) in enumerate(pieces)]
