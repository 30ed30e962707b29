"""One optimiser step of one turn. How the window is cut does not change its gradient."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.align.base import Aligned, raw
from limbeck.data.base import Place, Rows, Step
from limbeck.model.base import Models
from limbeck.numerics import Streams
from limbeck.signals import Batch, Loss, Row
from limbeck.teacher.base import Teacher
from limbeck.train.settle import Settled
from limbeck.train.stage import Turn


@dataclass
class Running:
    """A turn while it runs: its document and everything it learns or remembers."""

    turn: Turn
    steps: tuple[Step, ...]
    """Data steps: those of the recipe, then those of the turn."""
    memory: list[Any]
    settled: Settled
    learned: list[nn.Module | None] = field(default_factory=list)
    optimiser: torch.optim.Optimizer | None = None
    drawn: int = 0
    """Windows drawn so far: the data cursor."""
    followed: list[dict[str, nn.Module]] = field(init=False)
    """What schedules of each objective remember, by field."""

    def __post_init__(self) -> None:
        self.followed = [{name: s.begin() for name, s in o.schedules.items() if s.follows} for o in self.turn.objective]


def prepare(running: Running, rows: Rows, teacher: Teacher | None, kept: Mapping[str, Any], place: Place, spot: tuple[int, ...]) -> Batch:
    """Makes the window final: data, rollouts, what was captured, alignment, random draws. After this nothing changes a count."""
    turn, batch = running.turn, None
    if rows.parts:
        batch = place.models.batch(rows.draw(place.window * turn.batch, turn.batch, order(place.streams, spot[0], spot[1])))
    for step, memory in zip(running.steps, running.memory, strict=True):
        batch = step.window(batch, place, memory)  # type: ignore[arg-type]
    assert batch is not None, "no data step made a window"
    batch = batch.to(device_of(place.models))
    if teacher is not None:
        batch = teacher.attach(batch, place.models, kept)
    forward = turn.forward.at(spot[-1])
    for align in running.settled.align:
        for role in align.looks:
            names = raw(running.settled.align, role, forward.requires(running.settled.needs)[role])  # type: ignore[attr-defined]
            batch = replace(batch, said={**batch.said, role: place.models.says(role, batch, names)})
        batch = align.index(batch, place.models)
    return forward.draw(batch, place.streams, spot)  # type: ignore[attr-defined]


def order(streams: Streams, stage: int, turn: int) -> Streams:
    """The order in which a turn of a stage draws rows: one of its own, so that no two look at the same windows."""
    return Streams(streams.number("rows", stage, turn))


def drawn(rows: Rows, turn: Turn, steps: int, streams: Streams, stage: int, number: int) -> list[Row]:
    """All rows that a turn (the `number`-th of its stage) will draw in so many steps, in order: what a capture must cover."""
    return rows.draw(0, -(-steps // turn.every) * turn.batch, order(streams, stage, number)) if rows.parts else []


def device_of(models: Models) -> torch.device:
    """Where the models are; models without parameters are on the CPU."""
    return next((p.device for p in models.parameters()), torch.device("cpu"))


def count(turn: Turn, batch: Batch) -> list[int]:
    """How many units each objective will sum; with several ranks, these are added up."""
    return [batch.count(o.unit, o.role(o.teaches), o.tag) for o in turn.objective]


def window(running: Running, models: Models, batch: Batch, step: int, counts: Sequence[int]) -> list[Loss]:
    """Gradients of one optimiser step, added to those that are there; sums and counts of each objective.

    `counts` are over all micro-batches and ranks: the only place that divides.
    """
    sums, summed = [0.0] * len(counts), [0] * len(counts)
    for part in batch.cut(running.turn.micro):
        total, losses = share(running, models, part, step, counts)
        for i, loss in enumerate(losses):
            sums[i], summed[i] = sums[i] + loss.total.item(), summed[i] + loss.count
        if total.requires_grad:
            total.backward()
    assert summed == count(running.turn, batch), f"counted {count(running.turn, batch)} before the window, summed {summed} in it"
    return [Loss(torch.tensor(s, dtype=torch.float64), n) for s, n in zip(sums, summed, strict=True)]


def share(running: Running, models: Models, part: Batch, step: int, counts: Sequence[int]) -> tuple[Tensor, list[Loss]]:
    """What a part of a window adds to the weighted sum of all objectives, whose gradient is wanted; and sum and count of each."""
    forward, listen = running.turn.forward.at(step), Aligned(models, running.settled.align)
    said = forward(listen, part, running.settled.needs)  # type: ignore[operator]
    objectives: list[Any] = [o.at(step, followed) for o, followed in zip(running.turn.objective, running.followed, strict=True)]
    losses = [objective(said, learned) for objective, learned in zip(objectives, running.learned, strict=True)]
    weights = [objective.weight for objective in objectives]
    return torch.stack([weight * loss.total / max(num, 1) for weight, loss, num in zip(weights, losses, counts, strict=True)]).sum(), losses
