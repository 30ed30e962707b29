"""How many bytes of text each id stands for: what bits per byte are counted over."""

import json
import re
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from limbeck.signals import View
from limbeck.text.bytes_tokenizer import BYTES, ByteTokenizer

SPACE = "▁"
"""How tokenizers after SentencePiece write a space."""
ONE_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


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
    """Bytes of each id of a tokenizer, by the way its decoder writes bytes; None for one that does not keep every byte, or does not say."""
    if isinstance(tokenizer, ByteTokenizer):
        sizes = (torch.arange(len(tokenizer)) < BYTES).long()
        return TokenBytes(sizes, torch.zeros_like(sizes))
    if tokenizer is None or not getattr(tokenizer, "is_fast", False) or (decoder := tokenizer.backend_tokenizer.decoder) is None:
        return None
    steps = kinds(json.loads(decoder.__getstate__()))
    if not steps & {"ByteLevel", "Metaspace", SPACE}:
        return None
    added, vocabulary = tokenizer.added_tokens_decoder, tokenizer.get_vocab()
    sizes = torch.zeros(max(vocabulary.values(), default=-1) + 1, dtype=torch.long)
    leads = sizes.clone()
    prefix = len(tokenizer.tokenize("a", add_special_tokens=False)[0].encode()) > 1 and "ByteLevel" not in steps
    for token, i in vocabulary.items():
        if i in added:
            sizes[i] = 0 if added[i].special else len(added[i].content.encode())
        elif "ByteLevel" in steps:  # one character of the vocabulary stands for one byte
            sizes[i] = len(token)
        else:
            sizes[i] = 1 if ONE_BYTE.fullmatch(token) else len(token.replace(SPACE, " ").encode("utf-8", "surrogatepass"))
            leads[i] = int(prefix and token.startswith(SPACE))
    sizes[[i for i in tokenizer.all_special_ids if i < len(sizes)]] = 0
    return TokenBytes(sizes, leads)


def kinds(decoder: Any) -> set[str]:
    """Names of the steps of a decoder; one that turns `▁` into a space is named so."""
    found = {SPACE} if decoder.get("type") == "Replace" and SPACE in str(decoder.get("pattern")) else {str(decoder.get("type"))}
    return found.union(*(kinds(step) for step in decoder.get("decoders", ())))
