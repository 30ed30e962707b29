"""Reverse KL by hand."""

import math
from collections.abc import Callable
from typing import Any

import pytest

from limbeck.objective.reverse_kl import ReverseKL

P, Q = [0.5, 0.3, 0.2], [0.1, 0.6, 0.3]


def test_value_and_gradient_by_hand(solve: Callable[..., Any]) -> None:
    value, gradient = solve(ReverseKL(), P, Q)
    log_ratio = [math.log(q / p) for p, q in zip(P, Q, strict=True)]
    by_hand = sum(q * r for q, r in zip(Q, log_ratio, strict=True))
    assert value == pytest.approx(by_hand, rel=1e-12)
    assert gradient.tolist() == pytest.approx([q * (r - by_hand) for q, r in zip(Q, log_ratio, strict=True)], abs=1e-12)


def test_temperature_is_squared_back(solve: Callable[..., Any]) -> None:
    flat, _ = solve(ReverseKL(temperature=2.0), [4 / 5, 1 / 5], [1 / 2, 1 / 2])  # softened: 2/3, 1/3
    assert flat == pytest.approx(4 * (0.5 * math.log(3 / 4) + 0.5 * math.log(3 / 2)), rel=1e-12)


def test_it_asks_for_the_whole_teacher() -> None:
    assert ReverseKL().needs == {"student": ("logits",), "teacher": ("logits",)}
