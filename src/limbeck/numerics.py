"""The numeric rules of the library, each written once. `p` is always the teacher, `q` the student."""

import contextlib
import functools
import hashlib
import math
import threading
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

RULED_OUT = -1e30
"""Log-probability of an entry that cannot occur: no mass, and yet finite, so that no gradient is NaN."""

ONE_SETTING = threading.RLock()
"""Held while PyTorch's setting of products differs from what it was."""

TOLERANCE: dict[tuple[str, str], tuple[float, float]] = {
    # dtype, kind of check: (relative, absolute)
    ("float32", "value"): (1e-5, 1e-6),
    ("float32", "gradient"): (1e-4, 2e-6),
    ("float32", "zero"): (0.0, 1e-4),
    ("float64", "value"): (1e-10, 1e-12),
    ("float64", "gradient"): (1e-6, 1e-12),
    ("float64", "zero"): (0.0, 1e-10),
    ("bfloat16", "value"): (2e-2, 1e-2),
    ("bfloat16", "gradient"): (5e-2, 2e-2),
}
"""The one table of tolerances; a check that needs a looser one says why beside it."""


def upcast(x: Tensor) -> Tensor:
    """At least float32; float64 stays."""
    return x if x.dtype == torch.float64 else x.float()


@contextlib.contextmanager
def bfloat16_products() -> Iterator[None]:
    """Within it a CPU that has instructions for it multiplies matrices of float32 rounded to bfloat16; sums and what comes out are float32.

    PyTorch knows one setting for all threads: one is within at a time, and what is set for all backends together stays what it was.
    """
    matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    with ONE_SETTING:
        before, matmul.fp32_precision = matmul.fp32_precision, "bf16"
        try:
            yield
        finally:
            matmul.fp32_precision = "none"  # whatever all backends have
            if matmul.fp32_precision != before:
                matmul.fp32_precision = before


def log_probs(logits: Float[Tensor, "*unit vocab"], temperature: float = 1.0) -> Float[Tensor, "*unit vocab"]:
    """Log-softmax in float32 (float64 stays), whatever the dtype of the logits; entries at -inf get a finite floor."""
    log_p = torch.log_softmax(upcast(logits) if temperature == 1 else upcast(logits) / temperature, dim=-1)
    return log_p.clamp(min=RULED_OUT) if log_p.requires_grad else log_p.clamp_(min=RULED_OUT)


def mix(log_a: Float[Tensor, "*unit k"], log_b: Float[Tensor, "*unit k"], share: float | Tensor) -> Float[Tensor, "*unit k"]:
    """Log of `share * a + (1 - share) * b`, by log-sum-exp; a tensor of shares, each above 0 and below 1, is spread over the entries."""
    if isinstance(share, Tensor):
        return torch.logaddexp(log_a + share.log(), log_b + torch.log1p(-share))
    if share in (0, 1):
        return log_a if share else log_b
    return torch.logaddexp(log_a + math.log(share), log_b + math.log1p(-share))


def mixture(
    log_ps: Sequence[Float[Tensor, "*unit k"]], weights: Sequence[float], mean: Literal["arithmetic", "geometric"] = "arithmetic"
) -> Float[Tensor, "*unit k"]:
    """Log of the weighted mean of distributions, by log-sum-exp; of their geometric mean, normalised. The weights make one."""
    weighed = zip(log_ps, weights, strict=True)
    if mean == "arithmetic":
        return functools.reduce(torch.logaddexp, (log_p + math.log(weight) for log_p, weight in weighed))
    return log_probs(functools.reduce(torch.add, (log_p * weight for log_p, weight in weighed)))


def kl(log_p: Float[Tensor, "*unit k"], log_q: Float[Tensor, "*unit k"]) -> Float[Tensor, "*unit"]:
    """KL(p || q) over the last axis, in nats."""
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def log1mexp(x: Float[Tensor, "*unit"]) -> Float[Tensor, "*unit"]:
    """log(1 - exp(x)) for x <= 0, finite at 0 in value and gradient."""
    x = x.clamp(max=-1e-7)
    near = x > -math.log(2)
    return torch.where(near, (-torch.expm1(torch.where(near, x, -1.0))).log(), torch.log1p(-torch.where(near, -1.0, x).exp()))


def top_k(log_p: Float[Tensor, "target vocab"], k: int) -> tuple[Int[Tensor, "target k"], Float[Tensor, "target k"], Float[Tensor, " target"]]:
    """Ids and log-probs of the k best entries, and the log-mass of all others, summed exactly from what is left out."""
    best = log_p.topk(k, -1)
    tail = log_p.scatter(-1, best.indices, -math.inf).logsumexp(-1).clamp(min=RULED_OUT)
    return best.indices, best.values, tail


def draws(
    log_p: Float[Tensor, "target vocab"], k: int, power: float, stream: torch.Generator
) -> tuple[Int[Tensor, "target k"], Float[Tensor, "target k"]]:
    """Ids of k draws with replacement from p to some power, each once, and the log of what each counts for: on average, that is p.

    Drawn on the CPU. Places that are left over have the id 0 and are ruled out.
    """
    log_p = log_p.cpu()
    log_r = log_p if power == 1 else log_probs(log_p * power)
    drawn = torch.multinomial(log_r.exp(), k, replacement=True, generator=stream).sort(-1).values
    place = (drawn.diff(dim=-1, prepend=drawn[:, :1] - 1) != 0).cumsum(-1) - 1
    counts = torch.zeros_like(drawn, dtype=log_p.dtype).scatter_add(-1, place, torch.ones_like(drawn, dtype=log_p.dtype))
    ids = torch.zeros_like(drawn).scatter(-1, place, drawn)
    log_weights = (counts / k).log() if power == 1 else (counts / k).log() + (log_p - log_r).gather(-1, ids)
    return ids, log_weights.clamp(min=RULED_OUT)


def coarsen(log_q: Float[Tensor, "target vocab"], ids: Int[Tensor, "target k"]) -> Float[Tensor, "target k1"]:
    """A distribution seen through the given entries and one bucket for all others (the last column)."""
    return completed(log_q.gather(-1, ids))


def completed(kept: Float[Tensor, "target k"]) -> Float[Tensor, "target k1"]:
    """Log-probabilities of some entries, and of all others together (the last column)."""
    return torch.cat([kept, log1mexp(kept.logsumexp(-1))[:, None]], -1)


def segment_sum(x: Float[Tensor, " unit"], segment: Int[Tensor, " unit"], num: int) -> Float[Tensor, " segment"]:
    """Sum of x in each segment, in float32; entries with segment -1 are left out."""
    keep, x = segment >= 0, upcast(x)
    return x.new_zeros(num).index_add(0, segment[keep], x[keep])


def segment_mean(x: Float[Tensor, " unit"], segment: Int[Tensor, " unit"], num: int) -> Float[Tensor, " segment"]:
    """Mean of x in each segment; an empty segment gives a connected zero."""
    return segment_sum(x, segment, num) / segment_sum(torch.ones_like(x), segment, num).clamp(min=1)


def segment_logsumexp(scores: Float[Tensor, " unit"], segment: Int[Tensor, " unit"], num: int) -> Float[Tensor, " segment"]:
    """Log of the sum of exponentials in each segment, in float32; of an empty one the finite floor."""
    scores = upcast(scores)
    top = scores.new_full((num,), RULED_OUT).scatter_reduce(0, segment, scores.detach(), "amax")
    sums = segment_sum((scores - top[segment]).exp(), segment, num)
    return top + torch.where(sums > 0, sums, 1.0).log()  # where nothing is, the log of 1 has a gradient that is finite


def segment_log_softmax(scores: Float[Tensor, " unit"], segment: Int[Tensor, " unit"], num: int) -> Float[Tensor, " unit"]:
    """Log-softmax over the units of each segment, in float32."""
    return upcast(scores) - segment_logsumexp(scores, segment, num)[segment]


def masked_log_softmax(scores: Float[Tensor, "*unit k"], allowed: Bool[Tensor, "*unit k"]) -> Float[Tensor, "*unit k"]:
    """Log-softmax over the allowed entries; the others get the finite floor."""
    return torch.log_softmax(upcast(scores).masked_fill(~allowed, -math.inf), -1).clamp(min=RULED_OUT)


class Streams:
    """Named random streams: each a pure function of seed, purpose and place, so that nothing random needs a checkpoint."""

    def __init__(self, seed: int):
        self.seed = seed

    def number(self, *place: object) -> int:
        """A whole number below 2^56 that belongs to this place."""
        return int.from_bytes(hashlib.sha256(repr((self.seed, *place)).encode()).digest()[:7], "big")

    def __call__(self, *place: object) -> torch.Generator:
        """A generator on the CPU that belongs to this place."""
        return torch.Generator().manual_seed(self.number(*place))
