"""A plain average."""

from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator

from limbeck.merge.base import Merge


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
    def one_weight_each(self) -> "Average":
        if self.weights and (len(self.weights) != len(self.of) or sum(self.weights) == 0):
            raise ValueError(f"weights: one for each of {len(self.of)} stages, and not 0 in all")
        return self

    def __call__(self, name, tensors, base):
        weights = self.weights or (1.0,) * len(tensors)
        total = sum(weights)
        stacked = torch.stack([t.double() * (w / total) for t, w in zip(tensors, weights, strict=True)])
        return stacked.sum(0).to(tensors[0].dtype)
