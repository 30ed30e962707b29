"""Two data steps of one kind in one window."""

from typing import Any, Literal

import pytest

from limbeck.check.models import Trial
from limbeck.data.base import Place, Step
from limbeck.objective.forward_kl import ForwardKL
from limbeck.signals import Batch

DRAWN: list[int] = []


class Draws(Step):
    """Draws one number a window, and keeps it where the test can see it."""

    kind: Literal["draws"] = "draws"

    def window(self, batch: Batch, place: Place, memory: Any) -> Batch:
        DRAWN.append(place.streams.number("draws", place.window))
        return batch


class Others(Step):
    """The same, of another kind."""

    kind: Literal["others"] = "others"

    def window(self, batch: Batch, place: Place, memory: Any) -> Batch:
        DRAWN.append(place.streams.number("draws", place.window))
        return batch


@pytest.mark.parametrize(("steps", "numbers"), [((Draws, Draws, Draws), 3), ((Draws, Others), 1)])
def test_the_second_of_a_kind_draws_other_numbers_and_what_the_first_draws_does_not_change(steps: Any, numbers: int) -> None:
    DRAWN.clear()
    trial = Trial(width=16, objective=(ForwardKL(),), data=tuple(step() for step in steps))  # type: ignore[call-arg]
    assert len(DRAWN) == len(steps) and len(set(DRAWN)) == numbers
    assert DRAWN[0] == trial.world.streams.number("draws", 0), "a step that stands alone draws what it always drew"
