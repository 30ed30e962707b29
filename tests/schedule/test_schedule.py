"""Numbers that move: at their ends, between them, beyond them, and within the bounds of the field that holds them."""

import pytest
from pydantic import BaseModel, ValidationError

from limbeck.objective.skew_kl import SkewKL
from limbeck.schedule import Positive, Scalar, Schedule, Share
from limbeck.schedule.cosine import Cosine
from limbeck.schedule.linear import Linear
from limbeck.train.optimiser import Optimiser


class Holder(BaseModel):
    scalar: Scalar = 0.0
    positive: Positive = 1.0
    share: Share = 0.5


@pytest.mark.parametrize("step, value", [(0, 1.0), (1, 1.5), (3, 2.5), (4, 3.0), (5, 3.0), (10**9, 3.0)])
def test_a_line_by_hand(step: int, value: float) -> None:
    assert Linear(start=1.0, end=3.0, steps=4).value(step) == value


@pytest.mark.parametrize("step, value", [(0, 1.0), (1, 0.75), (2, 0.25), (3, 0.0), (4, 0.0)])  # cos 60 and 120 degrees are 1/2 and -1/2
def test_half_a_cosine_by_hand(step: int, value: float) -> None:
    assert Cosine(start=1.0, end=0.0, steps=3).value(step) == pytest.approx(value, abs=1e-15)


def test_half_a_cosine_is_slow_at_both_ends_and_fast_in_the_middle() -> None:
    values = [Cosine(start=0.0, end=1.0, steps=8).value(s) for s in range(9)]
    steps = [b - a for a, b in zip(values, values[1:], strict=False)]
    assert values[4] == pytest.approx(0.5) and steps == pytest.approx(steps[::-1]) and steps[0] < steps[1] < steps[2] < steps[3]


@pytest.mark.parametrize("kind", [Linear, Cosine])
def test_its_ends_bound_every_value(kind: type[Schedule]) -> None:
    for start, end in ((0.2, 0.9), (0.9, 0.2)):
        schedule = kind(start=start, end=end, steps=7)  # type: ignore[call-arg]
        assert schedule.ends == (0.2, 0.9) and all(0.2 <= schedule.value(s) <= 0.9 for s in range(12))


def test_a_number_or_a_schedule_may_stand_where_a_number_moves() -> None:
    held = Holder.model_validate({"scalar": "linear", "positive": {"kind": "cosine", "start": 2}, "share": 1})
    assert held.scalar == Linear() and held.positive == Cosine(start=2.0) and held.share == 1.0


@pytest.mark.parametrize("field, value", [("positive", 0), ("positive", -1), ("share", 1.5), ("share", -0.1), ("scalar", "liner")])
def test_bounds_hold_for_numbers(field: str, value: object) -> None:
    with pytest.raises(ValidationError):
        Holder.model_validate({field: value})


@pytest.mark.parametrize("start, end, told", [(0.5, 1.5, "less than or equal to 1"), (-0.5, 0.5, "greater than or equal to 0")])
def test_a_schedule_that_leaves_the_bounds_of_its_field_is_refused_when_it_is_written(start: float, end: float, told: str) -> None:
    inside = Linear(start=0.5, end=0.8, steps=2)
    with pytest.raises(ValidationError, match=f"alpha: {told}.*; the schedule reaches {end if end > 1 else start}"):
        SkewKL(alpha=Linear(start=start, end=end, steps=2), weight=inside)


def test_a_weight_may_begin_at_nothing_and_a_rate_too_but_neither_below() -> None:
    assert SkewKL(weight=Linear(start=0.0, end=1.0, steps=4)).at(0).weight == 0.0  # type: ignore[attr-defined]
    assert Optimiser(lr=Linear(start=0.0, end=1e-3, steps=4)).rate(0, 8) == 0.0
    for falls in (lambda: SkewKL(weight=Linear(start=1.0, end=-1.0)), lambda: Optimiser(lr=Linear(start=1e-3, end=-1e-3))):
        with pytest.raises(ValidationError, match="reaches -"):
            falls()


def test_a_schedule_takes_at_least_one_step() -> None:
    with pytest.raises(ValidationError):
        Linear(steps=0)
