"""A plain average."""

from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator

from limbeck.merge.base import Merge, filled, parts


class Average(Merge):
    r"""Weighted mean of the weights.

    $$ \theta = \sum_i w_i \theta_i \Big/ \sum_i w_i $$

    For students that were trained from one start: their mean is often better than each, and costs nothing to run.
    Students from different starts lie in different valleys, and their mean in none.

    Example:
        >>> Average(of=("a", "b"), weights=(1.0, 3.0)).weights
        (1.0, 3.0)

    References:
        Wortsman et al., Model soups, 2022, arXiv:2203.05482.
    """

    kind: Literal["average"] = "average"
    symmetric: ClassVar[bool] = True
    weights: tuple[float, ...] = Field(default=())
    """One weight for each of `of`; none: all alike."""

    @model_validator(mode="after")
    def not_zero_in_all(self) -> "Average":
        if self.weights and sum(self.weights) == 0:
            raise ValueError("weights: not 0 in all")
        return self

    def __call__(self, name, tensors, base):
        weights = self.weights or (1.0,) * len(tensors)
        total = sum(weights)
        flat = [(t.reshape(-1), w / total) for t, w in zip(tensors, weights, strict=True)]
        sums = ((part, torch.stack([t[part].double() * w for t, w in flat]).sum(0)) for part in parts(tensors[0].numel()))
        return filled(tensors[0], sums)
