"""Total variation by hand."""

from collections.abc import Callable
from typing import Any

import pytest

from limbeck.objective.total_variation import TotalVariation

P, Q = [0.5, 0.3, 0.2], [0.1, 0.6, 0.3]
Solve = Callable[..., Any]


def test_value_and_gradient_by_hand(solve: Solve) -> None:
    value, gradient = solve(TotalVariation(), P, Q)
    assert value == pytest.approx(0.4, rel=1e-12)  # (0.4 + 0.3 + 0.1) / 2
    slope = [-0.5, 0.5, 0.5]
    mean = sum(q * d for q, d in zip(Q, slope, strict=True))
    assert gradient.tolist() == pytest.approx([q * (d - mean) for q, d in zip(Q, slope, strict=True)], abs=1e-12)


def test_it_is_symmetric_and_at_most_one(solve: Solve) -> None:
    assert solve(TotalVariation(), Q, P)[0] == pytest.approx(0.4) and solve(TotalVariation(), [1.0, 0.0], [0.0, 1.0])[0] == 1.0


def test_it_is_scaled_back_by_the_temperature_once(solve: Solve) -> None:
    assert solve(TotalVariation(temperature=2.0), [4 / 5, 1 / 5], [1 / 2, 1 / 2])[0] == pytest.approx(2 * (2 / 3 - 1 / 2), rel=1e-12)
