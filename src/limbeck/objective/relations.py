"""Self-attention relations: how the positions of one row relate to each other."""

from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from limbeck.errors import Refused
from limbeck.numerics import kl, masked_log_softmax, upcast
from limbeck.objective.base import Objective
from limbeck.signals import Needs, Signals


class Relations(Objective):
    r"""KL divergence of the relations between positions, seen through queries, keys and values.

    $$ \sum_{A \in \{Q, K, V\}} \frac{1}{A_r} \sum_{a=1}^{A_r} \mathrm{KL}(R^T_{A,a} \,\|\, R^S_{A,a}),
       \qquad R_{A,a} = \mathrm{softmax}(A_a A_a^\top / \sqrt{w / A_r}) $$

    Queries, keys and values of one layer (before rotary embedding, all heads side by side) are cut into `heads` relation
    heads. These are not the attention heads, so width and number of heads of the two models may differ, and no map has to
    be learned; `heads` must divide every width. Relations are taken inside each row; rows of a packed batch do not meet.

    Example:
        >>> Relations(layer=6, heads=3).needs["student"]
        ('query.6', 'key.6', 'value.6')

    References:
        Wang et al., MiniLMv2, 2021, arXiv:2012.15828.
        Udagawa et al., A Comparative Analysis of Task-Agnostic Distillation Methods, 2023, arXiv:2310.08797.
    """

    kind: Literal["relations"] = "relations"
    zero_at_match: ClassVar[tuple[str, str] | None] = ("student", "teacher")
    layer: int = -1
    """Layer (1 is the first block, -1 the last); with `align: layer_map`, the number of one of its pairs."""
    heads: int = Field(default=1, gt=0)
    """Relation heads; they need not be the attention heads."""
    causal: bool = True
    """Whether a position relates to itself and earlier ones only, as in a causal model."""

    @property
    def unit(self) -> str:
        return "pos"

    @property
    def needs(self) -> Needs:
        return dict.fromkeys(("student", "teacher"), tuple(f"{x}.{self.layer}" for x in ("query", "key", "value")))

    def build(self, example):
        for seat in ("student", "teacher"):
            for name in self.needs[seat]:
                if (width := example[seat][name].shape[-1]) % self.heads:
                    raise Refused(
                        "value",
                        "relations.heads",
                        f"a divisor of the width {width} of {name} of {seat}",
                        f"heads: {self.heads}",
                        "change heads; with grouped queries, keys and values are narrower than queries",
                    )

    def values(self, student: Signals, teacher: Signals) -> Float[Tensor, " pos"]:
        lengths = student.rows["pos"].bincount(minlength=student.num("row")).tolist()
        total: Any = 0
        for name in self.needs["student"]:
            q, p = student[name], teacher[name]
            for x in (q, p):
                assert x.shape[-1] % self.heads == 0, f"{self.heads} heads do not divide the width {x.shape[-1]} of {name}"
            rows = zip(q.split(lengths), p.split(lengths), strict=True)
            total = total + torch.cat([upcast(q[:0]).sum(-1), *(kl(self.relation(b), self.relation(a)).mean(0) for a, b in rows)])
        return total

    def relation(self, x: Float[Tensor, "pos dim"]) -> Float[Tensor, "head pos pos"]:
        """Log-relations of the positions of one row."""
        x = upcast(x).unflatten(-1, (self.heads, -1)).transpose(0, 1)
        scores = x @ x.mT / x.shape[-1] ** 0.5
        allowed = torch.ones_like(scores, dtype=torch.bool)
        return masked_log_softmax(scores, allowed.tril() if self.causal else allowed)
