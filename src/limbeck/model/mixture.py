"""Several models that speak as one."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from limbeck.model.base import Role
from limbeck.numerics import log_probs, mixture
from limbeck.signals import Head, Logits, Row, View


class Mixture(Role):
    """Says the mean of what its members say, as log-probabilities, over the ids that all of them have.

    Nothing of [all targets, vocab] is made: the final states of the members stand side by side, and the head that mixes runs on as
    many targets as are asked for. An objective's temperature softens the mixture, not each member.
    """

    offers = frozenset({"text", "logits", "label"})
    odds = False

    def __init__(self, members: Sequence[Role], weights: Sequence[float], mean: Literal["arithmetic", "geometric"] = "arithmetic"):
        super().__init__(nn.ModuleList(members))
        first, contexts = members[0], [c for c in (getattr(m, "context", None) for m in members) if c is not None]
        self.weights = tuple(weight / sum(weights) for weight in weights)
        self.mean: Literal["arithmetic", "geometric"] = mean
        self.offers = frozenset.intersection(type(self).offers, *(m.offers for m in members))
        self.ragged = first.ragged
        self.tokenizer, self.shift, self.context = first.tokenizer, first.shift, min(contexts) if contexts else None
        sizes = {m.vocab for m in members if m.vocab is not None}
        known: list[int] = [*sizes, *([] if first.tokenizer is None else [len(first.tokenizer)])]
        self.cut: int | None = min(known) if len(sizes) > 1 else None
        self.vocab = first.vocab if self.cut is None else self.cut

    @property
    def members(self) -> list[Role]:
        return list(self.module)  # type: ignore[arg-type]

    @property
    def speakers(self) -> tuple[Role, ...]:
        return tuple(speaker for member in self.members for speaker in member.speakers)

    def view(self, rows: Sequence[Row]) -> View:
        return self.members[0].view(rows)

    def refuse(self, rows: Sequence[Row]) -> None:
        for member in self.members:
            member.refuse(rows)

    def says(self, view, names, inject):
        first, *others = self.members
        said = first.says(view, names, inject)
        if "logits" in names:
            said["logits"] = self.mixed([said["logits"], *(m.says(view, ("logits",), inject)["logits"] for m in others)])
        return said

    def mixed(self, said: Sequence[Any]) -> Logits:
        """Logits of the members as those of the mixture."""
        lazy = [x if isinstance(x, Logits) else Logits(x, nn.Identity(), x.requires_grad) for x in said]
        widths, kinds, heads = [x.hidden.shape[-1] for x in lazy], [x.hidden.dtype for x in lazy], [self.shared(x.head) for x in lazy]

        def head(hidden: Float[Tensor, "target dim"]) -> Float[Tensor, "target vocab"]:
            parts = zip(heads, hidden.split(widths, -1), kinds, strict=True)
            return mixture([log_probs(one(part.to(kind))) for one, part, kind in parts], self.weights, self.mean)

        return Logits(torch.cat([x.hidden for x in lazy], -1), head, any(x.learns for x in lazy))

    def shared(self, head: Any) -> Any:
        """A member's head, without the ids that not all of them have."""
        if self.cut is None:
            return head
        return head.cut(self.cut) if isinstance(head, Head) else lambda hidden: head(hidden)[..., : self.cut]
