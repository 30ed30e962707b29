"""Distances of what is said of noisy samples."""

import math
from typing import Any

import pytest
import torch

from limbeck.objective.denoising import Denoising
from limbeck.signals import Signals


def said(**values: torch.Tensor) -> Signals:
    rows = torch.arange(len(next(iter(values.values()))))
    return Signals(values, {"row": rows}, ("",) * len(rows), rows, torch.ones(len(rows)))


def value(student: Any, teacher: Any, **fields: Any) -> list[float]:
    objective = Denoising(signal="denoised", against="teacher", **fields)
    return objective.values(said(denoised=student), said(denoised=teacher)).tolist()


def test_it_is_the_mean_over_the_numbers_of_a_sample() -> None:
    a, b = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]], [[[0.0, 0.0], [0.0, 2.0]]]]), torch.zeros(2, 1, 2, 2)
    assert value(a, b) == [7.5, 1.0]  # (1 + 4 + 9 + 16) / 4, 4 / 4


def test_the_pseudo_huber_form_is_that_of_latent_consistency_models() -> None:
    c, d = 0.001, [3.0, 0.01]
    expected = sum(math.sqrt(x * x + c * c) - c for x in d) / 2
    assert value(torch.tensor([d]), torch.zeros(1, 2), huber=c)[0] == pytest.approx(expected, rel=1e-6)


def test_the_pseudo_huber_form_keeps_tiny_differences_in_float32() -> None:
    c, d = 1.0, 1e-5  # sqrt(d^2 + c^2) - c is 0 in float32
    assert value(torch.tensor([[d]]), torch.zeros(1, 1), huber=c)[0] == pytest.approx(math.sqrt(d * d + c * c) - c, rel=1e-3)
    assert value(torch.tensor([[d]]), torch.zeros(1, 1), huber=c)[0] == pytest.approx(d * d / 2, rel=1e-6)


def test_half_precision_is_compared_in_float32() -> None:
    a, b = torch.tensor([[1.0, 1.0]], dtype=torch.bfloat16), torch.tensor([[1.001, 1.0]])
    assert value(a, b)[0] == pytest.approx(5e-7, rel=0.01)


def test_against_the_truth_each_signal_is_held_against_its_own() -> None:
    for signal, truth in (("epsilon", "noise"), ("denoised", "clean"), ("velocity", "flow")):
        objective = Denoising(signal=signal)  # type: ignore[call-arg, arg-type]
        assert objective.needs == {"student": (signal, truth)}
        assert objective.values(said(**{signal: torch.ones(1, 2), truth: torch.zeros(1, 2)})).tolist() == [1.0]
