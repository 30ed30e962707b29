"""Pitch from labels: the bell against numbers by hand, the loss against torch's own."""

import math

import pytest
import torch

from limbeck.objective.pitch_bce import PitchBCE
from limbeck.signals import Signals


def signals(logits: torch.Tensor, pitch: torch.Tensor) -> Signals:
    num = len(logits)
    units = {"target": torch.arange(num), "row": torch.arange(num)}
    return Signals({"logits": logits, "pitch": pitch}, units, ("",) * num, torch.arange(num), torch.ones(num))


def test_the_bell_stands_at_the_pitch_and_a_frame_without_one_has_none() -> None:
    like = torch.zeros(1, 360, dtype=torch.float64)
    y = PitchBCE().bell(torch.tensor([440.0, 0.0]), like)
    assert y[0].argmax() == 228 and not y[1].any()
    gap = 1997.3794084376191 + 20 * 228 - 1200 * math.log2(44)  # 6.06 cents above 440 Hz
    assert float(y[0, 228]) == pytest.approx(math.exp(-(gap**2) / (2 * 25**2)), rel=1e-5)
    assert float(y[0, 227]) == pytest.approx(math.exp(-((gap - 20) ** 2) / (2 * 25**2)), rel=1e-5)
    assert float(y[0, 288]) < 1e-300  # an octave above is wrong
    assert float(PitchBCE(width=50.0).bell(torch.tensor([440.0]), like)[0, 225]) > float(y[0, 225])


def test_the_loss_is_the_binary_cross_entropy_summed_over_bins_and_teaches_logits_alone() -> None:
    logits = (3 * torch.randn(4, 360, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).requires_grad_()
    pitch = torch.tensor([110.0, 0.0, 441.5, 1900.0], dtype=torch.float64).requires_grad_()
    objective = PitchBCE(chunk=3)
    found = objective.values(student=signals(logits, pitch))
    y = objective.bell(pitch.detach(), logits)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, y, reduction="none").sum(-1)
    assert torch.allclose(found, expected, rtol=1e-10)
    found.sum().backward()
    assert pitch.grad is None and logits.grad is not None and torch.allclose(logits.grad, (logits.sigmoid() - y).detach(), rtol=1e-8, atol=1e-12)
