"""Skew reverse KL on three symbols by hand, with and without a constant mixture."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from limbeck.objective.reverse_kl import ReverseKL
from limbeck.objective.skew_reverse_kl import SkewReverseKL

P, Q = [0.5, 0.3, 0.2], [0.1, 0.6, 0.3]
Solve = Callable[..., Any]


def by_hand(alpha: float, stop: bool) -> tuple[float, list[float]]:
    """Value, and gradient with respect to the logits of q."""
    m = [(1 - alpha) * p + alpha * q for p, q in zip(P, Q, strict=True)]
    slope = [math.log(q / x) + 1 - (0 if stop else alpha * q / x) for q, x in zip(Q, m, strict=True)]
    mean = sum(q * d for q, d in zip(Q, slope, strict=True))
    return sum(q * math.log(q / x) for q, x in zip(Q, m, strict=True)), [q * (d - mean) for q, d in zip(Q, slope, strict=True)]


@pytest.mark.parametrize("stop", [True, False])
@pytest.mark.parametrize("alpha", [0.1, 0.5])
def test_value_and_gradient_by_hand(alpha: float, stop: bool, solve: Solve) -> None:
    value, gradient = solve(SkewReverseKL(alpha=alpha, stop=stop), P, Q)
    expected, slope = by_hand(alpha, stop)
    assert value == pytest.approx(expected, rel=1e-12) and gradient.tolist() == pytest.approx(slope, abs=1e-12)


def test_a_constant_mixture_changes_the_gradient_and_not_the_value(solve: Solve) -> None:
    (value, gradient), (other, moved) = (solve(SkewReverseKL(alpha=0.5, stop=stop), P, Q) for stop in (True, False))
    assert value == other and (gradient - moved).abs().max() > 0.01


def test_it_tends_to_reverse_kl_and_is_it_at_zero(solve: Solve) -> None:
    value, gradient = solve(ReverseKL(), P, Q)
    assert solve(SkewReverseKL(alpha=1e-7), P, Q)[0] == pytest.approx(value, abs=1e-5)
    exact, exact_gradient = solve(SkewReverseKL(alpha=0.0), P, Q)
    assert exact == value and torch.equal(exact_gradient, gradient)


@pytest.mark.parametrize("stop", [True, False])
def test_at_the_match_value_and_gradient_vanish(stop: bool, solve: Solve) -> None:
    value, gradient = solve(SkewReverseKL(stop=stop), P, P)
    assert abs(value) < 1e-15 and gradient.abs().max() < 1e-15


def test_where_the_teacher_says_nothing_it_stays_below_its_bound(solve: Solve) -> None:
    value, gradient = solve(SkewReverseKL(alpha=0.1), [0.0, 1.0], [1.0, 1e-300])
    assert value == pytest.approx(math.log(10), rel=1e-9) and gradient.isfinite().all()
