"""A target between student and teacher: by hand, its two ends, and the mistakes that reference code makes."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from limbeck.objective.forward_kl import ForwardKL
from limbeck.objective.moving_target import MovingTarget
from limbeck.objective.reverse_kl import ReverseKL

P, Q = [0.5, 0.3, 0.2], [0.1, 0.6, 0.3]
Solve = Callable[..., Any]


def between(t: float) -> list[float]:
    """The target by hand: a geometric mean, normalised."""
    raw = [p**t * q ** (1 - t) for p, q in zip(P, Q, strict=True)]
    return [x / sum(raw) for x in raw]


@pytest.mark.parametrize("t", [0.2, 0.5, 0.9])
def test_value_and_gradient_by_hand(t: float, solve: Solve) -> None:
    value, gradient = solve(MovingTarget(share=t), P, Q)
    target = between(t)
    assert value == pytest.approx(-sum(x * math.log(q) for x, q in zip(target, Q, strict=True)), rel=1e-12)
    assert gradient.tolist() == pytest.approx([q - x for x, q in zip(target, Q, strict=True)], abs=1e-12)  # the target is a constant


def test_at_the_teacher_it_is_forward_kl_and_the_entropy_of_the_teacher(solve: Solve) -> None:
    (value, gradient), (kl, slope) = solve(MovingTarget(share=1.0), P, Q), solve(ForwardKL(), P, Q)
    assert value == pytest.approx(kl - sum(p * math.log(p) for p in P), rel=1e-12) and torch.allclose(gradient, slope, atol=1e-15)


def test_at_the_student_there_is_nothing_to_learn(solve: Solve) -> None:
    assert solve(MovingTarget(share=0.0), P, Q)[1].abs().max() < 1e-15


def test_it_mixes_logits_and_not_probabilities(solve: Solve) -> None:
    _, gradient = solve(MovingTarget(share=0.5), P, Q)
    mixed = [0.5 * p + 0.5 * q for p, q in zip(P, Q, strict=True)]
    wrong = torch.tensor([[q - m for q, m in zip(Q, mixed, strict=True)]], dtype=torch.float64)
    assert (gradient - wrong).abs().max() > 0.01


def test_a_student_that_cannot_say_it_all_ends_between_forward_and_reverse_kl() -> None:
    """One bell curve for a teacher of two humps: forward KL covers both, reverse KL shrinks to one, and the target in between ends in between."""
    x = torch.linspace(-6, 6, 121, dtype=torch.float64)
    humps = [math.log(share) - ((x - at) / 0.5) ** 2 / 2 for share, at in ((0.6, 2.5), (0.4, -2.5))]
    log_p = torch.stack(humps).logsumexp(0).log_softmax(0)[None]

    def entropy(objective: Any) -> float:
        mean, width = (torch.tensor(0.5, dtype=torch.float64, requires_grad=True) for _ in range(2))
        optimiser = torch.optim.Adam([mean, width], 0.05)
        for _ in range(150):
            log_q = (-(((x - mean) / width.exp()) ** 2) / 2).log_softmax(0)[None]
            optimiser.zero_grad()
            objective.divergence(log_p, log_q).sum().backward()
            optimiser.step()
        return -float((log_q.exp() * log_q).sum().detach())

    forward, between, reverse = (entropy(objective) for objective in (ForwardKL(), MovingTarget(share=0.5), ReverseKL()))
    assert reverse + 0.05 < between < forward - 0.005


def test_an_entry_that_the_teacher_rules_out_stays_finite(solve: Solve) -> None:
    value, gradient = solve(MovingTarget(share=0.4), [0.0, 1.0], [0.5, 0.5])
    assert math.isfinite(value) and gradient.isfinite().all()
