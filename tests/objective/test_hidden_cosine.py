"""One minus the cosine, by hand."""

import math
from collections.abc import Callable

import pytest
import torch

from limbeck.objective.hidden_cosine import HiddenCosine
from limbeck.signals import Signals

Say = Callable[..., Signals]


def test_the_value_by_hand(say: Say) -> None:
    student = torch.tensor([[1.0, 0.0], [1.0, 1.0], [2.0, 0.0]], dtype=torch.float64)
    teacher = torch.tensor([[0.0, 3.0], [1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    loss = HiddenCosine()({"student": say({"hidden.-1": student}), "teacher": say({"hidden.-1": teacher})})
    assert loss.count == 3 and loss.total.item() == pytest.approx(1 + (1 - math.sqrt(0.5)) + 2)


def test_the_length_of_states_does_not_count_and_a_state_of_zeros_has_a_finite_gradient(say: Say) -> None:
    teacher = torch.tensor([[1.0, 2.0], [1.0, 2.0]])
    student = torch.tensor([[3.0, 6.0], [0.0, 0.0]], requires_grad=True)
    loss = HiddenCosine()({"student": say({"hidden.-1": student}), "teacher": say({"hidden.-1": teacher})})
    loss.total.backward()
    assert loss.total.item() == pytest.approx(1.0, abs=1e-6) and student.grad is not None and student.grad.isfinite().all()
