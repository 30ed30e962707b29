"""A run: data, student, before, train, baseline, evaluate, export, report. Each step is kept; read top to bottom."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from limbeck.conclude import conclude
from limbeck.data._overlap import drop_overlap
from limbeck.data.base import Place, Rows
from limbeck.errors import Refused
from limbeck.evaluate._scoring import score
from limbeck.examine import Examiner, draw_samples
from limbeck.export.base import Parcel
from limbeck.model.base import Role
from limbeck.numerics import Streams
from limbeck.planning.steps import affordable
from limbeck.recipe import Node, Recipe, find, graph, load, text_only
from limbeck.roles import Cast
from limbeck.signals import Row
from limbeck.store import Cache, Log, is_sound, lock, new_folder, read_json, write_json
from limbeck.teacher._capture import capture
from limbeck.teacher.cached import Cached
from limbeck.train.graph import Arm
from limbeck.train.loop import Loop, World
from limbeck.train.stage import Stage
from limbeck.workspace import begin, choose

logger = logging.getLogger(__name__)
CALIBRATION_ROWS = 16
"""Training rows that surgeries are measured on."""


class Tell(Protocol):
    """Who hears how a run goes: the command line, or nobody."""

    def done(self, step: str, text: str, seconds: float) -> None: ...
    def bar(self, step: str, done: int, total: int, text: str) -> None: ...


class Quiet:
    """Tells the log only."""

    def done(self, step: str, text: str, seconds: float) -> None:
        logger.info("%s: %s (%.1f s)", step, text, seconds)

    def bar(self, step: str, done: int, total: int, text: str) -> None: ...


@dataclass(frozen=True)
class Run:
    """A run, finished or stopped."""

    path: Path
    finished: bool
    summary: Mapping[str, Any]

    @property
    def verdict(self) -> str:
        """One sentence: did it work?"""
        return str(self.summary.get("verdict", ""))

    def load(self) -> Any:
        """The student, as a plain transformers model."""
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(self.path / "student")


class Job:
    """A run at work. What it makes is kept in its folder, so that it can be stopped anywhere and goes on there."""

    def __init__(self, recipe: Recipe, folder: Path, tell: Tell, base: str = ".", opener: Callable[[str], Role] | None = None):
        self.recipe, self.folder, self.tell, self.base = recipe, folder, tell, base
        self.cache, self.log, self.streams = Cache(), Log(folder / "metrics.jsonl"), Streams(recipe.seed)
        self.began, self.opener, self.kept = time.time(), opener, {}

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[list[str]]:
        """Times a step, and tells what came of it: what is put into the list."""
        began, said = time.perf_counter(), []
        yield said
        self.tell.done(name, " · ".join(said), time.perf_counter() - began)

    def go(self, stop: Callable[[], bool]) -> Run:
        """All steps in order; a stop between two optimiser steps is safe."""
        torch.set_num_threads(self.recipe.threads or torch.get_num_threads())
        self.cast = Cast(self.recipe, self.cache, self.base, self.opener)
        with self.step("data") as said:
            self.rows = self.read()
            said += [f"{len(self.rows.train):,} rows to train on, {len(self.rows.held_out):,} held out", *self.rows.notes]
        with self.step("student") as said:
            said.append(self.student())
        arms = {"student": self.recipe, **{name: text_only(self.recipe) for name in self.recipe.baseline}}
        self.arms = {name: self.arm(name, recipe) for name, recipe in arms.items()}
        teacher = self.cast.originals.get("teacher")
        openers = {"teacher": lambda: teacher} if teacher is not None else {}
        openers |= {"start": self.cast.fresh, **{name: lambda arm=arm: arm.student(self.result(arm)) for name, arm in self.arms.items()}}
        self.capture(self.rows.held_out, "capture")
        self.examiner = Examiner(self.recipe, self.rows, teacher, self.kept, self.folder, openers)          # type: ignore[arg-type]
        if self.rows.held_out:
            with self.step("before") as said:
                found = self.examiner.metrics("start")
                said += [f"{name} {value:.4g}" for name, value in found.items()]
        self.steps = self.settle_steps()
        self.capture(self.drawn(), "capture")
        for name, arm in self.arms.items():
            with self.step("train" if name == "student" else f"baseline {name}") as said:
                if not arm.run(self.observe, stop):
                    said.append("stopped and saved")
                    return Run(self.folder, False, {})
                said.append(f"{sum(self.steps_of(n) for n in arm.nodes.values() if isinstance(n.what, Stage)):,} steps")
        return self.finish()

    def read(self) -> Rows:
        """All rows: every data step, once; held-out text that stands in the training text too is left out."""
        rows, place = Rows(), Place(self.cast.readers(), self.streams, base=self.base)
        for step in self.recipe.data:
            rows = step.rows(rows, place)
        return drop_overlap(rows)

    def student(self) -> str:
        """The student before training; what its surgeries measured is kept, so that it is measured once."""
        path = self.folder / "steps" / "student.json"
        if path.is_file():
            self.cast.recall(read_json(path))
        role = self.cast.fresh(self.calibration())
        write_json(path, self.cast.settled())
        before = self.cast.originals.get("student", self.cast.originals.get("teacher"))
        count = [sum(p.numel() for p in r.parameters()) for r in (before, role) if r is not None]
        return " -> ".join(f"{n / 1e6:,.1f} M" for n in count) + " parameters"

    def calibration(self) -> Callable[[Role], float] | None:
        """Mean KL from the teacher to a role on some training rows."""
        teacher, rows = self.cast.originals.get("teacher"), self.rows.draw(0, CALIBRATION_ROWS, self.streams) if self.rows.parts else []
        if teacher is None or not rows:
            return None
        with torch.no_grad():
            said = {row.key: teacher.says(teacher.view([row]), ("logits",), {})["logits"] for row in rows}

        def measure(role: Role) -> float:
            tables = [score(role, [row], lambda rows, view: said[rows[0].key]).kl for row in rows]
            return float(torch.cat(tables).double().mean())                 # type: ignore[arg-type]

        return measure

    def capture(self, rows: tuple[Row, ...] | list[Row], step: str) -> None:
        """What a cached teacher says about rows, each asked once in all runs."""
        source = self.recipe.teacher
        if isinstance(source, Cached) and any(row.key not in self.kept for row in rows):
            role = self.cast.originals["teacher"]
            with self.step(step) as said:
                new = capture(source, role, rows, self.cache, self.cast.identity(role, source.reference), tell=lambda n, all: self.tell.bar(step, n, all, "rows"))
                self.kept.update(new)
                said.append(f"{len(new):,} rows of the teacher")

    def drawn(self) -> list[Row]:
        """Rows that training will ask the teacher about, in the order in which it will."""
        out: dict[str, Row] = {}
        for stage in self.recipe.train if self.rows.parts and isinstance(self.recipe.teacher, Cached) else ():
            for turn in stage.turn:
                windows = -(-self.steps_in(stage) // turn.every)
                out |= {row.key: row for row in self.rows.draw(0, windows * turn.batch, self.streams)}
        return list(out.values())

    def settle_steps(self) -> int:
        """Steps of stages that say `auto`: as many as fit into `minutes`, from the speed measured on held-out rows; decided once."""
        path, stages = self.folder / "steps" / "plan.json", [s for s in self.recipe.train if s.steps == "auto"]
        if not stages:
            return 0
        if not path.is_file():
            if self.recipe.minutes is None or not self.rows.held_out:
                raise Refused("steps", "train.0.steps", "a number, or auto with minutes: and held-out rows", "auto", "write steps: 200")
            turn = stages[0].turn[-1]
            targets = sum(len(row.targets) for row in [self.cast.readers()["student"].view(self.rows.draw(0, turn.batch, self.streams))])
            speed = {name: self.examiner.seconds_a_target(subject) for name, subject in (("teacher", "teacher"), ("student", "start")) if subject in self.examiner.openers}
            looks = 60 + sum(self.examiner.seconds_a_target("start") * len(self.examiner.table("start").row) for _ in self.arms)
            steps = affordable(self.recipe.minutes / len(stages), time.time() - self.began, speed, targets, len(self.arms), looks)
            write_json(path, {"steps": steps, "seconds_a_target": speed})
        return int(read_json(path)["steps"])

    def steps_in(self, stage: Stage) -> int:
        return self.steps if stage.steps == "auto" else stage.steps

    def steps_of(self, node: Node) -> int:
        return self.steps_in(node.what)                                     # type: ignore[arg-type]

    def arm(self, name: str, recipe: Recipe) -> Arm:
        """One way through the recipe, with roles of its own."""
        teacher = recipe.teacher if name == "student" else None
        world = World(self.cast.models(), self.rows, recipe.data, teacher, self.kept, self.streams, self.base,
                      autocast=torch.bfloat16 if recipe.autocast == "bfloat16" else None)
        return Arm(name, graph(recipe), world, self.folder, self.cast.fresh, self.log, self.calibration(), self.steps_of)

    def result(self, arm: Arm) -> str:
        """The node that is evaluated and exported."""
        return self.recipe.result or list(arm.nodes)[-1]

    def observe(self, arm: str, loop: Loop, records: list[dict[str, Any]]) -> None:
        """Tells progress; never changes anything."""
        said = " · ".join(f"{r['name']} {r['sum'] / max(r['count'], 1):.4g}" for r in records if r["name"] not in ("gradient_norm", "learning_rate", "step_seconds"))
        self.tell.bar("train" if arm == "student" else f"baseline {arm}", loop.step, loop.steps, said)

    def finish(self) -> Run:
        """Evaluates, exports, and writes what came of it."""
        folder, parts, checks = self.folder / "student", {}, []
        with self.step("export") as said:
            role = self.arms["student"].student(self.result(self.arms["student"]))
            for exporter in self.recipe.export:
                if not is_sound(folder):
                    with new_folder(folder) as new:
                        found = exporter(Parcel(role, new, {}, self.cast.provenance(self.rows)))
                    write_json(self.folder / "steps" / "export.json", found)
                checks += read_json(self.folder / "steps" / "export.json")
            said += [str(check["result"]) for check in checks]
        with self.step("evaluate") as said:
            for evaluator in self.recipe.evaluate if self.rows.held_out else ():
                for name, value in evaluator(self.examiner.exam(folders={"student": folder})).items():
                    parts[name] = {**parts.get(name, {}), **value} if isinstance(value, dict) else value
            said.append(f"{len(self.rows.held_out):,} rows")
        facts = {"wall_seconds": time.time() - self.began, "steps": sum(self.steps_in(s) for s in self.recipe.train), "held_out_targets": self.held_targets()}
        samples = draw_samples(self.examiner, self.recipe.seed)
        summary = conclude(self.recipe, self.folder, parts, checks, self.rows, self.cast.provenance(self.rows), samples, self.log, facts)
        return Run(self.folder, True, summary)

    def held_targets(self) -> int:
        return len(self.examiner.table("student").row) if self.rows.held_out else 0


def run(source: Any, *changes: str, name: str | None = None, runs: Path | None = None, toy: bool = False, tell: Tell | None = None,
        stop: Callable[[], bool] = lambda: False) -> Run:
    """Runs a recipe to its end, or goes on with it; a finished run costs nothing.

    Args:
        source: a recipe, its file, or the name of a shipped one.
        changes: like `train.0.steps=50`.
        name: of the run's folder; none: the recipe's name and a number.
        runs: folder of all runs; none: LIMBECK_RUNS, else ./runs.
        toy: runs the recipe's toy form, in seconds.
        tell: hears how it goes.
        stop: asked between steps; after a True the run is saved and returns.

    Raises:
        Refused, Failed: in one sentence each.
    """
    recipe = load(source, changes, toy)
    own = Path(source).stem if isinstance(source, (str, Path)) else "run"
    folder = choose(recipe, own + "-toy" * toy, name, runs)
    folder.mkdir(parents=True, exist_ok=True)
    with lock(folder / "run"):
        if (folder / "summary.json").is_file():
            return Run(folder, True, read_json(folder / "summary.json"))
        begin(folder, recipe)
        base = str(find(str(source)).parent) if isinstance(source, (str, Path)) else "."
        return Job(recipe, folder, tell or Quiet(), base).go(stop)


def resume(folder: str | Path, tell: Tell | None = None, stop: Callable[[], bool] = lambda: False) -> Run:
    """Goes on with the run in a folder."""
    path = Path(folder)
    return run(path / "recipe.yaml", name=path.name, runs=path.parent, tell=tell, stop=stop)
