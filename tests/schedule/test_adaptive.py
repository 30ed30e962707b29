"""A number that follows a loss: the recurrence by hand, its bounds, and what a checkpoint keeps."""

import math

import pytest
import torch
from pydantic import ValidationError

from limbeck.schedule.adaptive import Adaptive


def numbers(schedule: Adaptive, losses: list[float]) -> list[float]:
    memory, out = schedule.begin(), []
    for step, loss in enumerate(losses):
        schedule.follow(memory, step, loss)
        out.append(schedule.value(step + 1, memory))
    return out


def test_the_recurrence_by_hand_with_a_scripted_loss() -> None:
    found = numbers(Adaptive(start=0.4, end=1.0, steps=1000, rate=0.1, momentum=0.5), [2.0, 1.5, 1.5, 1.8])
    sigmoid = lambda x: 1 / (1 + math.exp(-x))  # noqa: E731
    # the first loss is only noted: the straight line, 0.4 + 0.6 / 1000
    t = [0.4 + 0.6 * 1 / 1000]
    # (2 - 1.5) / 2 = 0.25, m = 0.125;  0, m = 0.0625;  (1.5 - 1.8) / 1.5 = -0.2, m = -0.06875. The number that rises starts from 0.4
    rising = 0.4
    for m in (0.125, 0.0625, -0.06875):
        rising += 0.1 * sigmoid(m) * (1 - rising)
        t.append(rising)
    assert found == pytest.approx(t, abs=1e-12)


def test_where_the_line_was_faster_it_goes_on_from_the_line() -> None:
    """Without momentum: the loss rises by 0.9 of itself, then falls by it. Both ways to go on differ: from 0.4 it would not reach the line."""
    sigmoid = lambda x: 1 / (1 + math.exp(-x))  # noqa: E731
    found = numbers(Adaptive(start=0.4, end=1.0, steps=10, rate=0.2, momentum=0.0), [2.0, 3.8, 0.38])
    assert 0.4 + 0.2 * sigmoid(-0.9) * 0.6 < 0.52  # so the line is taken, 0.4 + 0.06 * 2
    assert found[1:] == pytest.approx([0.52, 0.52 + 0.2 * sigmoid(0.9) * 0.48], abs=1e-12) and found[2] > 0.58


def test_the_straight_line_is_the_slowest_it_can_be() -> None:
    rising_loss = [1.0 * 2**n for n in range(10)]
    found = numbers(Adaptive(start=0.2, end=0.8, steps=10, rate=0.0), rising_loss)
    assert found == pytest.approx([0.2 + 0.06 * n for n in range(1, 11)])


@pytest.mark.parametrize("rate", [0.2, 1.0])
@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_it_never_falls_and_is_at_its_end_in_time(factor: float, rate: float) -> None:
    found = numbers(Adaptive(start=0.4, end=0.9, steps=12, rate=rate), [factor**n for n in range(12)])
    assert found == sorted(found) and found[-1] == pytest.approx(0.9) and max(found) <= 0.9 + 1e-12


def test_a_loss_of_zero_divides_nothing_by_zero() -> None:
    assert all(map(math.isfinite, numbers(Adaptive(steps=4), [0.0, 0.0, 0.0])))


def test_what_it_remembers_is_in_its_state() -> None:
    schedule, memory, other = Adaptive(steps=50, rate=0.1), Adaptive(steps=50).begin(), Adaptive(steps=50).begin()
    for step, loss in enumerate((3.0, 2.0, 1.0)):
        schedule.follow(memory, step, loss)
    assert sorted(memory.state_dict()) == ["loss", "momentum", "value"] and all(x.dtype == torch.float64 for x in memory.state_dict().values())
    other.load_state_dict(memory.state_dict())
    for each in (memory, other):
        schedule.follow(each, 3, 0.5)
    assert schedule.value(4, memory) == schedule.value(4, other) > schedule.value(4)


def test_an_end_below_its_start_is_refused() -> None:
    with pytest.raises(ValidationError, match="end: above start, which is 0.6"):
        Adaptive(start=0.6, end=0.5)
