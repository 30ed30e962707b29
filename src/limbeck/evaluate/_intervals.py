"""Means and shares over prompts, with the intervals that hold them."""

import math
from collections.abc import Sequence

import torch

from limbeck.numerics import Streams

RESAMPLES = 2000
EDGE = 0.025
"""Share of resamples outside of a 95 % interval, on either side."""
NORMAL = 1.959964
"""Standard errors to either side that hold 95 % of a normal distribution."""
Figure = dict[str, float | None]
"""value, low and high; None where there are none."""


def share(hits: Sequence[bool | None]) -> Figure:
    r"""Share of hits among those that are there, and its 95 % interval by Wilson, which is none of width 0 where nothing was hit.

    $\frac{\hat p + z^2/2n \pm z \sqrt{\hat p (1 - \hat p) / n + z^2 / 4n^2}}{1 + z^2/n}$
    """
    there = [hit for hit in hits if hit is not None]
    if not there:
        return {"value": None, "low": None, "high": None}
    num, z = len(there), NORMAL
    value = sum(there) / num
    middle, half = value + z * z / (2 * num), z * math.sqrt(value * (1 - value) / num + z * z / (4 * num * num))
    low, high = ((middle + side * half) / (1 + z * z / num) for side in (-1, 1))
    return {"value": value, "low": max(low, 0.0) if value else 0.0, "high": min(high, 1.0) if value < 1 else 1.0}


def interval(values: Sequence[float | None], documents: Sequence[str], seed: int) -> Figure:
    """Mean of the values that are there, and the 95 % interval of means over documents drawn with replacement (percentiles).

    Values of one document are drawn together. Equal documents and seed give equal draws, so that intervals of several measures
    belong together. Nothing is divided by but by what is there: None without values, no interval of fewer than two documents.
    """
    there = [(value, document) for value, document in zip(values, documents, strict=True) if value is not None]
    if not there:
        return {"value": None, "low": None, "high": None}
    number = {document: i for i, document in enumerate(dict.fromkeys(document for _, document in there))}
    place = torch.tensor([number[document] for _, document in there], device="cpu")
    each = torch.tensor([value for value, _ in there], dtype=torch.float64, device="cpu")
    sums, sizes = (each.new_zeros(len(number)).index_add(0, place, x) for x in (each, torch.ones_like(each)))
    mean = float(each.mean())
    if len(number) < 2:
        return {"value": mean, "low": None, "high": None}
    drawn = torch.randint(len(number), (RESAMPLES, len(number)), generator=Streams(seed)("bootstrap"), device="cpu")
    means = sums[drawn].sum(-1) / sizes[drawn].sum(-1)
    low, high = means.quantile(each.new_tensor([EDGE, 1 - EDGE])).tolist()
    return {"value": mean, "low": low, "high": high}
