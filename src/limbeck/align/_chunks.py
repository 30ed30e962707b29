"""What alignments of chunks share: what a role says of its targets, chunk by chunk."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from limbeck.errors import Refused
from limbeck.model.base import Models
from limbeck.numerics import segment_sum, upcast
from limbeck.signals import Logits, Signals, View
from limbeck.text.bytes_of import Spelling, exact, spelled_alike

MADE_OF = {
    "chunk_logprob": "target_logprob",
    "lead_logprob": "target_logprob",
    "chunk_logits": "logits",
    "last_logits": "logits",
    "rest_logits": "logits",
}
"""Signals of chunks, and what of a role they are made of."""
KNOWN: WeakKeyDictionary[Any, tuple[Spelling, Spelling, Tensor]] = WeakKeyDictionary()
"""Tokenizer of the one side -> what both spelled when asked, and the ids that they share."""


class Ends(NamedTuple):
    """Targets of chunks."""

    first: Int[Tensor, " chunk"]
    last: Int[Tensor, " chunk"]


def ends(chunk_of: Int[Tensor, " target"], num: int) -> Ends:
    """The first and the last target of each chunk; what stands between them need not be in it."""
    places = (chunk_of >= 0).nonzero()[:, 0]
    of, start = chunk_of[places], torch.zeros(num, dtype=torch.long, device=places.device)
    return Ends(*(start.scatter_reduce(0, of, places, how, include_self=False) for how in ("amin", "amax")))


def pooled(view: View, said: Signals) -> Signals:
    """What a role says, and beside it the same of chunks, as far as it can be made of that."""
    assert view.chunk_of is not None and view.chunk_row is not None, "indexed before it is used"
    num, values = len(view.chunk_row), dict(said.values)
    if view.chunk_at is not None:
        states = {f"chunk_{name}": mean(x, view.chunk_at, num) for name, x in values.items() if name.startswith("hidden.")}
        return replace(said, values={**values, **states}, rows={**said.rows, "chunk": view.chunk_row})
    first, last = ends(view.chunk_of, num)
    if "target_logprob" in values:
        whole = segment_sum(values["target_logprob"], view.chunk_of, num)
        if view.chunk_end is not None and "boundary_logprob" in values:
            whole = whole + segment_sum(values["boundary_logprob"], view.chunk_end, num)
        values["chunk_logprob"] = whole
        values["lead_logprob"] = segment_sum(values["target_logprob"], view.chunk_of.index_fill(0, last, -1), num)
    if "logits" in values:
        x = values["logits"]
        logits = x if isinstance(x, Logits) else Logits(x, nn.Identity(), x.requires_grad)
        values["last_logits"] = logits[last]
        if view.shared is not None:
            values["chunk_logits"] = replace(logits[first], ids=view.shared)
            values["rest_logits"] = replace(logits[last], head=rest(logits, view.shared))
    return replace(said, values=values, rows={**said.rows, "chunk": view.chunk_row})


def mean(x: Float[Tensor, "pos dim"], chunk: Int[Tensor, " pos"], num: int) -> Float[Tensor, "chunk dim"]:
    """The mean over the positions of each chunk."""
    keep = chunk >= 0
    sums, sizes = (upcast(y).new_zeros(num, y.shape[-1]).index_add(0, chunk[keep], upcast(y)[keep]) for y in (x, torch.ones_like(x[:, :1])))
    return (sums / sizes).to(x.dtype)


def rest(logits: Logits, shared: Int[Tensor, " some"]) -> Any:
    """A head of the entries that are not shared, and one for all of those that are: the softmax of what is left stays what it was."""

    def head(hidden: Float[Tensor, "chunk dim"]) -> Float[Tensor, "chunk vocab"]:
        every = upcast(logits.head(hidden))
        alone = torch.ones(every.shape[-1], dtype=torch.bool, device=every.device).index_fill(0, shared, False)
        return torch.cat([every[:, alone], every[:, shared].logsumexp(-1, keepdim=True)], -1)

    return head


def both_sides(align: Any, models: Models) -> list[Any]:
    """The tokenizers of the two roles that an alignment lays side by side.

    Raises:
        Refused: `role`, where there is no role of such a name.
    """
    for role in (align.student, align.teacher):
        if role not in models:
            raise Refused("role", f"align.{align.kind}", f"one of {', '.join(models)}", role, "change the name")
    return [models[role].tokenizer for role in (align.student, align.teacher)]


def shared_ids(models: Models, roles: Sequence[str], where: str) -> tuple[Int[Tensor, " vocab"], Int[Tensor, " vocab"]]:
    """Ids of two roles that spell the same bytes or are marks of one purpose, in one order.

    Raises:
        Refused: `tokenizer`, where one does not say its bytes; `vocab`, where nothing is spelled alike.
    """
    tokenizers = [models[role].tokenizer for role in roles]
    one, other = (exact(tokenizer, f"{where}: tokenizer of {role}") for tokenizer, role in zip(tokenizers, roles, strict=True))
    known = KNOWN.get(tokenizers[0])
    if known is None or known[0] is not one or known[1] is not other:
        known = KNOWN[tokenizers[0]] = one, other, torch.tensor(spelled_alike(one, other), dtype=torch.long, device="cpu").view(-1, 2)
    pairs = known[2]
    for side, role in enumerate(roles):
        pairs = pairs[pairs[:, side] < (models[role].vocab or len(models[role].tokenizer))]
    if not len(pairs):
        got = f"none of {len(one.bytes):,} and {len(other.bytes):,} entries"
        raise Refused("vocab", where, "vocabularies that spell something alike", got, "use align: by_position with objective: sorted_l1")
    return pairs[:, 0], pairs[:, 1]
