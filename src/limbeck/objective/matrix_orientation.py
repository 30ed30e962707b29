"""Matrices that mix positions: attention, or what stands in its place."""

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from limbeck.errors import Refused
from limbeck.numerics import upcast
from limbeck.objective.base import AbstractByLayer
from limbeck.signals import Signals


class MatrixOrientation(AbstractByLayer):
    r"""Frobenius distance between the matrices by which student and teacher mix the positions of a row, mean over heads, summed over layers.

    $$ \sum_{(i,j) \in M} \frac{1}{H} \sum_{h=1}^{H} \big\| M^S_{i,h} - A^T_{j,h} \big\|_F $$

    A is what attention makes of queries and keys; M what a linear recurrence in its place amounts to, written out. The first stage of a
    conversion: with `forward: layerwise` it turns only what decides who is heard (decays, keys, queries) towards the teacher; values and
    output get no gradient. Both need equally many heads: else start with `hidden_l2` on mixers. It takes memory for heads times rows times
    the square of their length, a layer: rows of one length (`pack`) of 512 to 1,024; or `forward: {kind: layerwise, heads: 4}`, which
    draws so many heads for each window and takes the mean over these.

    Example:
        >>> MatrixOrientation(layers=(1, 2)).needs["teacher"]
        ('mixing.1', 'mixing.2')

    References:
        Bick et al., Transformers to SSMs: Distilling Quadratic Knowledge to Subquadratic Models, 2024, arXiv:2408.10189 (stage 1).
        Bick et al., Llamba: Scaling Distilled Recurrent Models for Efficient Language Processing, 2025, arXiv:2502.14458.
    """

    kind: Literal["matrix_orientation"] = "matrix_orientation"

    @property
    def unit(self) -> str:
        return "row"

    @property
    def compared(self) -> str:
        return "mixing"

    def build(self, example):
        for name in self.names(example["student"]):
            heads = [example[seat][name].shape[1] for seat in ("student", "teacher")]
            if heads[0] != heads[1]:
                where, got = "matrix_orientation.layers", f"{heads[0]} of the student and {heads[1]} of the teacher"
                do = "give the student's block the teacher's number of heads, or compare mixers: {kind: hidden_l2, signal: mixer}"
                raise Refused("heads", where, f"equally many heads in {name}", got, do)

    def values(self, student: Signals, teacher: Signals) -> Float[Tensor, " row"]:
        rows, num = student.rows["pos"], student.num("row")
        return torch.stack([self.distance(student[name], teacher[name], rows, num) for name in self.names(student)]).sum(0)

    def distance(
        self, a: Float[Tensor, "pos head past"], b: Float[Tensor, "pos head past"], rows: Int[Tensor, " pos"], num: int
    ) -> Float[Tensor, " row"]:
        """Mean over heads of the distance of the matrices of each row; where they are alike, its gradient is zero."""
        past = min(a.shape[-1], b.shape[-1])  # of one that was heard among longer rows, the rest are zeros
        lengths = torch.linalg.vector_norm(upcast(a[..., :past]) - upcast(b[..., :past]), dim=-1)
        squares = lengths.new_zeros(num, lengths.shape[1]).index_add(0, rows, lengths.square())
        apart = squares > 0
        return torch.where(apart, torch.where(apart, squares, 1).sqrt(), 0).mean(-1)
