"""The scale on which pitch is told: 360 bins, 20 cents apart, from 31.7 Hz to 2.0 kHz."""

import torch
from jaxtyping import Float
from torch import Tensor

from limbeck.numerics import upcast

BINS = 360
STEP = 20
"""Cents between two bins: hundredths of a semitone."""
ORIGIN, FIRST = 10.0, 1997.3794084376191
"""Cents are counted from 10 Hz; the first bin lies so many of them above."""
NEAR = 4
"""Bins on each side of the highest one that are averaged over."""
RATE, HOP = 16_000, 160
"""Numbers a second that pitch is heard in, and how many there are from the middle of one frame to that of the next: 10 ms."""


def cents(hertz: Float[Tensor, "*unit"]) -> Float[Tensor, "*unit"]:
    """A pitch in cents; of 0 Hz, which is no pitch, far below the scale."""
    return 1200 * torch.log2(upcast(hertz).clamp(min=1e-30) / ORIGIN)


def off_scale(hertz: Float[Tensor, " unit"]) -> Float[Tensor, " other"]:
    """Those that are a pitch, but more than half a step beyond the first or the last bin."""
    gap = cents(hertz) - FIRST
    return hertz[(hertz > 0) & ((gap < -STEP / 2) | (gap > (BINS - 0.5) * STEP))]


def bin_cents(number: int, like: Tensor) -> Float[Tensor, " bin"]:
    """Where the first so many bins lie, in cents."""
    return FIRST + STEP * torch.arange(number, dtype=upcast(like).dtype, device=like.device)


def decoded(log_odds: Float[Tensor, "unit bin"]) -> Float[Tensor, " unit"]:
    """The pitch in cents: the mean of the bins around the highest one, each as likely as it says."""
    log_odds = upcast(log_odds)
    place = torch.arange(log_odds.shape[-1], device=log_odds.device)
    near = (place - log_odds.argmax(-1, keepdim=True)).abs() <= NEAR
    weight = torch.nn.functional.logsigmoid(log_odds).masked_fill(~near, -torch.inf).softmax(-1)  # a quotient of probabilities that may all be tiny
    return (weight * bin_cents(log_odds.shape[-1], log_odds)).sum(-1)
