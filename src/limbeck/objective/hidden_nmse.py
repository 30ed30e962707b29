"""Squared error of hidden states against the size of the target."""

from typing import Literal

import torch
from torch import nn

from limbeck.numerics import segment_sum, upcast
from limbeck.objective.base import AbstractLayers
from limbeck.signals import unit_of


class HiddenNMSE(AbstractLayers):
    r"""Mean squared error between (mapped) student states and teacher states, over the mean square of the teacher's, row by row.

    $$ \sum_t \| W h^S_t - h^T_t \|^2 \Big/ \sum_t \| h^T_t \|^2 $$

    0 where they agree, 1 for a student that says nothing, whatever the size of a layer's states: layers weigh alike, and numbers of different
    layers can be compared. A row in which the teacher says nothing but zeros is not divided. With `forward: layerwise` each block learns by
    itself to stand in for the one beside it.

    Example:
        >>> HiddenNMSE(layers="all").unit
        'row'

    References:
        Bercovich et al., Puzzle: Distillation-Based NAS for Inference-Optimized LLMs, 2024, arXiv:2411.19146 (blockwise local distillation).
    """

    kind: Literal["hidden_nmse"] = "hidden_nmse"

    @property
    def unit(self) -> str:
        return "row"

    def distance(self, a, b):
        return (a - b).square().mean(-1)

    def values(self, student, teacher, learned=None):
        names, rows, num = self.names(student), student.rows[unit_of(self.signal)], student.num("row")
        maps = learned if learned is not None else [nn.Identity()] * len(names)
        each = []
        for f, name in zip(maps, names, strict=True):
            error, target = self.distance(f(upcast(student[name])), upcast(teacher[name])), upcast(teacher[name]).square().mean(-1)
            size, count = segment_sum(target, rows, num), segment_sum(torch.ones_like(target), rows, num)
            each.append(segment_sum(error, rows, num) / torch.where(size > torch.finfo(size.dtype).tiny, size, count.clamp(min=1)))
        return torch.stack(each).mean(0)
