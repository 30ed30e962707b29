"""The changes that matter, from one model into another."""

from collections.abc import Iterator
from typing import Literal

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from limbeck.merge._select import ranked
from limbeck.merge.base import PART, Merge, filled


class ArceeFusion(Merge):
    r"""Takes from the second model the weights that differ most where it matters most, and all others from the first.

    $$ I = |\theta_c - \theta_b| \cdot \mathrm{KL}(\mathrm{softmax}\,\theta_c \,\|\, \mathrm{softmax}\,\theta_b), \qquad
       \theta = \theta_c \text{ where } I \ge \mathrm{median}(I) + 1.5 \, (Q_3(I) - Q_1(I)), \text{ else } \theta_b $$

    with the softmax, and so the divergence, over each row of a tensor. Needs neither a base nor weights to search for. The order matters: the first
    of `of` is the base b, which keeps most of itself. Of more than two, the last is fused into the one before it, that into the one
    before, and so on up to the first. Quartiles are exact, whatever the size; where the threshold is 0 (three of four weights
    alike), weights with $I > 0$ are taken.

    Example:
        >>> ArceeFusion(of=("code", "science", "math")).of[0]
        'code'

    References:
        Sun et al., TinyR1-32B-Preview: Boosting accuracy with branch-merge distillation, 2025, arXiv:2503.04872.
    """

    kind: Literal["arcee_fusion"] = "arcee_fusion"

    def __call__(self, name, tensors, base):
        *before, candidate = tensors
        for one in reversed(before):
            candidate = fused(one, candidate)
        return candidate.clone() if not before else candidate


def fused(base: Float[Tensor, "..."], candidate: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """The important changes of the candidate in the base, in the base's dtype."""
    if not base.numel():
        return base.clone()
    width = base.shape[-1] if base.ndim else 1
    rows, others, step = base.reshape(-1, width), candidate.reshape(-1, width), max(1, PART // width)

    def pairs() -> Iterator[tuple[slice, Tensor, Tensor]]:
        for at in range(0, len(rows), step):
            yield slice(at, at + step), rows[at : at + step].double(), others[at : at + step].double()

    gaps = torch.cat([row_kl(c, b) for _, b, c in pairs()])

    def importance() -> Iterator[Float64[Tensor, " part"]]:
        for part, b, c in pairs():
            yield ((c - b) * gaps[part]).abs_().reshape(-1)

    last = base.numel() - 1
    low, middle, high = ranked(lambda: (part.expand(3, -1) for part in importance()), [int(q * last) for q in (0.25, 0.5, 0.75)])
    threshold = middle + 1.5 * (high - low)

    def values() -> Iterator[tuple[slice, Tensor]]:
        for (part, b, c), important in zip(pairs(), importance(), strict=True):
            taken = important >= threshold if threshold > 0 else important > 0
            flat = slice(part.start * width, part.start * width + b.numel())
            yield flat, torch.where(taken, c.reshape(-1), b.reshape(-1))

    return filled(base, values())


def row_kl(candidate: Float64[Tensor, "row weight"], base: Float64[Tensor, "row weight"]) -> Float64[Tensor, "row 1"]:
    """KL divergence of each row's softmax from the candidate to the base; never below 0, as rounding could make it."""
    log_p, log_q = candidate.log_softmax(-1), base.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1, keepdim=True).clamp_min_(0)
