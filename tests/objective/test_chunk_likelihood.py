"""The divergence of two softened coins, against numbers by hand and float64."""

import math

import pytest
import torch

from limbeck.objective.chunk_likelihood import ChunkLikelihood, log1mexp
from limbeck.signals import Signals


def said(*values: float, dtype: torch.dtype = torch.float64, learns: bool = False) -> Signals:
    x = torch.tensor(values, dtype=dtype, requires_grad=learns)
    one = torch.zeros(len(values), dtype=torch.long)
    return Signals({"chunk_logprob": x}, {"chunk": one}, ("",), torch.zeros(1, dtype=torch.long), torch.ones(1))


def entropy(a: float) -> float:
    p = math.exp(a)
    return -(p * a + (1 - p) * math.log(-math.expm1(a)))


@pytest.mark.parametrize("teacher, student", [(-3.0, -7.5), (-0.01, -200.0), (-500.0, -0.5), (0.0, -1.0), (0.5, -2.0)])
def test_with_the_entropy_of_the_teacher_it_is_the_binary_cross_entropy(teacher: float, student: float) -> None:
    a, b = (min(x, 0) / 100 - 1e-6 for x in (teacher, student))
    expected = -(math.exp(a) * b + (1 - math.exp(a)) * math.log(-math.expm1(b)))
    for dtype, close in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        (found,) = ChunkLikelihood().values(said(student, dtype=dtype), said(teacher, dtype=dtype)).tolist()
        assert found + entropy(a) == pytest.approx(expected, abs=close)


def test_one_chunk_by_hand() -> None:
    a, b = -math.log(2), -math.log(4)  # coins of 1/2 and 1/4: log 2 / 2 + log(2/3) / 2
    one = ChunkLikelihood(tau=1.0)  # type: ignore[call-arg]
    (found,) = one.values(said(b + 1e-6), said(a + 1e-6)).tolist()
    assert found == pytest.approx(0.5 * math.log(4 / 3), abs=1e-12)


def test_the_gradient_is_zero_where_both_agree_and_finite_at_both_ends() -> None:
    for dtype in (torch.float32, torch.float64):
        student = said(-0.5, -3.0, -90.0, dtype=dtype, learns=True)
        ChunkLikelihood().values(student, said(-0.5, -3.0, -90.0, dtype=dtype)).sum().backward()
        assert student["chunk_logprob"].grad.abs().max() < 1e-6
        edge = said(0.0, -1e-9, -1e4, -1e30, dtype=dtype, learns=True)
        value = ChunkLikelihood().values(edge, said(-1e4, -1.0, 0.0, -5.0, dtype=dtype))
        value.sum().backward()
        assert value.isfinite().all() and edge["chunk_logprob"].grad.isfinite().all()


def test_log1mexp_is_exact_at_both_ends() -> None:
    x = [-1e-9, -0.1, -math.log(2), -1.0, -40.0]
    found = log1mexp(torch.tensor(x, dtype=torch.float64)).tolist()
    assert found == pytest.approx([math.log(-math.expm1(v)) if v > -0.7 else math.log1p(-math.exp(v)) for v in x], rel=1e-14)


def test_the_branch_that_is_not_taken_adds_no_nan_to_the_gradient_of_log1mexp() -> None:
    x = torch.tensor([-1e-9, -0.5, -2.0, -200.0], requires_grad=True)  # in float32 e^-1e-9 is 1: the other branch is log 0
    log1mexp(x).sum().backward()
    assert x.grad is not None and x.grad.tolist() == pytest.approx([-math.exp(v) / -math.expm1(v) for v in x.tolist()], rel=1e-5)
