"""One text as two tokenizers read it, cut where both stand at the same byte."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from limbeck.signals import Row
from limbeck.text.bytes_of import Spelling, exact
from limbeck.text.spans import encode

Chunk = tuple[tuple[int, ...], tuple[int, ...]]
"""Places of tokens on the one side and on the other."""
Chunks = tuple[Chunk, ...]


class Read(NamedTuple):
    """Tokens of a stretch of text."""

    bytes: tuple[bytes, ...]
    marks: tuple[str, ...]
    """What a token without bytes is for; empty for text."""


class Piece(NamedTuple):
    """A row as one tokenizer reads it."""

    ids: Sequence[int]
    asked: Sequence[bool]
    """Which of them are asked for."""
    shift: int
    """So many at the beginning cannot be predicted."""

    def predicted(self, place: int) -> bool:
        """Whether a place is in the row, asked for, and can be predicted."""
        return self.shift <= place < len(self.ids) and self.asked[place]


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
    sides, at = (one, other), [0, 0]
    ends = [cumulated(side.bytes) for side in sides]
    found: list[Chunk] = []
    for end in sorted(set(ends[0]) & set(ends[1]) | {0}):  # 0: marks before the first byte
        inside: tuple[list[int], list[int]] = [], []
        here: tuple[list[int], list[int]] = [], []
        for s, side in enumerate(sides):
            while at[s] < len(ends[s]) and ends[s][at[s]] <= end:
                if side.marks[at[s]] and ends[s][at[s]] == end:
                    here[s].append(at[s])
                elif side.bytes[at[s]]:
                    inside[s].append(at[s])
                at[s] += 1
        texts = [b"".join(side.bytes[i] for i in some) for side, some in zip(sides, inside, strict=True)]
        if texts[0] and texts[0] == texts[1]:
            found.append((tuple(inside[0]), tuple(inside[1])))
        if [one.marks[i] for i in here[0]] == [other.marks[j] for j in here[1]]:
            found += [((i,), (j,)) for i, j in zip(*here, strict=True)]
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


def laid(sides: tuple[Piece, Piece], spelled: Sequence[Spelling]) -> Chunks:
    """The chunks of one row, as places in the row: those in which every token is predicted on both sides.

    Answers are laid beside each other one by one; a row that has not as many on both sides has no chunk.
    """
    runs, found = [stretches(piece.asked) for piece in sides], []
    if len(runs[0]) != len(runs[1]):
        return ()
    for pair in zip(*runs, strict=True):
        reads = [read([piece.ids[i] for i in run], s) for piece, run, s in zip(sides, pair, spelled, strict=True)]
        led = [any(s.led(piece.ids[i]) for i in first(run, r)) for piece, run, r, s in zip(sides, pair, reads, spelled, strict=True)]
        beside = unled(reads[0], reads[1], led[0]), unled(reads[1], reads[0], led[1])
        found += [(tuple(pair[0][i] for i in a), tuple(pair[1][j] for j in b)) for a, b in walked(*beside)]
    return tuple(c for c in found if all(piece.predicted(place) for places, piece in zip(c, sides, strict=True) for place in places))


def beside(one: Sequence[int], other: Sequence[int], spelled: Sequence[Spelling]) -> Chunks:
    """The shortest stretches of two whole rows that begin and end at the same bytes, as places in the row; none of them holds a mark."""
    ids, reads = (one, other), [read(side, s) for side, s in zip((one, other), spelled, strict=True)]
    led = [any(s.led(side[i]) for i in first(range(len(side)), r)) for side, r, s in zip(ids, reads, spelled, strict=True)]
    chunks = walked(unled(reads[0], reads[1], led[0]), unled(reads[1], reads[0], led[1]))
    return tuple(chunk for chunk in chunks if reads[0].bytes[chunk[0][0]])


def first(run: range, side: Read) -> list[int]:
    """The place of the first token with bytes, if there is one."""
    return [place for place, piece in zip(run, side.bytes, strict=True) if piece][:1]


def merged(chunks: Chunks, ends: Sequence[bool]) -> Chunks:
    """Joins each chunk that does not end well with the one that follows it without a gap on either side; without such a one it stays."""
    out: list[Chunk] = []
    well = True
    for chunk, good in zip(chunks, ends, strict=True):
        if not well and all(before[-1] + 1 == after[0] for before, after in zip(out[-1], chunk, strict=True)):
            last = out.pop()
            chunk = last[0] + chunk[0], last[1] + chunk[1]
        out.append(chunk)
        well = good
    return tuple(out)


class Covered(NamedTuple):
    """How much of some rows lies in chunks."""

    inside: int
    """Bytes of text that do."""
    asked: int
    """Bytes of all text that is asked for."""
    chunks: Chunks


def coverage(rows: Sequence[Row], tokenizers: Sequence[Any], shifts: Sequence[int], where: str) -> list[Covered]:
    """What two tokenizers cut out alike of each row, in bytes of the first one's answers.

    Raises:
        Refused: `tokenizer`, for one that does not keep every byte.
    """
    spelled, out = [exact(tokenizer, where) for tokenizer in tokenizers], []
    for row in rows:
        one, other = (Piece(*encode(row, tokenizer), shift) for tokenizer, shift in zip(tokenizers, shifts, strict=True))
        chunks = laid((one, other), spelled)
        out.append(Covered(*covered(chunks, (one, other), spelled), chunks))
    return out


def covered(chunks: Chunks, sides: tuple[Piece, Piece], spelled: Sequence[Spelling]) -> tuple[int, int]:
    """Bytes of the first side's text that lie in chunks, and bytes of all that is asked of it."""
    piece, known = sides[0], spelled[0].bytes
    size = [len(known[i]) if i < len(known) and asked else 0 for i, asked in zip(piece.ids, piece.asked, strict=True)]
    return sum(size[place] for ours, _ in chunks for place in ours), sum(size)
