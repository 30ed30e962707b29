"""Contracts of schedules: pure functions of the step that stay within their ends."""

import math
from collections.abc import Sequence

from torch import nn

from limbeck.check.contract import NotClaimed, contract
from limbeck.schedule.base import Schedule

STEPS = tuple(range(0, 200, 10)) + (10_000, 1_000_000)
"""Twenty steps of an ordinary stage, and two far behind its end."""


def exercise(schedule: Schedule) -> None:
    """One ordinary use."""
    schedule.value(3)
    schedule.ends  # noqa: B018
    if schedule.follows:
        followed(schedule, (2.0, 1.0))


def followed(schedule: Schedule, losses: Sequence[float], memory: nn.Module | None = None) -> list[float]:
    """Its numbers at steps with these losses."""
    memory, out = memory or schedule.begin(), []
    for step, loss in enumerate(losses):
        out.append(schedule.value(step, memory))
        schedule.follow(memory, step, loss)
    return out


@contract
def values(schedule: Schedule) -> None:
    """It gives a finite number at every step, always the same one."""
    for step in STEPS:
        x = schedule.value(step)
        assert isinstance(x, float) and math.isfinite(x), f"{x!r} at step {step}, expected a finite float"
        assert schedule.value(step) == x, f"another number at step {step} when asked again"


@contract
def ends_hold(schedule: Schedule) -> None:
    """Its numbers never leave the ends that it states, and reach both: the planner holds those against the bounds of a field."""
    low, high = schedule.ends
    assert low <= high, f"ends {low} and {high} are the wrong way round"
    found = [schedule.value(step) for step in (*range(2_000), *STEPS)]
    slack = 1e-9 * max(1.0, abs(low), abs(high))
    assert min(found) >= low - slack, f"it falls to {min(found):.6g}, below its end {low:.6g}"
    assert max(found) <= high + slack, f"it rises to {max(found):.6g}, above its end {high:.6g}"
    assert min(found) <= low + 1e-3 * (high - low) + slack and max(found) >= high - 1e-3 * (high - low) - slack, f"it never reaches {low} or {high}"


@contract
def monotone(schedule: Schedule) -> None:
    """It moves one way only, unless its class says `monotone = False`."""
    if not getattr(schedule, "monotone", True):
        raise NotClaimed("it says that it goes up and down")
    found = [schedule.value(step) for step in range(500)]
    moves = {b > a for a, b in zip(found, found[1:], strict=False) if b != a}
    assert len(moves) < 2, "it goes up and down; say so: monotone: ClassVar[bool] = False"


@contract
def remembers(schedule: Schedule) -> None:
    """Where it follows a loss: losses change it, it stays within its ends, and a saved memory goes on as the first would."""
    if not schedule.follows:
        raise NotClaimed("it follows no loss")
    falling, rising = [2.0 * 0.9**n for n in range(60)], [2.0 * 1.1**n for n in range(60)]
    found, low, high = followed(schedule, falling), *schedule.ends
    down, up = schedule.begin(), schedule.begin()
    followed(schedule, falling, down), followed(schedule, rising, up)
    assert any(not x.equal(up.state_dict()[name]) for name, x in down.state_dict().items()), "falling and rising losses leave the same memory"
    assert low - 1e-9 <= min(found) and max(found) <= high + 1e-9, f"it leaves its ends: {min(found):.6g} to {max(found):.6g}"
    memory, again = schedule.begin(), schedule.begin()
    followed(schedule, falling[:30], memory)
    again.load_state_dict(memory.state_dict())
    assert followed(schedule, falling[30:], memory) == followed(schedule, falling[30:], again), "a saved memory goes on elsewhere"
