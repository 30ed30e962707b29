"""Reconstructs hidden tokens from what the student says of the visible ones."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from limbeck.errors import Refused
from limbeck.numerics import log_probs, upcast
from limbeck.objective._mask_decoder import MaskDecoder
from limbeck.objective.base import Objective
from limbeck.signals import Needs, Signals, dense


class Reconstruct(Objective):
    r"""Cross-entropy of hidden tokens, as a learned decoder makes them out from the student's states of the visible ones.

    $$ -\frac{1}{|M|} \sum_{i \in M} \log \mathrm{softmax}\big( D(e_i,\, \{ h_j : j \notin M \}) \big)_{x_i} $$

    M are the hidden places of a row, see `mask`. The decoder D has one query a hidden place, made of where it is alone, and looks once at the
    states of all visible places of the row; what the student says of hidden places is not read. So all that is needed for what is hidden must
    stand in the visible states, which is what is used later. Each hidden place has logits of its own: of six bases that a teacher reads as one
    token, six distributions, not their mean. The decoder is left out of what is exported. Where the student's own head is wanted afterwards,
    `cross_entropy` at the hidden places trains it.

    Example:
        >>> Reconstruct().needs["student"]
        ('hidden.-1', 'asked', 'label', 'logits')

    References:
        He et al., Masked Autoencoders Are Scalable Vision Learners, 2022, arXiv:2111.06377 (a decoder that is thrown away).
        Yang et al., HAD: Hybrid Architecture Distillation Outperforms Teacher in Genomic Sequence Modeling, 2025, arXiv:2505.20836.
    """

    kind: Literal["reconstruct"] = "reconstruct"
    layer: int = -1
    """Layer whose states are read: 1 is the first block, -1 the last."""
    width: Annotated[int, Field(ge=4)] = 64
    """Channels of the decoder."""
    heads: Annotated[int, Field(ge=1)] = 4
    """Heads of its attention."""

    @model_validator(mode="after")
    def heads_fit(self) -> "Reconstruct":
        if self.width % (2 * self.heads):
            raise ValueError("width: a multiple of twice the heads")
        return self

    @property
    def unit(self) -> str:
        return "target"

    @property
    def needs(self) -> Needs:
        return {"student": (f"hidden.{self.layer}", "asked", "label", "logits")}  # of its own logits, only how many there are

    def build(self, example: Mapping[str, Signals]) -> nn.Module:
        student = example["student"]
        asked, row = student["asked"], student.rows["pos"]
        if len(asked) and not len(row[~asked]):
            expected, do = "rows of which some positions are hidden, and others are not", "add {kind: mask} to data"
            raise Refused("data", "objective.reconstruct", expected, "rows asked for as a whole", do)
        classes = dense(student["logits"]).shape[-1]
        return MaskDecoder(student[f"hidden.{self.layer}"].shape[-1], self.width, self.heads, classes)

    def values(self, student: Signals, learned: Any) -> Float[Tensor, " target"]:
        states = upcast(student[f"hidden.{self.layer}"])
        logits = learned(states, student["asked"], student.rows["pos"], student.num("row"))
        return -log_probs(logits).gather(-1, student["label"][:, None])[:, 0]
