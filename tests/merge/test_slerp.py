"""The arc between two tensors, by hand and where there is none."""

import math

import pytest
import torch

from limbeck.merge.slerp import Slerp


def at(t: float, a: list[float], b: list[float]) -> list[float]:
    return Slerp(t=t)("w", [torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)], None).tolist()


def test_a_third_of_a_right_angle_is_thirty_degrees() -> None:
    assert at(1 / 3, [1.0, 0.0], [0.0, 1.0]) == pytest.approx([math.sqrt(3) / 2, 0.5], rel=1e-12)
    assert at(0.5, [2.0, 0.0], [0.0, 4.0]) == pytest.approx([math.sqrt(2), 2 * math.sqrt(2)], rel=1e-12)


@pytest.mark.parametrize("a, b", [([1.0, 2.0], [2.0, -1.0]), ([1.0, 2.0], [3.0, 5.9])])
def test_it_begins_at_the_first_and_ends_at_the_second(a: list[float], b: list[float]) -> None:
    assert at(0, a, b) == pytest.approx(a, rel=1e-12) and at(1, a, b) == pytest.approx(b, rel=1e-12)


@pytest.mark.parametrize("a, b", [([1.0, 2.0], [2.0, 4.0]), ([1.0, 2.0], [-1.0, -2.0]), ([0.0, 0.0], [2.0, 4.0]), ([0.0, 0.0], [0.0, 0.0])])
def test_in_one_line_and_from_zero_it_is_the_straight_line(a: list[float], b: list[float]) -> None:
    assert at(0.25, a, b) == [0.75 * x + 0.25 * y for x, y in zip(a, b, strict=True)]


def test_it_takes_two() -> None:
    with pytest.raises(ValueError, match="two names"):
        Slerp(of=("a", "b", "c"))
