"""A number that rises faster while the loss falls."""

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from limbeck.schedule.base import Schedule

NEVER_ZERO = 1e-15
"""Added to the loss before, so that a loss of 0 divides nothing by 0; the authors' value."""


class Progress(nn.Module):
    """The number now, the momentum of the progress, and the loss before (not a number: none yet)."""

    value: torch.Tensor
    momentum: torch.Tensor
    loss: torch.Tensor

    def __init__(self, value: float):
        super().__init__()
        for name, x in (("value", value), ("momentum", 0.0), ("loss", math.nan)):
            self.register_buffer(name, torch.tensor(x, dtype=torch.float64, device="cpu"))


class Adaptive(Schedule):
    r"""Rises from start to end, at least in a straight line, and faster while the loss of its objective falls.

    With the relative progress $\delta_n = (L_{n-1} - L_n) / L_{n-1}$ of each optimiser step,

    $$ m \leftarrow \beta m + (1 - \beta) \delta_n, \quad
       t \leftarrow \min\big(end, \max(start + (end - start) \tfrac{n}{steps},\; t + \alpha\, \sigma(m) (1 - t))\big) $$

    so it never falls, and is at its end after `steps` at the latest. The first loss is only noted. For targets that move
    from the student to the teacher (`moving_target`); where a plain line does as well, `linear` is simpler. The default rate is
    that of the paper, for some thousand steps: with n steps in place of 5,000, a rate of 2.5 / n leaves the line as far behind.

    Example:
        >>> Adaptive(start=0.4, steps=10).value(5)  # before any loss: the straight line
        0.7

    References:
        Shing et al., TAID, 2025, arXiv:2501.16937.
    """

    kind: Literal["adaptive"] = "adaptive"
    follows: ClassVar[bool] = True
    start: float = Field(default=0.4, ge=0, lt=1)
    """Number at step 0."""
    end: float = Field(default=1.0, gt=0, le=1)
    """Number from step `steps` on."""
    steps: int = Field(default=100, gt=0)
    """Steps from start to end at the slowest: those of the stage."""
    rate: float = Field(default=5e-4, ge=0)
    """How much faster than the line it can be: the alpha above."""
    momentum: float = Field(default=0.99, ge=0, lt=1)
    """How slowly it forgets the progress of earlier steps: the beta above."""

    @model_validator(mode="after")
    def it_rises(self) -> "Adaptive":
        if self.end <= self.start:
            raise ValueError(f"end: above start, which is {self.start}")
        return self

    def value(self, step: int, memory: object = None) -> float:
        line = self.start + (self.end - self.start) * min(1.0, step / self.steps)
        return max(line, float(memory.value)) if isinstance(memory, Progress) else line

    @property
    def ends(self) -> tuple[float, float]:
        return self.start, self.end

    def begin(self) -> Progress:
        return Progress(self.start)

    def follow(self, memory: nn.Module, step: int, loss: float) -> None:
        assert isinstance(memory, Progress)
        before = float(memory.loss)
        memory.loss.fill_(loss)
        if math.isnan(before):
            return
        momentum = self.momentum * float(memory.momentum) + (1 - self.momentum) * (before - loss) / (before + NEVER_ZERO)
        memory.momentum.fill_(momentum)
        t = float(memory.value)
        faster = t + self.rate * (1 - t) / (1 + math.exp(-momentum))
        memory.value.fill_(min(self.end, max(self.value(step + 1), faster)))
