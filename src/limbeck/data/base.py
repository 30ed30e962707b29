"""Rows in, rows out; then windows in, windows out."""

import hashlib
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field

from limbeck.component import Choice, Component, short
from limbeck.errors import Refused
from limbeck.model.base import Models
from limbeck.numerics import Streams
from limbeck.signals import Batch, Needs, Row

BLOCK = 1024
"""Draws of a mixture are shared out in blocks of so many, so that draw n is found without making all draws before it."""


@dataclass(frozen=True)
class Part:
    """Training rows of one source, and the share of draws that it gets."""

    rows: tuple[Row, ...]
    share: float | None = None
    """None: as many draws as it has groups, also after a later step has cut, packed or dropped rows."""

    @cached_property
    def groups(self) -> tuple[tuple[Row, ...], ...]:
        """Rows that are drawn together."""
        groups: dict[str, list[Row]] = {}
        for row in self.rows:
            groups.setdefault(row.group or row.key, []).append(row)
        return tuple(tuple(rows) for rows in groups.values())


@dataclass(frozen=True)
class Rows:
    """All rows of a run: parts to train on, and held-out rows for evaluations."""

    parts: tuple[Part, ...] = ()
    held_out: tuple[Row, ...] = ()
    provenance: tuple[Mapping[str, Any], ...] = ()
    """What was read: name, revision or hash, licence."""
    notes: tuple[str, ...] = ()
    """One line for everything that was left out or cut."""

    @property
    def train(self) -> tuple[Row, ...]:
        return tuple(row for part in self.parts for row in part.rows)

    def each(self, change: Callable[[Sequence[Row]], Sequence[Row]]) -> "Rows":
        """The same parts with their rows changed; held-out rows alike."""
        return replace(self, parts=tuple(Part(tuple(change(part.rows)), part.share) for part in self.parts), held_out=tuple(change(self.held_out)))

    def without(self, held_out: Sequence[Row]) -> "Rows":
        """The same rows, but none of a document that others hold out."""
        sources, keys = {row.source for row in held_out if row.source}, {row.key for row in held_out}
        parts = tuple(replace(part, rows=tuple(r for r in part.rows if r.source not in sources and r.key not in keys)) for part in self.parts)
        lost = sum(len(a.rows) - len(b.rows) for a, b in zip(self.parts, parts, strict=True))
        return replace(self, parts=parts, notes=(*self.notes, *([f"stage data: {lost:,} rows of held-out documents left out"] if lost else [])))

    def plain(self) -> dict[str, Any]:
        """The training rows as plain data, which `of` reads."""
        parts = [{"share": part.share, "rows": [vars(row) for row in part.rows]} for part in self.parts]
        return {"parts": parts, "notes": list(self.notes)}

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> "Rows":
        parts = (Part(tuple(Row(**row) for row in part["rows"]), part["share"]) for part in plain["parts"])
        return cls(tuple(parts), notes=tuple(plain["notes"]))

    def draw(self, first: int, num: int, streams: Streams) -> list[Row]:
        """Rows of the draws first, first + 1, ...: each a group of rows. A pure function of its arguments: resuming needs no state.

        Each part is passed through in an order of its own, shuffled anew each time.
        """
        out: list[Row] = []
        orders: dict[tuple[int, int], list[int]] = {}
        for n in range(first, first + num):
            part, i = self.place(n, streams)
            groups = self.parts[part].groups
            turn = part, i // len(groups)
            if turn not in orders:
                orders[turn] = torch.randperm(len(groups), generator=streams("order", *turn)).tolist()
            out += groups[orders[turn][i % len(groups)]]
        return out

    def place(self, n: int, streams: Streams) -> tuple[int, int]:
        """The part that draw n takes, and how many draws that part has had before."""
        if len(self.parts) == 1:
            return 0, n
        block, place = divmod(n, BLOCK)
        counts = [c * block for c in self.in_block]
        picks = [part for part, count in enumerate(self.in_block) for _ in range(count)]
        order = torch.randperm(BLOCK, generator=streams("mix", block)).tolist()
        mine = picks[order[place]]
        return mine, counts[mine] + sum(picks[order[i]] == mine for i in range(place))

    @cached_property
    def in_block(self) -> list[int]:
        """Draws of each part in a block: exact shares, rounded so that they add up."""
        shares = [len(part.groups) if part.share is None else part.share for part in self.parts]
        ends = [round(BLOCK * x / sum(shares)) for x in accumulate(shares)]
        return [b - a for a, b in zip([0, *ends], ends, strict=False)]


@dataclass(frozen=True)
class Place:
    """All that data may depend on besides its own memory."""

    models: Models
    """The roles; while rows are made, only their tokenizers and configs can be relied on."""
    streams: Streams
    window: int = 0
    """Windows drawn so far by this turn."""
    base: str = "."
    """Folder that relative paths start from: that of the recipe."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    live: bool = False
    """The roles can speak, as they are at the beginning of a stage; `window` is then the number of the stage."""


class Step(Component):
    """Makes or changes rows once, before the run; or each window, before it is counted and cut."""

    room: ClassVar[str] = "data"
    makes: ClassVar[str] = ""
    """What the rows that it makes are: text, images, rankings; empty: what they were before. `limbeck list recipe --have images` asks it."""
    inputs: ClassVar[tuple[str, ...]] = ()
    """Inputs of rows without which it cannot change a window; none: it reads whatever there is."""

    @property
    def needs(self) -> Needs:
        """What roles must be able to say while data is made: `text` to write answers."""
        return {}

    def rows(self, rows: Rows, place: Place) -> Rows:
        """All rows, made or changed; a source adds its own to those that come in."""
        return rows

    def window(self, batch: Batch, place: Place, memory: Any) -> Batch:
        """One window, changed; `memory` is what `build` made: the state that a checkpoint keeps."""
        return batch


class Source(Step):
    """Rows from somewhere, split into rows to train on and held-out ones by a hash of their document."""

    makes: ClassVar[str] = "text"
    names_classes: ClassVar[bool] = False
    """The tag of a row with a `label` is the name of its class; held-out files are numbered as those that are trained on."""

    split: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of documents that is held out for evaluation, chosen by hash of their name or content."""
    held_out: str | None = None
    """A file of the same format to evaluate on; then all of the source is trained on."""
    licence: str | None = None
    """Licence of the data, for the model card; unknown where it is not said."""

    @abstractmethod
    def read(self, place: Place, path: str | None) -> tuple[list[Row], Mapping[str, Any], list[str]]:
        """Rows with `source` set to their document, provenance, notes. `path` replaces the path of the source (held-out file)."""

    def rows(self, rows: Rows, place: Place) -> Rows:
        found, provenance, notes = self.read(place, None)
        if self.held_out is None:
            held = [row for row in found if held_out(row.source, self.split)]
            train = [row for row in found if not held_out(row.source, self.split)]
        else:
            held, more, others = self.read(place, self.held_out)
            train, provenance, notes = found, {**provenance, "held_out": more}, [*notes, *others]
            held = numbered_as(found, held, self.kind) if self.names_classes else held  # type: ignore[attr-defined]
        if self.names_classes:
            check_numbers((*rows.train, *rows.held_out), (*train, *held), self.kind)  # type: ignore[attr-defined]
        parts = (*rows.parts, Part(tuple(train))) if train else rows.parts
        return replace(
            rows,
            parts=parts,
            held_out=(*rows.held_out, *(replace(row, split="held_out") for row in held)),
            provenance=(*rows.provenance, provenance),
            notes=(*rows.notes, *notes),
        )


def held_out(name: str, share: float) -> bool:
    """Whether a document of this name is held out: by hash, so that adding documents moves no other."""
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[:8], "big") < share * 2**64


def numbered_as(trained: Sequence[Row], held: Sequence[Row], kind: str) -> list[Row]:
    """Held-out rows whose classes have the numbers that rows which are trained on give them by name; one that is changed has another key.

    Raises:
        Refused: `label`, for a class that is not trained on, or a name with two numbers.
    """
    numbers = {(row.tag, row.content["label"]) for row in trained if "label" in row.content}
    of, out = dict(sorted(numbers)), []
    for row in held:
        if "label" in row.content and (row.tag not in of or sum(name == row.tag for name, _ in numbers) > 1):
            got = short(row.tag) + (", of which path has several" if row.tag in of else "")
            do = "name the held-out classes as those of path, or remove what is of none of them"
            raise Refused("label", f"data {kind}  held_out", f"classes that path has: {short(', '.join(of))}", got, do)
        same = "label" not in row.content or row.content["label"] == of[row.tag]
        out.append(row if same else replace(row, key=key_of(row.key, str(of[row.tag])), content={**row.content, "label": of[row.tag]}))
    return out


def check_numbers(before: Sequence[Row], new: Sequence[Row], kind: str) -> None:
    """Checks that rows of another source call no class of these rows by another name.

    Raises:
        Refused: `label`, where they do.
    """
    names = {row.content["label"]: row.tag for row in before if row.tag and isinstance(row.content.get("label"), int)}
    for row in new:
        label = row.content.get("label")
        if isinstance(label, int) and names.get(label, row.tag) != row.tag:
            got = f"{label} is {short(names[label])} in a source before, {short(row.tag)} in this one"
            do = "put all classes below one path, or give both sources the same names of classes"
            raise Refused("label", f"data {kind}", "the same number for the same class in all sources", got, do)


def key_of(*content: str) -> str:
    """A stable name for a row, from its content."""
    return hashlib.sha256("\0".join(content).encode("utf-8", "surrogatepass")).hexdigest()[:24]


AnyStep = Annotated[Step, Choice()]
