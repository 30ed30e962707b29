"""Tells the class of a row from the states of the student."""

from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from limbeck.errors import Refused
from limbeck.numerics import upcast
from limbeck.objective.base import Objective
from limbeck.signals import Needs, Signals


class ClassHead(Objective):
    r"""Negative log-probability that a learned linear head gives to the class of a row, from the mean of a layer's states.

    $$ -\log \mathrm{softmax}\Big(W \frac{1}{T} \sum_{t=1}^{T} h_t + b\Big)_y $$

    For encoders, which have no answer of their own: as a further task beside what a teacher says, or alone, to train a teacher from labels.
    The head learns with the student and is left out of what is exported. A model that has classes itself needs `cross_entropy` instead.

    Example:
        >>> ClassHead(classes=10).needs
        {'student': ('hidden.-1', 'class')}

    References:
        Yang et al., SUPERB: Speech Processing Universal Performance Benchmark, 2021, arXiv:2105.01051 (utterance-level heads).
    """

    kind: Literal["class_head"] = "class_head"
    classes: Annotated[int, Field(ge=2)]
    """How many classes the rows have."""
    hears: int = -1
    """The layer that is read: -1 is the last block."""

    @classmethod
    def example(cls) -> "ClassHead":
        return cls(classes=11)

    @property
    def unit(self) -> str:
        return "row"

    @property
    def needs(self) -> Needs:
        return {"student": (f"hidden.{self.hears}", "class")}

    def build(self, example: Mapping[str, Signals]) -> nn.Module:
        return nn.Linear(example["student"][self.needs["student"][0]].shape[-1], self.classes)

    def values(self, student: Signals, learned: nn.Module) -> Float[Tensor, " row"]:
        states, of, label = upcast(student[self.needs["student"][0]]), student.rows["pos"], student["class"]
        if not label.is_meta and ((label < 0) | (label >= self.classes)).any():
            least, most = int(label.min()), int(label.max())
            got, do = f"classes up to {most}", f"write classes: {most + 1}, or more"
            if least < 0:
                got, do = f"class {least}", "number the classes of the rows from 0, and leave out rows that have none"
            raise Refused("label", "class_head.classes", f"a class from 0 to {self.classes - 1:,}", got, do)
        number = student.num("row")
        mean = states.new_zeros(number, states.shape[1]).index_add(0, of, states) / torch.bincount(of, minlength=number).clamp(min=1)[:, None]
        return torch.nn.functional.cross_entropy(learned(mean), label, reduction="none")
