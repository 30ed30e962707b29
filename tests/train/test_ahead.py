"""Windows that are made while the step before them runs: the same ones, and nothing is waited for that is not needed yet."""

import copy
from dataclasses import replace
from threading import Event, current_thread
from typing import Any, Literal

import pytest
import torch

from limbeck.check.models import pair, rows
from limbeck.data.base import Place, Step
from limbeck.recipe import validate
from limbeck.signals import Batch, Needs
from limbeck.teacher.live import Live
from limbeck.train.ahead import Ahead
from limbeck.train.loop import Loop, World
from limbeck.train.stage import Stage


def window(name: str) -> Batch:
    return Batch({}, ("",), torch.zeros(1, dtype=torch.long), (name,), torch.ones(1))


def test_the_next_window_is_made_beside_the_step_and_is_not_waited_for_before_it_is_asked_for():
    ready, threads = Event(), {}

    def make(number: int) -> Batch:
        threads[number] = current_thread().name
        if number == 1:
            assert ready.wait(10)
        return window(str(number))

    ahead = Ahead(make)
    assert ahead.take(0, more=True).keys == ("0",)  # the second one cannot be there yet
    ready.set()
    assert ahead.take(1, more=False).keys == ("1",)
    assert threads == {0: current_thread().name, 1: "limbeck-window_0"}


def test_another_window_than_the_one_begun_is_made_anew():
    asked: list[int] = []

    def make(number: int) -> Batch:
        asked.append(number)
        return window(str(number))

    ahead = Ahead(make)
    ahead.take(0, more=True)
    assert ahead.take(7, more=False).keys == ("7",)
    assert sorted(asked) == [0, 1, 7]


def test_what_goes_wrong_in_a_window_is_raised_where_that_window_is_asked_for():
    def make(number: int) -> Batch:
        if number == 1:
            raise ValueError("no such row")
        return window(str(number))

    ahead = Ahead(make)
    assert ahead.take(0, more=True).keys == ("0",)
    with pytest.raises(ValueError, match="no such row"):
        ahead.take(1, more=True)
    assert ahead.take(2, more=False).keys == ("2",)


class Seen(Step):
    """Notes in which thread each window was made."""

    kind: Literal["seen"] = "seen"
    speaks: bool = False
    remembers: bool = False

    @property
    def needs(self) -> Needs:
        return {"student": ("text",)} if self.speaks else {}

    def build(self, example: Any) -> torch.nn.Module | None:
        return torch.nn.Linear(1, 1) if self.remembers else None

    def window(self, batch: Batch, place: Place, memory: object) -> Batch:
        NOTED.append((place.window, current_thread().name.startswith("limbeck-window")))
        return replace(batch, keys=tuple(f"{key}:{place.window}" for key in batch.keys))


NOTED: list[tuple[int, bool]] = []


def trained(step: Seen, at_once: bool = False) -> list[dict[str, Any]]:
    """What four steps log, but for what a clock says."""
    NOTED.clear()
    found: list[dict[str, Any]] = []
    stage = validate(Stage, {"steps": 4, "batch": 2, "objective": ["forward_kl"]}, "train.0")
    loop = Loop(stage, World(copy.deepcopy(pair(0)), rows(0), (step,), Live(model="given:teacher")))
    if at_once:
        loop.ahead = [Straight(ahead.make) for ahead in loop.ahead]
    assert loop.run(lambda loop, records: found.extend(record for record in records if not record["name"].endswith("_seconds")))
    return found


class Straight(Ahead):
    """Makes every window when it is asked for."""

    def take(self, number: int, more: bool) -> Batch:
        return self.make(number)


def test_a_run_is_the_same_to_the_last_bit_and_draws_no_window_that_it_does_not_need():
    found = trained(Seen())
    assert NOTED == [(0, False), (1, True), (2, True), (3, True)]
    assert trained(Seen(), at_once=True) == found
    assert NOTED == [(0, False), (1, False), (2, False), (3, False)]


@pytest.mark.parametrize("step", [Seen(speaks=True), Seen(remembers=True)])
def test_a_window_in_which_a_role_speaks_or_data_remembers_waits_for_the_step_before_it(step: Seen):
    trained(step)
    assert NOTED == [(0, False), (1, False), (2, False), (3, False)]
