"""The best entries of what a server says, and the exact rest."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from limbeck.errors import Failed
from limbeck.numerics import RULED_OUT, log1mexp

OVER = 1e-3
"""Probabilities of a float16 model may sum to so much more than one."""


class Best(NamedTuple):
    """The k best entries at each place of a text, and the log-mass of all others."""

    ids: Int[Tensor, "pos k"]
    log_probs: Float[Tensor, "pos k"]
    tail: Float[Tensor, " pos"]


def best(entries: Sequence[Mapping[int, float]], k: int, size: int, where: str) -> Best:
    """The k best entries of each position and the mass of all others; what cannot be a distribution is refused."""
    short = min(map(len, entries), default=k)
    if short < k:
        raise Failed("k", where, f"{k} entries at each token", f"{short} that name one id each", "a smaller k, or a server that names ids (vLLM)")
    ordered = [sorted(one.items(), key=lambda entry: -entry[1])[:k] for one in entries]
    ids = torch.tensor([[i for i, _ in one] for one in ordered], dtype=torch.long, device="cpu").view(-1, k)
    log_probs = torch.tensor([[value for _, value in one] for one in ordered], dtype=torch.float64, device="cpu").view(-1, k)
    if len(ids) and int(ids.max()) >= size:
        raise Failed("answer", where, f"ids below {size:,}", f"{int(ids.max()):,}", "correct teacher.tokenizer, or look at the server")
    mass = log_probs.logsumexp(-1)
    if len(mass) and float(mass.max()) > OVER:
        got = f"{float(mass.max().exp()):.4f}"
        raise Failed("answer", where, "probabilities that sum to at most 1", got, "look at the server: does it say logits?")
    return Best(ids, log_probs.clamp(RULED_OUT, 0).float(), log1mexp(mass.clamp(max=0)).clamp(min=RULED_OUT).float())
