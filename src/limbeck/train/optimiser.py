"""AdamW, its parameter groups, and the rate of each step."""

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from limbeck.component import Document
from limbeck.model.base import matches
from limbeck.schedule import Positive, Schedule


class Group(Document):
    """Parameters that are treated differently."""

    match: tuple[str, ...] = Field(min_length=1)
    """Patterns of parameter names; the first group that fits takes the parameter."""
    rate: Annotated[float, Field(ge=0)] = 1.0
    """Factor on the learning rate."""
    weight_decay: Annotated[float, Field(ge=0)] | None = None
    """Weight decay of this group; none: that of the optimiser."""
    gradient: Annotated[float, Field(ge=0)] = Field(default=1.0, json_schema_extra={"since": 2})
    """Factor on the gradient, before it is clipped with the others; beyond that AdamW hardly sees a factor that stays: `rate` slows."""


class Optimiser(Document):
    """AdamW with decoupled weight decay; rate with warm-up and decay, gradients clipped by their joint norm."""

    kind: Literal["adamw"] = "adamw"
    lr: Positive = 1e-3
    """Learning rate at its peak, or a schedule of it; then `warm_up` and `decay` are left alone."""
    warm_up: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the steps in which the rate rises from 0 in a straight line."""
    decay: Literal["constant", "linear", "cosine"] = "constant"
    """How the rate falls after the warm-up."""
    decay_share: Annotated[float, Field(gt=0, le=1)] | None = Field(default=None, json_schema_extra={"since": 2})
    """Share of the steps, at the end, in which it falls; before, it stays at the peak; none: all after the warm-up."""
    floor: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Where it falls to, as a share of the peak."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    """Decay of the two running means."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """Added to the root of the second mean."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled weight decay of matrices; vectors (norms, biases) are not decayed."""
    clip: Annotated[float, Field(gt=0)] | None = 1.0
    """Greatest norm of all gradients together; none: not clipped."""
    groups: tuple[Group, ...] = ()
    """Parameters with a rate or decay of their own."""

    @model_validator(mode="after")
    def one_schedule(self) -> "Optimiser":
        if isinstance(self.lr, Schedule) and (self.warm_up or self.decay != "constant"):
            raise ValueError("either a schedule as lr, or warm_up and decay, not both")
        if self.decay_share is not None and self.decay == "constant":
            raise ValueError("decay_share: only with decay: linear or cosine; a constant rate does not fall")
        if self.decay_share is not None and self.warm_up + self.decay_share > 1:
            raise ValueError(f"decay_share: at most what warm_up leaves, {1 - self.warm_up:g}")
        if isinstance(self.lr, Schedule) and self.lr.follows:
            raise ValueError("a schedule that follows a loss belongs to an objective: use linear or cosine")
        if isinstance(self.lr, Schedule) and min(self.lr.ends) < 0:
            raise ValueError(f"lr: a schedule of rates, which are at least 0; this one reaches {min(self.lr.ends):g}")
        return self

    def rate(self, step: int, steps: int) -> float:
        """Learning rate of a step, counted from 0."""
        if isinstance(self.lr, Schedule):
            return self.lr.value(step)
        rising = round(self.warm_up * steps)
        if step < rising:
            return self.lr * (step + 1) / rising
        falling = steps - rising if self.decay_share is None else min(steps - rising, round(self.decay_share * steps))
        gone = max(0, step - (steps - falling)) / max(1, falling)
        share = {"constant": 1.0, "linear": 1 - gone, "cosine": 0.5 * (1 + math.cos(math.pi * gone))}[self.decay]
        return self.lr * (self.floor + (1 - self.floor) * share)

    def build(self, named: Sequence[tuple[str, nn.Parameter]], learned: Sequence[nn.Module | None]) -> torch.optim.AdamW:
        """The optimiser over a role's parameters and what objectives learn; each parameter stands in one group."""
        kinds: dict[tuple[float, float, float], list[nn.Parameter]] = {}
        for name, p in named:
            group = next((g for g in self.groups if matches(name, g.match)), None)
            decay = self.weight_decay if group is None or group.weight_decay is None else group.weight_decay
            rate, factor = (group.rate, group.gradient) if group else (1.0, 1.0)
            kinds.setdefault((rate, decay if p.ndim > 1 else 0.0, factor), []).append(p)
        extra = [p for module in learned if module is not None for p in module.parameters()]
        groups: list[dict[str, Any]] = [
            {"params": ps, "rate": rate, "weight_decay": decay, "gradient": factor} for (rate, decay, factor), ps in kinds.items()
        ]
        groups += [{"params": extra, "rate": 1.0, "weight_decay": 0.0}] * bool(extra)
        return torch.optim.AdamW(groups, lr=0.0, betas=self.betas, eps=self.eps, fused=True)
