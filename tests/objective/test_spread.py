"""The spread of a window's samples."""

import pytest
import torch

from limbeck.objective.spread import Spread
from limbeck.signals import Signals


def signals(made: torch.Tensor) -> Signals:
    num = len(made)
    return Signals({"made": made}, {"row": torch.arange(num)}, ("",) * num, torch.arange(num), torch.ones(num))


def test_it_is_the_variance_over_the_window() -> None:
    made = torch.randn(64, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    total, count = Spread()({"student": signals(made)})
    assert count == 64 and float(total) / count == pytest.approx(float(made.var(0, unbiased=False).mean()))


def test_samples_that_are_alike_have_none_however_large_they_are() -> None:
    assert float(Spread()({"student": signals(torch.full((8, 3), 5.0))}).total) == 0
