"""Runs a graph of stages and merges, and goes on where it was stopped: finished nodes are kept, the current one has checkpoints."""

import contextlib
import gc
import logging
import shutil
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from limbeck.component import changed, find
from limbeck.errors import Failed, Refused, Stopped
from limbeck.merge.base import Merge, merge, refuse
from limbeck.model.base import Models, Role, clone
from limbeck.store import Log, disk, inside, is_sound, load_state, new_folder, read_json, save_state, sweep, verify, write_json
from limbeck.student.base import Score, Surgery
from limbeck.train.alarm import Alarmed
from limbeck.train.loop import Loop, NotFinite, World
from limbeck.train.stage import Stage

logger = logging.getLogger(__name__)
TRIED, TRIED_SECONDS = 3, 5.0
"""Steps that are tried to learn the pace, and the time after which no further one is begun."""
SETTLED = "surgery.json"
"""Surgeries of a stage, with what was measured written out: beside its checkpoints, and then in its result."""
Observe = Callable[[str, str, Loop, list[dict[str, Any]]], None]
"""Hears arm, node, loop and the records of a step; reads, and never writes."""


@dataclass(frozen=True)
class Trial:
    """A score for surgeries of a stage, whose candidates may learn as the stage will have them learn."""

    score: Score
    begin: Callable[[Role, int], Loop]
    stop: Callable[[], bool]

    def __call__(self, role: Role) -> float:
        return self.score(role)

    def learn(self, role: Role, steps: int) -> None:
        """Raises:
        Stopped: where a stop was asked for.
        """
        if not self.begin(role, steps).run(stop=self.stop):
            raise Stopped


class Node(Protocol):
    """What a graph is made of: see `limbeck.recipe.graph`."""

    @property
    def name(self) -> str: ...
    @property
    def what(self) -> Any: ...
    @property
    def after(self) -> tuple[str, ...]: ...
    @property
    def where(self) -> str: ...


class Arm:
    """One way through a recipe: the student's, or a baseline's."""

    def __init__(
        self,
        name: str,
        nodes: Sequence[Node],
        make: Callable[[], World],
        folder: Path,
        fresh: Callable[[], Role],
        log: Log,
        score: Score | None = None,
        steps: Callable[[Node], int] = lambda node: node.what.steps,
        world_of: Callable[[int, Stage, World], World] = lambda number, stage, world: world,
        ready: Callable[[Role], Role] = lambda role: role,
        bar: Callable[[str, int, int, str], None] = lambda step, done, total, said: None,
    ):
        """Args:
        name: of the arm, in metrics and folders.
        nodes: in an order in which each comes after what it starts from.
        make: makes roles, rows and teacher when the arm runs; the student is replaced as the graph asks.
        folder: of the run; results and checkpoints of this arm go below it.
        fresh: the student before training.
        log: where metrics go.
        score: for surgeries of stages that measure.
        steps: of a stage; settles `auto`.
        world_of: the world of a stage, which may bring its own teacher or data.
        ready: what is done to a student that a stage has rebuilt, before it trains.
        bar: hears how far a step is that takes a while: its name, how much of how much is done, and what came of it.
        """
        self.name, self.nodes, self.make, self.folder, self.fresh, self.log = name, {n.name: n for n in nodes}, make, folder, fresh, log
        self.score, self.steps, self.world_of, self.ready, self.bar = score, steps, world_of, ready, bar
        self.built: tuple[Surgery, ...] = ()  # surgeries of stages in the student that is in memory

    def result(self, node: str) -> Path:
        """The folder of a finished node; `student` is the start."""
        return inside(self.folder / "results" / self.name, node)

    def run(self, observe: Observe = lambda arm, node, loop, records: None, stop: Callable[[], bool] = lambda: False) -> bool:
        """Runs what is not finished; returns whether all is."""
        for folder in (self.folder, self.result("student").parent):
            if folder.is_dir():
                sweep(folder)
        if all(is_sound(self.result(name)) for name in ("student", *self.nodes)):
            return self.tidy()
        self.world, self.built = self.make(), ()
        try:
            return self.run_nodes(observe, stop) and self.tidy()
        finally:
            del self.world  # roles and what was trained beside them: they are on the disk
            gc.collect()  # loops refer to themselves, and hold optimisers

    def pace(self) -> float:
        """Seconds of a step of the first stage that says `auto`, as it will be run: the median of a few, or of the first alone where one
        takes long; what they made is thrown away."""
        number, node = next((i, n) for i, n in enumerate(self.nodes.values()) if isinstance(n.what, Stage) and n.what.steps == "auto")
        loop, seconds = Loop(changed(node.what, steps=TRIED), self.world_of(number, node.what, self.make()), number, node.where), []
        with contextlib.suppress(NotFinite):  # the run itself will say so
            while loop.step < loop.steps and sum(seconds) < TRIED_SECONDS:
                began = time.perf_counter()
                for t, running in enumerate(loop.running):
                    loop.take(t, running)
                loop.step += 1
                seconds.append(time.perf_counter() - began)
        del loop
        gc.collect()
        return statistics.median(seconds) if seconds else 0.0

    def run_nodes(self, observe: Observe, stop: Callable[[], bool]) -> bool:
        """The nodes that have no result yet."""
        if not is_sound(self.result("student")):
            self.keep("student", {role: self.world.models[role].module.state_dict() for role in self.trained()}, [])
        for number, node in enumerate(self.nodes.values()):
            if is_sound(self.result(node.name)):
                continue
            if isinstance(node.what, Merge):
                self.merge(node)
            elif not self.train(number, node, observe, stop):
                return False
        return True

    def trained(self) -> list[str]:
        """Roles that any stage changes: each goes back to its start where a branch begins there."""
        trained = (turn.trains for node in self.nodes.values() if isinstance(node.what, Stage) for turn in node.what.turn)
        return list(dict.fromkeys(("student", *trained)))

    def tidy(self) -> bool:
        """Removes checkpoints of finished nodes."""
        shutil.rmtree(self.folder / "checkpoints" / self.name, ignore_errors=True)
        return True

    def train(self, number: int, node: Node, observe: Observe, stop: Callable[[], bool]) -> bool:
        """One stage, from its last sound checkpoint or from its start."""
        try:
            surgery = self.enter(number, node, stop)
        except Stopped:
            return False
        stage = changed(node.what, steps=self.steps(node))
        loop = Loop(stage, self.world_of(number, stage, self.world), number, node.where)
        folder = self.checkpoints(node)
        if not self.resume(loop, folder) and not self.reconstructed(loop, node, stop):
            return False
        self.log.keep(lambda r: not (r["arm"] == self.name and r["stage"] == node.name and r["step"] >= loop.step))

        def watch(loop: Loop, records: list[dict[str, Any]]) -> None:
            self.log.append([{"v": 1, "arm": self.name, "stage": node.name, **record} for record in records])
            observe(self.name, node.name, loop, records)  # before the checkpoint: it may log more about this step
            if loop.step % stage.checkpoint.every == 0 and loop.step < loop.steps and not loop.sounding:
                self.save(loop, folder)

        try:
            finished = loop.run(watch, stop)
        except NotFinite as error:
            raise self.not_finite(node, error) from None
        except Alarmed as error:
            safe = sorted(folder.glob("step-*"))
            raise error.failed(f"{safe[-1]} is from before" if safe else "no checkpoint is from before: lower checkpoint.every") from None
        if not finished:
            self.save(loop, folder)
            return False
        self.log.sync()
        self.keep(node.name, {role: self.world.models[role].module.state_dict() for role in self.trained()}, surgery)
        shutil.rmtree(folder, ignore_errors=True)
        return True

    def reconstructed(self, loop: Loop, node: Node, stop: Callable[[], bool]) -> bool:
        """Fits the student, if its stage asks for it; returns False after a stop, which keeps nothing of that."""
        how, world = loop.stage.reconstruct, loop.world
        if how is None:
            return True

        def told(done: int, total: int, said: str) -> None:
            if stop():
                raise Stopped
            self.bar("reconstruct", done, total, said)

        with contextlib.suppress(Stopped):
            how(world.models, world.rows.draw(0, min(how.rows, len(world.rows.train)), world.streams), node.where, told)
            return True
        return False

    def enter(self, number: int, node: Node, stop: Callable[[], bool]) -> list[Any]:
        """The student (and what else was trained) as they were after the node's start, with the stage's own surgery; its settled form."""
        start = node.after[0]
        built = tuple(surgery for name in self.chain(start) for surgery in self.surgery_of(name))
        rebuilt = built != self.built or bool(node.what.surgery)
        if built != self.built:
            self.world.models["student"] = self.fresh()
            for surgery in built:
                self.world.models["student"] = surgery(self.world.models["student"])
        self.restore(start)
        self.restore("student", node.what.restart)
        trial = Trial(self.score or unscored, lambda role, steps: self.trial(number, node, role, steps), stop)
        kept = self.checkpoints(node) / "settled"
        known, settled = self.students_own(node) or (settled_in(kept) if is_sound(kept) else []), []
        for surgery in known or node.what.surgery:
            settled.append(surgery if known else surgery.settle(self.world.models["student"], trial))
            self.world.models["student"] = settled[-1](self.world.models["student"])
        plain = [s.model_dump(mode="json") for s in settled]
        if settled and not known:
            with new_folder(kept) as folder:  # measured once, however often the stage is stopped
                write_json(folder / SETTLED, plain)
        if rebuilt:
            self.world.models["student"] = self.ready(self.world.models["student"])
        self.built = (*built, *settled)
        return plain

    def trial(self, number: int, node: Node, role: Role, steps: int) -> Loop:
        """A loop of the first steps of a stage, for a student that is tried out: it draws what the stage will draw, and changes no other role.

        Raises:
            Refused: `steps`, for more than the stage has.
        """
        if steps > (most := self.steps(node)):
            raise Refused("steps", f"{node.where}.surgery", f"at most {most} steps, as many as the stage has", str(steps), "lower steps")
        stage, world = changed(node.what, steps=steps, select=None), self.world
        trained = {turn.trains for turn in stage.turn}
        models = Models({**{name: clone(world.models[name]) if name in trained else world.models[name] for name in world.models}, "student": role})
        return Loop(stage, replace(world, models=models), number, node.where)

    def students_own(self, node: Node) -> list[Surgery]:
        """For a baseline: what the student's arm has settled for this stage, so that both have the same build; for that arm itself nothing."""
        folder = inside(self.folder / "results" / "student", node.name)
        return settled_in(folder) if self.name != "student" and node.what.surgery and is_sound(folder) else []

    def restore(self, node: str, roles: Sequence[str] | None = None) -> None:
        """Puts the tensors of a finished node into the roles, or into some of them."""
        kept = load_state(self.result(node), "state")["roles"] if roles is None or roles else {}
        for role in kept if roles is None else roles:
            self.world.models[role].module.load_state_dict(kept[role])

    def chain(self, name: str) -> list[str]:
        """Nodes that changed the student's build on the way to this one, first to last."""
        way: list[str] = []
        while name != "student":
            if self.surgery_of(name):
                way.insert(0, name)
            name = self.nodes[name].after[0]
        return way

    def surgery_of(self, name: str) -> list[Surgery]:
        """Settled surgeries of a finished stage."""
        return settled_in(self.result(name)) if name != "student" else []

    def student(self, node: str) -> Role:
        """A role of its own, as a finished node left the student."""
        role = self.fresh()
        for surgery in (s for name in self.chain(node) for s in self.surgery_of(name)):
            role = surgery(role)
        role.module.load_state_dict(load_state(self.result(node), "state")["roles"]["student"])
        return role.eval()

    def merge(self, node: Node) -> None:
        """Merges finished nodes, every role that is trained, tensor by tensor."""
        of = [load_state(self.result(name), "state", later=True)["roles"] for name in node.after]
        start, merged = load_state(self.result("student"), "state", later=True)["roles"], {}
        for role in of[0]:
            states = [roles[role] for roles in of]
            refuse(node.what, node.after, states, start[role], node.where)
            merged[role] = merge(node.what, states, start[role])
        self.keep(node.name, merged, [])

    def keep(self, name: str, roles: Mapping[str, Any], surgery: list[Any]) -> None:
        """Writes the result of a node."""
        with new_folder(self.result(name)) as folder:
            save_state(folder, "state", {"roles": dict(roles)})
            write_json(folder / SETTLED, surgery)

    def checkpoints(self, node: Node) -> Path:
        return inside(self.folder / "checkpoints" / self.name, node.name)

    def save(self, loop: Loop, folder: Path) -> None:
        """A checkpoint; older ones than are to be kept go."""
        self.log.sync()
        with new_folder(folder / f"step-{loop.step:08d}") as new:
            save_state(new, "state", loop.state())
        for old in sorted(folder.glob("step-*"))[: -loop.stage.checkpoint.keep]:
            shutil.rmtree(old, ignore_errors=True)

    def resume(self, loop: Loop, folder: Path) -> bool:
        """Goes back to the last sound checkpoint; returns whether there is one."""
        if folder.is_dir():
            sweep(folder)
        for path in sorted(folder.glob("step-*"), reverse=True):
            try:
                verify(path)
            except Failed as error:
                logger.warning("checkpoint %s is not sound (%s: %s); going back to the one before", path.name, error.where, error.got)
                aside = path.with_name(f"corrupt-{path.name}")  # out of the way of the one that will be written in its place
                shutil.rmtree(aside, ignore_errors=True)
                with disk(path):
                    path.rename(aside)
                continue
            loop.load(load_state(path, "state"))
            return True
        return False

    def not_finite(self, node: Node, error: NotFinite) -> Failed:
        """Keeps the batch that broke the run, and says where it is."""
        folder = self.folder / f"nan-{error.step}"
        view = error.batch.view("student")
        with new_folder(folder) as new:
            save_state(
                new,
                "batch",
                {
                    "keys": list(error.batch.keys),
                    "tags": list(error.batch.tags),
                    "step": error.step,
                    "turn": error.turn,
                    "inputs": dict(view.inputs),
                    "lengths": view.lengths,
                    "asked": view.asked,
                },
            )
        names = ", ".join(error.objectives) or "gradient"
        bad = [
            f"{role}: {name}"
            for role in self.world.models
            for name, p in self.world.models[role].module.named_parameters()
            if not torch.isfinite(p).all()
        ]
        got = f"not finite at step {error.step}" + (f"; so are the weights {bad[0]}" if bad else f"; rows {', '.join(error.batch.keys[:3])}")
        return Failed(
            "nan",
            f"{self.folder}  step {error.step}  {names}",
            "a finite loss",
            got,
            f"look at {folder.name}/ (the batch, saved), then lower the learning rate or clip; earlier checkpoints are safe",
            code=5,
        )


def settled_in(folder: Path) -> list[Surgery]:
    """The settled surgeries of a stage, from a folder that is whole."""
    return [find(Surgery, one["kind"]).model_validate(one) for one in read_json(folder / SETTLED)]  # type: ignore[type-abstract, misc]


def unscored(role: Role) -> float:
    raise Failed("score", "surgery", "rows and a teacher to measure with", "none", "choose without measuring, or give data and teacher", code=5)
