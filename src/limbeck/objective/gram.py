"""How the visual tokens of an image relate to each other, as one matrix."""

from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from limbeck.numerics import upcast
from limbeck.objective.base import Objective
from limbeck.signals import Needs, Signals, unit_of


class Gram(Objective):
    r"""One minus the cosine between the Gram matrices of two models' states, row by row.

    $$ 1 - \frac{\langle R^S, R^T \rangle_F}{\|R^S\|_F\, \|R^T\|_F}, \qquad R_{ij} = \langle y_i, y_j \rangle, \qquad y_i \leftarrow y_i / \|y_i\| $$

    where y are the states of one row: by default the visual tokens of its image, as the connector says them. Widths may differ and nothing is
    learned, since only products inside one model are compared: a rotation of all states, and a scale, change nothing. The numbers of states
    must agree. Choose it beside a divergence of answers, where a small connector is to keep what is alike in an image; with few states it
    says little. One number a row, so that rows of many states weigh no more than others.

    Example:
        >>> Gram(of="patch_hidden", layer=2).needs["student"]
        ('patch_hidden.2',)

    References:
        Cai et al., LLaVA-KD: A Framework of Distilling Multimodal Large Language Models, 2024, arXiv:2410.16236.
        Park et al., Relational Knowledge Distillation, 2019, arXiv:1904.05068.
    """

    kind: Literal["gram"] = "gram"
    zero_at_match: ClassVar[tuple[str, str] | None] = ("student", "teacher")
    of: Literal["patch_embedding", "patch_hidden", "hidden"] = "patch_embedding"
    """patch_embedding: what the connector says; patch_hidden: visual tokens after a block; hidden: all positions after a block."""
    layer: int = -1
    """Of patch_hidden and hidden: the block (1 is the first, -1 the last)."""
    cosine: bool = True
    """Every state is scaled to length 1 first; without it, long ones count for more."""

    @property
    def unit(self) -> str:
        return "row"

    @property
    def needs(self) -> Needs:
        name = self.of if self.of == "patch_embedding" else f"{self.of}.{self.layer}"
        return {"student": (name,), "teacher": (name,)}

    def values(self, student: Signals, teacher: Signals) -> Float[Tensor, " row"]:
        both = [self.matrices(said) for said in (student, teacher)]
        each = [1 - torch.cosine_similarity(a.flatten(), b.flatten(), dim=0) for a, b in zip(*both, strict=True)]
        empty = upcast(student[self.needs["student"][0]])[:0].sum(-1)  # of no rows: connected, so that a backward pass works
        return torch.stack(each) if each else empty

    def matrices(self, said: Signals) -> list[Float[Tensor, "state state"]]:
        """The Gram matrix of each row."""
        name = self.needs["student"][0]
        states = upcast(said[name])
        states = torch.nn.functional.normalize(states, dim=-1) if self.cosine else states
        sizes = said.rows[unit_of(name)].bincount(minlength=said.num("row")).tolist()
        return [x @ x.mT for x in states.split(sizes)]
