"""Signals with given values, for objectives held against numbers worked out by hand."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from limbeck.signals import Signals


@pytest.fixture
def say() -> Callable[..., Signals]:
    """Signals of rows with so many positions and so many targets each; without numbers: one row, as long as the first value."""

    def make(
        values: dict[str, Any],
        pos: tuple[int, ...] | None = None,
        target: tuple[int, ...] | None = None,
        tags: tuple[str, ...] | None = None,
        weights: tuple[float, ...] | None = None,
    ) -> Signals:
        first = (len(next(iter(values.values()))),)
        counts = {"pos": pos or target or first, "target": target or pos or first}
        num = len(counts["pos"])
        rows = {unit: torch.arange(num).repeat_interleave(torch.tensor(of)) for unit, of in counts.items()} | {"row": torch.arange(num)}
        return Signals(values, rows, tags or ("",) * num, torch.arange(num), torch.tensor(weights or (1.0,) * num))

    return make


@pytest.fixture
def solve(say: Callable[..., Signals]) -> Callable[..., tuple[float, torch.Tensor]]:
    """Value of a divergence on one target in double precision, and its gradient with respect to the student's logits."""

    def of(objective: Any, p: list[float], q: list[float]) -> tuple[float, torch.Tensor]:
        student, teacher = (torch.tensor([x], dtype=torch.float64).log() for x in (q, p))
        student.requires_grad_()
        loss = objective({"student": say({"logits": student}), "teacher": say({"logits": teacher})})
        loss.total.backward()
        assert loss.count == 1 and student.grad is not None
        return loss.total.item(), student.grad[0]

    return of
