"""Skew KL on three symbols by hand, its limit, and its bound."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from limbeck.objective.forward_kl import ForwardKL
from limbeck.objective.jsd import JSD
from limbeck.objective.skew_kl import SkewKL
from limbeck.objective.skew_reverse_kl import SkewReverseKL
from limbeck.signals import Head, Logits, Signals

P, Q = [0.5, 0.3, 0.2], [0.1, 0.6, 0.3]
Solve = Callable[..., Any]


@pytest.mark.parametrize("alpha", [0.1, 0.4, 0.9])
def test_value_and_gradient_by_hand(alpha: float, solve: Solve) -> None:
    m = [alpha * p + (1 - alpha) * q for p, q in zip(P, Q, strict=True)]
    value, gradient = solve(SkewKL(alpha=alpha), P, Q)
    assert value == pytest.approx(sum(p * math.log(p / x) for p, x in zip(P, m, strict=True)), rel=1e-12)
    slope = [-(1 - alpha) * p / x for p, x in zip(P, m, strict=True)]  # with respect to q
    mean = sum(q * d for q, d in zip(Q, slope, strict=True))
    assert gradient.tolist() == pytest.approx([q * (d - mean) for q, d in zip(Q, slope, strict=True)], abs=1e-12)


def test_it_tends_to_forward_kl_and_is_it_at_zero(solve: Solve) -> None:
    value, gradient = solve(ForwardKL(), P, Q)
    assert solve(SkewKL(alpha=1e-7), P, Q)[0] == pytest.approx(value, abs=1e-5)
    exact, exact_gradient = solve(SkewKL(alpha=0.0), P, Q)
    assert exact == value and torch.equal(exact_gradient, gradient)


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("kind", [SkewKL, SkewReverseKL, JSD])
def test_gaps_of_logits_that_no_probability_can_tell_stay_finite(kind: Any, lazy: bool, say: Callable[..., Signals]) -> None:
    """In float32 e^-200 is 0: a mixture of probabilities would have log 0 where both say so, and 0 times infinity is no number."""
    p, q = [0.0, -1.0, -200.0, -300.0], [-1.0, 0.0, -250.0, -200.0]
    hidden, objective = torch.tensor([q], requires_grad=True), kind()
    student = say({"logits": Logits(hidden, Head(torch.eye(4)), True) if lazy else hidden})
    loss = objective({"student": student, "teacher": say({"logits": torch.tensor([p])})})
    loss.total.backward()
    exact = torch.tensor([q], dtype=torch.float64, requires_grad=True)
    expected = kind()({"student": say({"logits": exact}), "teacher": say({"logits": torch.tensor([p], dtype=torch.float64)})})  # e^-300 is there
    expected.total.backward()
    assert hidden.grad is not None and exact.grad is not None
    assert loss.total.item() == pytest.approx(expected.total.item(), rel=1e-5)
    torch.testing.assert_close(hidden.grad, exact.grad.float(), rtol=1e-4, atol=1e-6)


def test_at_the_match_value_and_gradient_vanish(solve: Solve) -> None:
    value, gradient = solve(SkewKL(), P, P)
    assert abs(value) < 1e-15 and gradient.abs().max() < 1e-15


def test_where_the_student_says_nothing_it_stays_below_its_bound(solve: Solve) -> None:
    value, gradient = solve(SkewKL(alpha=0.1), [1.0, 1e-300], [0.0, 1.0])
    assert value == pytest.approx(math.log(10), rel=1e-9) and gradient.isfinite().all()
