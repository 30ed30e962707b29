"""The nouns that travel: Row, View, Batch, Logits, TopK, Signals, Loss.

Every tensor has a *unit* on its first axis, and every unit knows its row:

- row: a document, an image, a sample
- pos: a real position of a row (there is no padding anywhere)
- instant: one number of a waveform, from many of which a position is made
- target: one prediction that is asked for: a next token, a class
- patch: a position of a row that stands for a piece of its image
- chunk: an aligned stretch of targets, or of positions
- group: rows that must not be parted: a pair, a list of candidates

So anything can be selected and cut by rows, without knowing what it is.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from limbeck.numerics import bfloat16_products

VOCABULARY: dict[str, tuple[str, str]] = {
    # name: (unit, further axes). `hidden.3` is looked up as `hidden`. `dim` is a role's own width; other axes are shared by roles.
    "ids": ("pos", ""),
    "original": ("pos", ""),  # ids as they were before some were hidden
    "seen": ("pos", ""),  # False where attention and mixers pass over a position as if it were not there
    "asked": ("pos", ""),  # True where the position is a target
    "pixels": ("row", "channel height width"),
    "wave": ("instant", ""),
    "front": ("pos", "dim"),  # what convolutions make of a waveform, before the first block
    "features": ("row", "dim"),
    "stage": ("row", "dim height width"),  # a map of the image, also of tokens that stand on a grid
    "noise": ("row", "channel"),
    "label": ("target", ""),  # a class; of mixed rows a distribution over the classes, with the further axis `vocab`
    "pitch": ("target", ""),  # of a frame in Hz; 0 where there is none
    "caption": ("row", "place dim"),  # what a frozen encoder says of a text that goes with the row, at as many places for each row
    "class": ("row", ""),  # of a row whose targets, if it has any, are others
    "logits": ("target", "vocab"),
    "top_logits": ("target", "k"),
    "sampled_logits": ("target", "k"),
    "target_logprob": ("target", ""),
    "boundary_logprob": ("target", ""),  # that a word has ended before the target: of all ids that begin with a space, and of marks
    "chunk_logprob": ("chunk", ""),
    "lead_logprob": ("chunk", ""),  # of a chunk without its last target
    "chunk_logits": ("chunk", "vocab"),  # at its first target, over what both vocabularies spell alike
    "last_logits": ("chunk", "vocab"),  # at its last target, over all of the role's own entries
    "rest_logits": ("chunk", "vocab"),  # the same over what the other vocabulary lacks, then one entry for all that both have
    "hidden": ("pos", "dim"),
    "chunk_hidden": ("chunk", "dim"),  # the mean over its positions
    "input": ("pos", "dim"),
    "mixer": ("pos", "dim"),
    "query": ("pos", "dim"),
    "key": ("pos", "dim"),
    "value": ("pos", "dim"),
    "mixing": ("pos", "head past"),  # what each position of the row weighs, from the row's first on; zeros up to the longest row
    "head_draw": ("row", "k"),  # numbers below 1, by which heads are picked: the same ones for all rows
    "time": ("row", ""),  # of a schedule of noise
    "guidance_scale": ("row", ""),  # in the convention `extra`: 0 is none
    "time_draw": ("row", "k"),  # numbers below 1 that become times, rungs, scales
    "sample": ("row", "channel"),  # a noisy one; of images also by height and width, as all of these:
    "clean": ("row", "channel"),
    "denoised": ("row", "channel"),
    "epsilon": ("row", "channel"),
    "velocity": ("row", "channel"),
    "made": ("row", "channel"),  # a sample that a role has made of noise, which may be noisy still
    "kept": ("row", ""),  # factor of that sample in a noisier one, and of the fresh noise beside it:
    "added": ("row", ""),
    "flow": ("row", "channel"),  # the velocity that sample and noise have by themselves
    "stein_score": ("row", "channel"),  # gradient of the log-density
    "score": ("row", ""),
    "patch_features": ("patch", "dim"),  # of the vision tower: what the connector hears
    "patch_embedding": ("patch", "dim"),  # what the connector says: a visual token, as the language part hears it
    "patch_hidden": ("patch", "dim"),  # `hidden` at the positions of the image
    "patch_logits": ("patch", "vocab"),  # of the head at these positions; not shifted: nothing is predicted there
    "segment": ("pos", ""),  # 0 or 1: of which of the two texts of a row it is
    "embedding": ("row", "dim"),
    "query_embedding": ("row", "dim"),
    "relevance": ("row", ""),  # as labelled: 0 is none
    "rank": ("row", ""),  # place in the list that the data came with: 1 is best
    "given_score": ("row", ""),  # that the data came with
    "masked": ("pos", ""),  # hidden from a model that fills in
    "mask_weight": ("pos", ""),  # what a masked position counts for: one over the probability with which it was masked
    "target_weight": ("target", ""),  # the same, of targets
    "maskable": ("row", ""),  # how many positions of the row might have been masked
    "block_length": ("row", ""),  # positions that are filled in together
    "embedding_noise": ("row", "k"),  # its size in standard deviations of the embedding, and the number that it is drawn from
}
"""The one table of signals and inputs: a new kind is one line here, reviewed like a change to `numerics`."""

Needs = Mapping[str, tuple[str, ...]]
"""Role (or seat) -> names of signals. `a|b` means a, or b in its place."""


def unit_of(name: str) -> str:
    """The unit of a signal or input: `hidden.3` is on `pos`."""
    return VOCABULARY[name.split("|")[0].split(".")[0]][0]


class Loss(NamedTuple):
    """A sum and the number of units summed. Only the loop divides."""

    total: Float[Tensor, ""]
    count: int


@dataclass(frozen=True, eq=False)
class Row:
    """One row of data, before any tokenizer has seen it."""

    key: str
    """A stable name, from the content: caches keep what was said about it. Whoever changes a row changes its key."""
    content: Mapping[str, Any]
    """`text`, `messages`, `pixels`, `label`, ..."""
    tag: str = ""
    """What it is: chosen, rejected, a domain, ..."""
    group: str = ""
    """Rows with the same name here are never parted; empty: the row is alone."""
    split: str = "train"
    """`train`, or `held_out`: the rows that only evaluations see."""
    source: str = ""
    """The document it was cut from: standard errors are over these."""

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Row):
            return NotImplemented
        mine, theirs = ({**vars(row), "content": None} for row in (self, other))
        return mine == theirs and same_content(self.content, other.content)

    __hash__ = None  # type: ignore[assignment]


def same_content(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
    """Whether two contents are alike, tensors entry by entry."""

    def same(a: Any, b: Any) -> bool:
        if isinstance(a, Tensor) or isinstance(b, Tensor):
            return isinstance(a, Tensor) and isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
        return a == b

    return mine.keys() == theirs.keys() and all(same(a, theirs[name]) for name, a in mine.items())


def shaped(logits: Float[Tensor, "target vocab"], scale: float, cap: float | None) -> Float[Tensor, "target vocab"]:
    """What some families do to logits: a factor, then a soft cap."""
    logits = logits if scale == 1 else logits * scale
    return logits if cap is None else torch.tanh(logits / cap) * cap


@dataclass(frozen=True)
class Head:
    """A linear map to logits with what some families do to them: a factor, a soft cap. A head that is more than this stays a function."""

    weight: Float[Tensor, "vocab dim"]
    bias: Float[Tensor, " vocab"] | None = None
    scale: float = 1.0
    cap: float | None = None

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.weight,) if self.bias is None else (self.weight, self.bias)

    def __call__(self, hidden: Float[Tensor, "target dim"]) -> Float[Tensor, "target vocab"]:
        """In the precision of the head: a cache may keep its states in another one."""
        return shaped(torch.nn.functional.linear(hidden.to(self.weight.dtype), self.weight, self.bias), self.scale, self.cap)

    def into(self, hidden: Float[Tensor, "target dim"], out: Float[Tensor, "target vocab"]) -> Float[Tensor, "target vocab"]:
        """The same into given memory, in the precision of the head; no gradients."""
        hidden = hidden.to(self.weight.dtype)
        if self.bias is None:
            torch.mm(hidden, self.weight.mT, out=out)
        else:
            torch.addmm(self.bias, hidden, self.weight.mT, out=out)
        if self.scale != 1:
            out.mul_(self.scale)
        return out if self.cap is None else out.div_(self.cap).tanh_().mul_(self.cap)

    def back(self, gradient: Float[Tensor, "target vocab"], logits: Float[Tensor, "target vocab"]) -> Float[Tensor, "target vocab"]:
        """The gradient by what the matrix gives, from that by the logits; it may be changed in place."""
        if self.cap is not None:
            gradient = gradient * (1 - (logits / self.cap) ** 2)
        return gradient if self.scale == 1 else gradient * self.scale

    def of(self, weight: Tensor, bias: Tensor | None) -> "Head":
        """The same head with other tensors."""
        return replace(self, weight=weight, bias=bias)

    def at(self, ids: slice | Int[Tensor, " some"]) -> "Head":
        """The head of some ids, in their order."""
        return self.of(self.weight[ids], None if self.bias is None else self.bias[ids])

    def cut(self, num: int) -> "Head":
        """The head of the first so many ids."""
        return self.at(slice(num))


def products(coarse: bool) -> AbstractContextManager[None]:
    """What products are made within: where they may be coarse, in bfloat16 if that is to be had."""
    return bfloat16_products() if coarse else nullcontext()


@dataclass(frozen=True)
class Logits:
    """Logits that are not computed until asked for: the final hidden states at the targets, and the head."""

    hidden: Float[Tensor, "target dim"]
    head: Callable[[Tensor], Tensor]
    learns: bool
    """Whether gradients were on when the role spoke: the head runs later, and must not forget it."""
    ids: Int[Tensor, " vocab"] | None = None
    """The entries that are meant, in their order; None: all of them."""
    coarse: bool = False
    """Whether the states were kept in so few bits that products in bfloat16 will do."""

    def __len__(self) -> int:
        return len(self.hidden)

    def __getitem__(self, i: Any) -> "Logits":
        return replace(self, hidden=self.hidden[i])

    @property
    def selected(self) -> Callable[[Tensor], Tensor]:
        """The head of the entries that are meant: a `Head`, where the whole one is."""
        head, ids = self.head, self.ids
        if ids is None:
            return head
        return head.at(ids) if isinstance(head, Head) else lambda hidden: head(hidden)[..., ids]

    def dense(self) -> Float[Tensor, "target vocab"]:
        with torch.set_grad_enabled(self.learns and torch.is_grad_enabled()), products(self.coarse):
            return self.selected(self.hidden)


@dataclass(frozen=True)
class TopK:
    """A truncated distribution: the k best log-probs and the exact log-mass of all the others.

    As `sampled_logits`: ids that were drawn and the log of what each counts for, an estimate of all of it; the tail is ruled out.
    """

    ids: Int[Tensor, "target k"]
    log_probs: Float[Tensor, "target k"]
    tail: Float[Tensor, " target"]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: Any) -> "TopK":
        return TopK(self.ids[i], self.log_probs[i], self.tail[i])


def joined(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Signals of parts that follow each other, as one: lazy logits stay lazy."""

    def one(first: Any, *rest: Any) -> Any:
        if isinstance(first, Logits):
            return replace(first, hidden=torch.cat([first.hidden, *(x.hidden for x in rest)]))
        if isinstance(first, TopK):
            return TopK(*(torch.cat([getattr(x, name) for x in (first, *rest)]) for name in ("ids", "log_probs", "tail")))
        return torch.cat([first, *rest])

    return {name: one(*(part[name] for part in parts)) for name in parts[0]}


def dense(logits: Any) -> Float[Tensor, "target vocab"]:
    """Lazy or plain logits as one tensor."""
    return logits.dense() if isinstance(logits, Logits) else logits


@dataclass(frozen=True)
class View:
    """What one role gets to see. Text is ragged (`lengths` says where rows end), never padded: layout is the role's business."""

    inputs: Mapping[str, Tensor]
    lengths: Int[Tensor, " row"] | None = None
    """Positions of each row; None: rows have no positions, and one target each (an image and its class)."""
    asked: Bool[Tensor, " pos"] | None = None
    """Positions to be predicted: the answers of a chat, the masked words, ...; the first of a row only where `shift` is 0."""
    shift: int = 1
    """A target is predicted so many positions before it stands: 1 for causal models, 0 for masked ones."""
    chunk_of: Int[Tensor, " target"] | None = None
    """Written by an alignment: the chunk each target belongs to, or -1."""
    chunk_row: Int[Tensor, " chunk"] | None = None
    """Written by an alignment: the row of each chunk."""
    chunk_end: Int[Tensor, " target"] | None = None
    """Written by an alignment that asks whether words end with chunks: the chunk that ends just before each target, or -1."""
    chunk_at: Int[Tensor, " pos"] | None = None
    """Written by an alignment of positions: the chunk each position belongs to, or -1."""
    patches: Bool[Tensor, " pos"] | None = None
    """Positions that stand for pieces of the row's image; None: rows have no such positions."""
    shared: Int[Tensor, " vocab"] | None = None
    """Written by an alignment: the ids of what both vocabularies spell alike, in an order that both sides share."""
    instants: Int[Tensor, " row"] | None = None
    """Numbers of the waveform of each row, where positions are made of one."""

    @property
    def device(self) -> torch.device:
        return next(iter(self.inputs.values())).device

    @property
    def num_rows(self) -> int:
        return len(next(iter(self.inputs.values()))) if self.lengths is None else len(self.lengths)

    @property
    def offsets(self) -> Int[Tensor, " pos"]:
        """Place of each position in its row."""
        lengths = self.ragged
        starts = lengths.cumsum(0) - lengths
        return torch.arange(int(lengths.sum()), device=lengths.device) - starts.repeat_interleave(lengths)

    @property
    def ragged(self) -> Int[Tensor, " row"]:
        assert self.lengths is not None, "these rows have no positions"
        return self.lengths

    @property
    def targets(self) -> Int[Tensor, " target"]:
        """The positions that are to be predicted, as indices into all positions."""
        asked = self.offsets >= self.shift
        return (asked if self.asked is None else asked & self.asked).nonzero()[:, 0]

    def span(self, name: Literal["vision", "prompt", "response"]) -> Bool[Tensor, " pos"]:
        """The positions of a span: of the image; of what is to be predicted; of all the rest, which is given."""
        response = torch.ones_like(self.offsets, dtype=torch.bool) if self.asked is None else self.asked
        vision = torch.zeros_like(response) if self.patches is None else self.patches
        return {"vision": vision, "response": response, "prompt": ~(vision | response)}[name]

    def rows(self, unit: str) -> Int[Tensor, " unit"]:
        """The row of each unit."""
        every = torch.arange(self.num_rows, device=self.device)
        if unit == "row" or self.lengths is None and unit == "target":
            return every
        if unit == "chunk":
            assert self.chunk_row is not None, "no alignment has made chunks"
            return self.chunk_row
        if unit == "instant":
            assert self.instants is not None, "these rows have no waveform"
            return every.repeat_interleave(self.instants)
        of_pos = every.repeat_interleave(self.ragged)
        if unit == "patch":
            assert self.patches is not None, "these rows hold no images among their positions"
            return of_pos[self.patches]
        return of_pos if unit == "pos" else of_pos[self.targets]

    @property
    def units(self) -> tuple[str, ...]:
        more = {"pos": self.lengths, "instant": self.instants, "chunk": self.chunk_row, "patch": self.patches}
        return ("row", "target", *(unit for unit, there in more.items() if there is not None))

    def at(self, rows: Int[Tensor, " some"]) -> "View":
        """The view of some rows, in their order."""
        new = renumber(rows, self.num_rows)
        keep = {unit: torch.isin(self.rows(unit), rows) for unit in self.units}
        chunk: dict[str, Tensor] = {}
        if self.chunk_row is not None and self.chunk_of is not None:
            kept = torch.cat([keep["chunk"].cumsum(0) - 1, torch.tensor([-1], device=self.device)])
            chunk = {"chunk_row": new[self.chunk_row[keep["chunk"]]], "chunk_of": kept[self.chunk_of[keep["target"]]]}
            chunk |= {} if self.chunk_end is None else {"chunk_end": kept[self.chunk_end[keep["target"]]]}
            chunk |= {} if self.chunk_at is None else {"chunk_at": kept[self.chunk_at[keep["pos"]]]}
        return replace(
            self,
            inputs={name: x[keep[unit_of(name)]] for name, x in self.inputs.items()},
            lengths=None if self.lengths is None else self.lengths[rows],
            asked=None if self.asked is None else self.asked[keep["pos"]],
            instants=None if self.instants is None else self.instants[rows],
            patches=None if self.patches is None else self.patches[keep["pos"]],
            **chunk,
        )

    def to(self, device: torch.device | str) -> "View":
        """The same view on a device."""
        names = ("lengths", "asked", "instants", "patches", "chunk_of", "chunk_row", "chunk_end", "chunk_at", "shared")
        tensors = {name: getattr(self, name) for name in names}
        moved = {name: None if x is None else x.to(device) for name, x in tensors.items()}
        return replace(self, inputs={name: x.to(device) for name, x in self.inputs.items()}, **moved)


@dataclass(frozen=True)
class Signals:
    """What a role says. Indexed by signal name; cut by rows."""

    values: Mapping[str, Any]
    rows: Mapping[str, Int[Tensor, " unit"]]
    """Unit -> the row of each."""
    tags: tuple[str, ...]
    group: Int[Tensor, " row"]
    weights: Float[Tensor, " row"]

    def __getitem__(self, name: str) -> Any:
        return next(self.values[n] for n in name.split("|") if n in self.values)

    def num(self, unit: str) -> int:
        return len(self.group.unique()) if unit == "group" else len(self.rows[unit])

    def at(self, rows: Int[Tensor, " some"]) -> "Signals":
        """The signals of some rows, in their order."""
        keep = {unit: torch.isin(of, rows) for unit, of in self.rows.items()}
        new = renumber(rows, len(self.tags))
        return Signals(
            {name: x[keep[unit_of(name)]] for name, x in self.values.items()},
            {unit: new[of[keep[unit]]] for unit, of in self.rows.items()},
            tuple(self.tags[i] for i in rows.tolist()),
            renamed(self.group[rows]),
            self.weights[rows],
        )

    def on(self, tag: str | None) -> "Signals":
        """The signals of the rows with a tag; None: all of them."""
        return self if tag is None else self.at(tagged(self.tags, tag, self.group.device))


@dataclass(frozen=True)
class Batch:
    """Rows, as each role sees them. One batch is a whole window, final before it is counted; the loop cuts it."""

    views: Mapping[str, View]
    """Role -> view; a role without one sees the student's."""
    tags: tuple[str, ...]
    group: Int[Tensor, " row"]
    keys: tuple[str, ...]
    weights: Float[Tensor, " row"]
    """Of each row, for curricula; 1 where nothing else is said."""
    said: Mapping[str, Signals] = field(default_factory=dict)
    """What frozen roles have said already: from a cache, or because an alignment had to look."""

    def view(self, role: str) -> View:
        return self.views[role] if role in self.views else self.views["student"]

    def with_inputs(self, role: str, **inputs: Tensor) -> "Batch":
        """The batch with further inputs for one role, or other values of those it has."""
        view = self.view(role)
        return replace(self, views={**self.views, role: replace(view, inputs={**view.inputs, **inputs})})

    def signals(self, role: str, values: Mapping[str, Any]) -> Signals:
        """What a role says, with the rows of every unit of its view."""
        view = self.view(role)
        return Signals(values, {unit: view.rows(unit) for unit in view.units}, self.tags, self.group, self.weights)

    def count(self, unit: str, role: str, tag: str | None = None) -> int:
        """How many units an objective will sum, without running any model."""
        rows = torch.arange(len(self.tags), device=self.group.device) if tag is None else tagged(self.tags, tag, self.group.device)
        return len(self.group[rows].unique()) if unit == "group" else int(torch.isin(self.view(role).rows(unit), rows).sum())

    def at(self, rows: Int[Tensor, " some"]) -> "Batch":
        """Some rows, in their order."""
        pick = rows.tolist()
        return Batch(
            {role: view.at(rows) for role, view in self.views.items()},
            tuple(self.tags[i] for i in pick),
            renamed(self.group[rows]),
            tuple(self.keys[i] for i in pick),
            self.weights[rows],
            {role: said.at(rows) for role, said in self.said.items()},
        )

    def cut(self, parts: int) -> list["Batch"]:
        """Exactly so many micro-batches, some perhaps empty (ranks must run equally many); rows of one group stay together."""
        return [self.at(torch.isin(self.group, some).nonzero()[:, 0]) for some in self.group.unique().tensor_split(parts)]

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on a device; what has been said already stays where it is until it is cut."""
        return replace(
            self, views={role: view.to(device) for role, view in self.views.items()}, group=self.group.to(device), weights=self.weights.to(device)
        )


def renumber(rows: Int[Tensor, " some"], num: int) -> Int[Tensor, " row"]:
    """Old row -> new row, or -1; rows are kept in their order, or else tensors and indices would part company."""
    assert (rows.diff() > 0).all(), "rows must be ascending"
    return torch.full((num,), -1, device=rows.device).index_copy(0, rows, torch.arange(len(rows), device=rows.device))


def renamed(group: Int[Tensor, " row"]) -> Int[Tensor, " row"]:
    """The same groups, numbered from 0."""
    return group.unique(return_inverse=True)[1]


def tagged(tags: tuple[str, ...], tag: str, device: torch.device | str) -> Int[Tensor, " some"]:
    """The rows that carry a tag."""
    return torch.tensor([i for i, t in enumerate(tags) if t == tag], dtype=torch.long, device=device)
