"""The mean of the best states that a stage went through."""

import copy
from typing import Any

import pytest
import torch

from limbeck.check.models import family_of, rows
from limbeck.model.base import Models
from limbeck.numerics import Streams
from limbeck.objective.cross_entropy import CrossEntropy
from limbeck.train.loop import Loop, World
from limbeck.train.optimiser import Optimiser
from limbeck.train.stage import Select, Stage, Turn

VALUES = (3.0, 1.0, 2.0, 1.0, 5.0, 0.5)
"""What is measured after each step, if less is better; of equal ones the first is better."""


def loop_of(measured: list[float], **select: Any) -> Loop:
    how = Select(every=1, **select)
    turn = Turn(objective=(CrossEntropy(),), batch=2, optimiser=Optimiser(lr=1e-2))
    world = World(Models({"student": family_of("llama")}), rows(), streams=Streams(0), scorer=lambda _: {"kl": measured.pop(0)})
    return Loop(Stage(steps=len(VALUES), turn=(turn,), select=how), world)


def states_of(loop: Loop) -> list[dict[str, Any]]:
    """The state after every step, and at the end."""
    found = []
    loop.run(lambda one, _: found.append(copy.deepcopy(one.world.models["student"].module.state_dict())))
    return [*found, loop.world.models["student"].module.state_dict()]


@pytest.mark.parametrize(
    "average, greater, steps", [(1, False, [5]), (2, False, [5, 1]), (3, False, [5, 1, 3]), (2, True, [4, 0]), (9, False, [0, 1, 2, 3, 4, 5])]
)
def test_the_stage_ends_in_the_mean_of_the_best_states(average, greater, steps):
    *each, last = states_of(loop_of(list(VALUES), average=average, greater=greater))
    for name, x in last.items():
        torch.testing.assert_close(x, torch.stack([each[i][name] for i in steps]).mean(0), rtol=1e-12, atol=1e-12)


def test_a_stage_that_was_stopped_keeps_the_states_that_it_had_kept():
    whole = states_of(loop_of(list(VALUES), average=3))[-1]
    first = loop_of(list(VALUES), average=3)
    first.run(stop=lambda: first.step == 3)
    then = loop_of(list(VALUES[3:]), average=3).load(copy.deepcopy(first.state()))
    assert all(torch.equal(x, whole[name]) for name, x in states_of(then)[-1].items())


def test_patience_goes_by_the_best_alone():
    loop = loop_of(list(VALUES), average=3, patience=2)
    loop.run()
    assert loop.step == 4 and [kept["step"] for kept in loop.best] == [2, 4, 3]  # after 1.0 neither 2.0 nor 1.0 is better
