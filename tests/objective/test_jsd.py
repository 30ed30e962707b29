"""Jensen-Shannon divergence: its ends are the two KLs, its middle four times the usual one."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy.spatial.distance import jensenshannon

from limbeck.objective.forward_kl import ForwardKL
from limbeck.objective.jsd import JSD
from limbeck.objective.reverse_kl import ReverseKL

P, Q = [0.5, 0.3, 0.2], [0.1, 0.6, 0.3]
Solve = Callable[..., Any]


def by_hand(s: float) -> float:
    m = [s * p + (1 - s) * q for p, q in zip(P, Q, strict=True)]
    return (
        s * sum(p * math.log(p / x) for p, x in zip(P, m, strict=True)) + (1 - s) * sum(q * math.log(q / x) for q, x in zip(Q, m, strict=True))
    ) / (s * (1 - s))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.7])
def test_the_value_by_hand(share: float, solve: Solve) -> None:
    assert solve(JSD(share=share), P, Q)[0] == pytest.approx(by_hand(share), rel=1e-12)


def test_the_middle_is_four_times_scipys(solve: Solve) -> None:
    value, _ = solve(JSD(share=0.5), P, Q)
    assert value == pytest.approx(4 * jensenshannon(P, Q) ** 2, rel=1e-12)  # scipy gives the root
    assert value == pytest.approx(solve(JSD(share=0.5), Q, P)[0], rel=1e-12)


@pytest.mark.parametrize("end, other", [(0.0, ForwardKL()), (1.0, ReverseKL())])
def test_at_its_ends_it_is_a_kl_and_near_them_almost(end: float, other: Any, solve: Solve) -> None:
    value, gradient = solve(other, P, Q)
    exact, exact_gradient = solve(JSD(share=end), P, Q)
    assert exact == pytest.approx(value, rel=1e-13) and torch.allclose(exact_gradient, gradient, atol=1e-13)
    near, near_gradient = solve(JSD(share=abs(end - 1e-4)), P, Q)
    assert near == pytest.approx(value, rel=1e-3) and near != value and torch.allclose(near_gradient, gradient, atol=1e-3)


def test_it_is_bounded_where_a_kl_is_not(solve: Solve) -> None:
    far, gradient = solve(JSD(share=0.5), [1.0, 1e-300], [1e-300, 1.0])
    assert far == pytest.approx(4 * math.log(2)) and gradient.isfinite().all()
