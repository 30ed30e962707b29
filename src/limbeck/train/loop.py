"""The one loop: a stage, its steps, their turns. All that moves is in here, so a checkpoint is `state()`."""

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from limbeck.align.base import Aligned
from limbeck.component import Component, changed
from limbeck.data.base import Place, Rows, Step
from limbeck.errors import Failed
from limbeck.merge.average import Average
from limbeck.model.base import Models
from limbeck.numerics import Streams
from limbeck.signals import Batch, Loss
from limbeck.teacher.base import Teacher
from limbeck.train.ahead import Ahead
from limbeck.train.alarm import Watch
from limbeck.train.settle import settle
from limbeck.train.stage import Stage
from limbeck.train.window import Running, count, device_of, made, prepare, window

Scorer = Callable[[Models], Mapping[str, float]]
"""Held-out metrics of the models as they are."""


@dataclass(frozen=True)
class World:
    """What a loop is given: it owns none of it but the roles that it trains."""

    models: Models
    rows: Rows = Rows()
    steps: tuple[Step, ...] = ()
    """Data steps of the recipe, for each window."""
    teacher: Teacher | None = None
    kept: Mapping[str, Any] = field(default_factory=dict)
    """What was captured of the teacher."""
    streams: Streams = Streams(0)
    base: str = "."
    scorer: Scorer | None = None
    autocast: torch.dtype | None = None


class Loop:
    """Runs one stage, and goes on exactly where it was stopped."""

    def __init__(self, stage: Stage, world: World, number: int = 0, where: str = "train.0"):
        assert stage.steps != "auto", "the planner settles the number of steps"
        self.stage, self.world, self.number, self.where = stage, world, number, where
        self.steps, self.step, self.ended = int(stage.steps), 0, False
        self.best: list[dict[str, Any]] = []
        """What a selection keeps: value, step and state, the best first."""
        self.waited = 0
        self.memory = [step.build(None) for step in world.steps]
        self.running = [self.begin(t) for t in range(len(stage.turn))]
        self.ahead = [Ahead(partial(self.draw, running)) for running in self.running]
        self.watches = [Watch(alarm) for alarm in stage.alarm]

    def begin(self, t: int) -> Running:
        """Settles a turn, and builds what it learns and remembers."""
        turn, world = self.stage.turn[t], self.world
        where = f"{self.where}.turn.{t}" if len(self.stage.turn) > 1 else self.where
        steps, own = (*world.steps, *turn.data), [step.build(None) for step in turn.data]
        running = Running(turn, steps, [*self.memory, *own], settle(turn, steps, world.models, where), stage=self.number, number=t)
        running.learned = self.build(running, t)
        named = world.models.trainable(turn.trains, turn.only, turn.freeze)
        running.optimiser = turn.optimiser.build(named, running.learned)
        return running

    def build(self, running: Running, t: int) -> list[Any]:
        """What objectives learn, made to fit: a dry run of one group of rows, with memories of its own, gives example signals."""
        objectives, world = running.turn.objective, self.world
        if all(type(o).build is Component.build for o in objectives):
            return [None] * len(objectives)
        whole = changed(running.turn, forward=running.turn.forward.in_full())
        dry = Running(whole, running.steps, [step.build(None) for step in running.steps], running.settled, stage=self.number, number=t)
        with torch.no_grad(), torch.random.fork_rng(), world.models.turn(None):
            torch.manual_seed(world.streams.number("build", self.number, t))
            place = self.place(0)
            batch = prepare(made(dry, world.rows, place), dry, world.teacher, world.kept, place, (self.number, t, 0))
            listen, one = Aligned(world.models, running.settled.align), batch.cut(len(batch.keys))[0]
            example = running.turn.forward.at(0)(listen, one, running.settled.needs)  # type: ignore[operator]
            learned = [o.build({seat: example[o.role(seat)] for seat in o.needs}) for o in objectives]
        for objective, module in zip(objectives, learned, strict=True):
            refuse_batch_norm(objective, module)
        return [module if module is None else module.to(device_of(world.models)) for module in learned]

    def draw(self, running: Running, number: int) -> Batch:
        """One window of a turn, as its data makes it."""
        return made(running, self.world.rows, self.place(number))

    def place(self, window: int) -> Place:
        return Place(self.world.models, self.world.streams, window, self.world.base)

    def run(
        self, observe: Callable[["Loop", list[dict[str, Any]]], None] = lambda loop, records: None, stop: Callable[[], bool] = lambda: False
    ) -> bool:
        """Goes on to the end of the stage; `stop` is asked between steps. Returns whether the stage is finished."""
        while self.step < self.steps and not self.ended:
            if stop():
                return False
            records = [record for t, running in enumerate(self.running) if self.step % running.turn.every == 0 for record in self.take(t, running)]
            if self.world.teacher is not None:
                self.world.teacher.at(self.step).follow(self.world.models)  # type: ignore[attr-defined]
            self.step += 1
            records += self.select()
            try:
                for watch in self.watches:
                    watch.hear(self.step - 1, records, self.where)
            finally:
                observe(self, records)
        self.ended = True
        if self.best:
            self.world.models[self.trained].module.load_state_dict(mean([kept["state"] for kept in self.best]))
        return True

    @property
    def sounding(self) -> bool:
        """Whether a figure is beyond the bound of an alarm: this is no state to go back to."""
        return any(watch.beyond for watch in self.watches)

    @property
    def trained(self) -> str:
        """The role that a selection keeps: that of the last turn."""
        return self.stage.turn[-1].trains

    def take(self, t: int, running: Running) -> list[dict[str, Any]]:
        """One turn: the window is made, counted, run, and the optimiser steps. Returns records of metrics."""
        spot, turn, models, began = (self.number, t, self.step), running.turn, self.world.models, time.perf_counter()
        batch = self.ahead[t].take(running.drawn, running.early and self.step + turn.every < self.steps)
        waited = time.perf_counter() - began
        batch = prepare(batch, running, self.world.teacher, self.world.kept, self.place(running.drawn), spot)
        torch.manual_seed(self.world.streams.number("dropout", *spot))
        optimiser = running.optimiser
        assert optimiser is not None
        with models.turn(turn.trains, turn.only, turn.freeze, turn.through), self.precision():
            optimiser.zero_grad(set_to_none=True)
            losses = window(running, models, batch, self.step, count(turn, batch))
        for group in optimiser.param_groups:
            if (factor := group.get("gradient", 1.0)) != 1:  # a checkpoint of an earlier version has none
                torch._foreach_mul_([p.grad for p in group["params"] if p.grad is not None], factor)
        norm = torch.nn.utils.clip_grad_norm_([p for g in optimiser.param_groups for p in g["params"]], turn.optimiser.clip or math.inf)
        bad = [o.kind for o, loss in zip(turn.objective, losses, strict=True) if not loss.total.isfinite()]  # type: ignore[attr-defined]
        if bad or not norm.isfinite():
            raise NotFinite(self, t, batch, bad)
        rate = turn.optimiser.rate(self.step, self.steps)
        for group in optimiser.param_groups:
            group["lr"] = rate * group["rate"]
        optimiser.step()
        running.drawn += 1
        self.follow(running, losses)
        prefix = f"{t}." if len(self.running) > 1 else ""
        names = [f"{prefix}{o.kind}" for o in turn.objective]  # type: ignore[attr-defined]
        names = [n if names.count(n) == 1 else f"{n}.{i}" for i, n in enumerate(names)]
        records = [(name, loss.total.item(), loss.count) for name, loss in zip(names, losses, strict=True)]
        records += [
            (f"{name}.{field}", schedule.value(self.step + 1, followed[field]), 1)
            for name, o, followed in zip(names, turn.objective, running.followed, strict=True)
            for field, schedule in o.schedules.items()
            if schedule.follows
        ]
        records += [(f"{name}.weight", weight, 1) for name, weight in zip(names, running.weights, strict=True)] if running.weights else []
        records += [
            (f"{prefix}gradient_norm", norm.item(), 1),
            (f"{prefix}learning_rate", rate, 1),
            (f"{prefix}data_seconds", waited, 1),
            (f"{prefix}step_seconds", time.perf_counter() - began, 1),
        ]
        return [{"step": self.step, "name": name, "sum": total, "count": num} for name, total, num in records]

    def follow(self, running: Running, losses: Sequence[Loss]) -> None:
        """Objectives hear that a step is over, and schedules that follow the loss of theirs its mean; where nothing was counted there is none."""
        for objective, learned, followed, loss in zip(running.turn.objective, running.learned, running.followed, losses, strict=True):
            objective.follow(learned)
            for name, memory in followed.items() if loss.count else ():
                objective.schedules[name].follow(memory, self.step, loss.total.item() / loss.count)

    def precision(self) -> Any:
        dtype = self.world.autocast
        return torch.autocast(device_of(self.world.models).type, dtype=dtype, enabled=dtype is not None)

    def select(self) -> list[dict[str, Any]]:
        """Measures, keeps the best state, and ends the stage when patience is at its end."""
        how = self.stage.select
        if how is None or self.world.scorer is None or (self.step % how.every and self.step != self.steps):
            return []
        with torch.random.fork_rng():
            found = dict(self.world.scorer(self.world.models))
        if how.metric not in found:
            raise Failed("metric", f"{self.where}.select.metric", f"one of {', '.join(found)}", how.metric, "change the metric", code=5)
        value = found[how.metric]
        better = [kept for kept in self.best if (value <= kept["value"] if how.greater else value >= kept["value"])]
        if len(better) < how.average:
            state = copy.deepcopy(self.world.models[self.trained].module.state_dict())
            self.best.insert(len(better), {"value": value, "step": self.step, "state": state})
            del self.best[how.average :]
        self.waited = self.waited + 1 if better else 0
        self.ended = bool(better) and how.patience is not None and self.waited >= how.patience
        return [{"step": self.step - 1, "name": f"held_out.{name}", "sum": value, "count": 1} for name, value in found.items()]

    def state(self) -> dict[str, Any]:
        """Everything a stage is, apart from its recipe: random streams are functions of where it stands."""
        return {
            "at": {"step": self.step, "ended": self.ended, "waited": self.waited, "drawn": [r.drawn for r in self.running]},
            "roles": {name: self.world.models[name].module.state_dict() for name in self.roles()},
            "turns": [
                {"optimiser": r.optimiser.state_dict(), "built": states(self.built(r))}  # type: ignore[union-attr]
                for r in self.running
            ],
            "memory": states(self.memory),
            "best": self.best,
            **({"alarms": [watch.state() for watch in self.watches]} if self.watches else {}),
        }

    def built(self, running: Running) -> list[Any]:
        """What a turn of its own learns and remembers."""
        return [*running.learned, *running.memory[len(self.memory) :], *(memory for each in running.followed for memory in each.values())]

    def roles(self) -> list[str]:
        """Roles that this stage changes; the others are as they were opened."""
        moving = ("teacher",) if self.world.teacher is not None and self.world.teacher.moves else ()
        return list(dict.fromkeys((*(turn.trains for turn in self.stage.turn), *moving)))

    def load(self, state: Mapping[str, Any]) -> "Loop":
        """Goes back to a state."""
        at = state["at"]
        self.step, self.ended, self.waited, self.best = at["step"], at["ended"], at["waited"], state["best"]
        for name, tensors in state["roles"].items():
            self.world.models[name].module.load_state_dict(tensors)
        for watch, heard in zip(self.watches, state.get("alarms", ()), strict=True):
            watch.load(heard)
        pairs = list(zip(self.memory, state["memory"], strict=True))
        for running, drawn, kept in zip(self.running, at["drawn"], state["turns"], strict=True):
            running.drawn = drawn
            running.optimiser.load_state_dict(kept["optimiser"])  # type: ignore[union-attr]
            pairs += zip(self.built(running), kept["built"], strict=True)
        for mine, theirs in pairs:
            if mine is not None:
                mine.load_state_dict(theirs)
        return self


class NotFinite(Exception):
    """A loss or a gradient is not finite: nothing was changed, and the batch is at hand."""

    def __init__(self, loop: Loop, turn: int, batch: Batch, objectives: Sequence[str]):
        super().__init__(f"step {loop.step}: {', '.join(objectives) or 'the gradient'} is not finite")
        self.step, self.turn, self.batch, self.objectives = loop.step, turn, batch, tuple(objectives)


def mean(states: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The mean of several states, tensor by tensor; of what is no floating-point number the first."""
    first = states[0]
    if len(states) == 1:
        return dict(first)
    return {name: Average()(name, [state[name] for state in states], None) if x.is_floating_point() else x for name, x in first.items()}


def states(modules: Sequence[Any]) -> list[Any]:
    return [None if module is None else module.state_dict() for module in modules]


def refuse_batch_norm(objective: Component, module: Any) -> None:
    """Batch statistics would make the gradient depend on how a window is cut."""
    for name, part in module.named_modules() if module is not None else ():
        if isinstance(part, torch.nn.modules.batchnorm._BatchNorm):
            raise ValueError(f"{type(objective).__name__} learns a batch norm ({name}): use a group or layer norm")
