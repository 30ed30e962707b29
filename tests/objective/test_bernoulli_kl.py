"""Divergence of yes-or-no answers: against scipy, and its gradient in closed form."""

import numpy as np
import pytest
import torch
from scipy.special import expit, rel_entr

from limbeck.objective.bernoulli_kl import BernoulliKL
from limbeck.objective.forward_kl import ForwardKL
from limbeck.signals import Signals

DRAW = torch.Generator().manual_seed(0)


def signals(logits: torch.Tensor) -> Signals:
    num = len(logits)
    return Signals({"logits": logits}, {"target": torch.arange(num), "row": torch.arange(num)}, ("",) * num, torch.arange(num), torch.ones(num))


def values(q: torch.Tensor, p: torch.Tensor, **fields: float) -> torch.Tensor:
    return BernoulliKL.model_validate(fields).values(student=signals(q), teacher=signals(p))


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_each_entry_is_a_bernoulli_and_entries_add_up(temperature: float) -> None:
    q, p = (3 * torch.randn(5, 7, generator=DRAW, dtype=torch.float64) for _ in range(2))
    b, a = expit(q.numpy() / temperature), expit(p.numpy() / temperature)
    expected = temperature**2 * (rel_entr(a, b) + rel_entr(1 - a, 1 - b)).sum(-1)
    np.testing.assert_allclose(values(q, p, temperature=temperature).numpy(), expected, rtol=1e-10)
    assert not np.allclose(ForwardKL(temperature=temperature).values(student=signals(q), teacher=signals(p)).numpy(), expected)


def test_the_gradient_is_the_gap_of_probabilities_times_the_temperature() -> None:
    q, p = torch.randn(4, 6, generator=DRAW, dtype=torch.float64).requires_grad_(), torch.randn(4, 6, generator=DRAW, dtype=torch.float64)
    values(q, p, temperature=2.0, chunk=3).sum().backward()
    assert q.grad is not None and torch.allclose(q.grad, 2 * ((q / 2).sigmoid() - (p / 2).sigmoid()).detach(), rtol=1e-10)


def test_certain_answers_give_finite_values_in_single_precision() -> None:
    q, p = torch.tensor([[200.0, -200.0, 0.0]]), torch.tensor([[200.0, -200.0, 200.0]])
    assert values(q, p).tolist() == pytest.approx([np.log(2)])  # only the last entry differs: surely there against one half
    assert float(values(-q, p)) == pytest.approx(400 + np.log(2))
