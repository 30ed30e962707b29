"""Exact order statistics of numbers that are read in parts."""

from collections.abc import Callable, Iterable, Sequence

import torch
from jaxtyping import Float64
from torch import Tensor

DIGIT = 16
"""Bits that are settled at each reading."""


def ranked(read: Callable[[], Iterable[Float64[Tensor, "rank part"]]], ranks: Sequence[int]) -> list[float]:
    """Of each row of all that is read the number at its place (from 0) when sorted; no number is below zero.

    The bits of such numbers, as integers, are in the order of the numbers: each of four readings counts one digit of 16 bits, among the
    numbers that agree in the digits before it. Nothing is sorted, sampled or kept.
    """
    left, leading = list(ranks), [0] * len(ranks)
    for shift in range(64 - DIGIT, -1, -DIGIT):
        counts = torch.zeros(len(ranks), 1 << DIGIT, dtype=torch.int64, device="cpu")
        for part in read():
            for i, (bits, above) in enumerate(zip(part.view(torch.int64), leading, strict=True)):
                same = bits if shift + DIGIT == 64 else bits[bits >> (shift + DIGIT) == above]
                counts[i] += torch.bincount(same >> shift & (1 << DIGIT) - 1, minlength=1 << DIGIT).cpu()
        ends = counts.cumsum(1)
        for i, rank in enumerate(left):
            digit = int(torch.searchsorted(ends[i], rank, right=True))
            left[i] = rank - int(ends[i, digit] - counts[i, digit])
            leading[i] = leading[i] << DIGIT | digit
    return torch.tensor(leading, dtype=torch.int64, device="cpu").view(torch.float64).tolist()
