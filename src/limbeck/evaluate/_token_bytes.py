"""How many bytes of text each id stands for: what bits per byte are counted over."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from limbeck.signals import View
from limbeck.text.bytes_of import spelling


class TokenBytes(NamedTuple):
    """Bytes by id; marks (begin, end, turns of a chat) stand for none."""

    sizes: Int[Tensor, " vocab"]
    leads: Int[Tensor, " vocab"]
    """Of these, bytes that the tokenizer itself has put in front where the id begins a text."""

    def at_targets(self, view: View) -> Int[Tensor, " target"]:
        """Bytes of text that each target of a view stands for."""
        ids = view.inputs["ids"].cpu()
        found = self.sizes[ids]
        for piece, own in zip(found.split(view.ragged.tolist()), ids.split(view.ragged.tolist()), strict=True):
            for first in piece.nonzero()[:1, 0].tolist():
                piece[first] -= self.leads[own[first]]
        return found[view.targets.cpu()]


def token_bytes(tokenizer: Any) -> TokenBytes | None:
    """Bytes of each id of a tokenizer; None for one that does not keep every byte, or does not say."""
    found = spelling(tokenizer)
    if found is None:
        return None
    num = range(len(found.bytes))
    return TokenBytes(torch.tensor([len(found.bytes[i]) for i in num]), torch.tensor([int(found.led(i)) for i in num]))
