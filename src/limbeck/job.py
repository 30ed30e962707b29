"""A run at work: data, student, before, train, baseline, export, evaluate, report. Each step is kept; read top to bottom."""

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from limbeck.conclude import conclude, exported
from limbeck.data.base import Place, Rows
from limbeck.errors import Refused, Stopped
from limbeck.examine import CALIBRATION_ROWS, Calibration, Examiner, draw_samples, together, trust
from limbeck.model.adapters import merged
from limbeck.model.base import Models, Role
from limbeck.numerics import Streams
from limbeck.planning import plan_of
from limbeck.planning.keeping import choose
from limbeck.planning.refusals import refuse_rows
from limbeck.planning.steps import FEWEST, FITTED, affordable, fitted, measured, of_stages
from limbeck.reading import aligned, own_rows, read
from limbeck.recipe import Recipe, graph, text_only
from limbeck.roles import Cast
from limbeck.searching import grown, made_of, searched
from limbeck.signals import Row
from limbeck.store import Answers, Cache, Log, read_json, sha256_json, write_json, write_text
from limbeck.teacher._capture import capture
from limbeck.teacher.base import Teacher
from limbeck.tell import Tell
from limbeck.train.graph import Arm
from limbeck.train.loop import Loop, World
from limbeck.train.stage import Stage
from limbeck.train.window import drawn
from limbeck.workspace import same_inputs, spent, timed

CLOSING_SECONDS = 75
"""What timings of decoding, samples and the report take."""
WATCHED_ROWS, LOOKS = 4, 4
"""Held-out rows that are looked at while training, and how often a stage."""
SILENT = ("gradient_norm", "learning_rate", "data_seconds", "step_seconds")
"""Metrics that are kept, and not told while a run goes."""


class Job:
    """What a run makes is kept in its folder, so that it can be stopped anywhere and goes on there."""

    def __init__(self, recipe: Recipe, folder: Path, tell: Tell, base: str = "."):
        self.recipe, self.folder, self.tell, self.base = recipe, folder, tell, base
        self.cache, self.log, self.streams = Cache(), Log(folder / "metrics.jsonl"), Streams(recipe.seed)
        self.began = time.time()
        self.steps_auto, self.stop = 0, lambda: False

    def go(self, stop: Callable[[], bool]) -> dict[str, Any] | None:
        """All steps in order; the summary, or None after a stop, which is safe between steps of a run and of the optimiser."""
        self.stop = stop  # type: ignore[assignment]
        with contextlib.suppress(Stopped):
            return self.steps()
        return None

    def steps(self) -> dict[str, Any]:
        """One after the other."""
        self.open()
        sessions = self.folder / "steps" / "sessions.json"
        write_json(sessions, (read_json(sessions) if sessions.is_file() else 0) + 1)
        if self.rows.held_out:
            with self.step("before") as said:
                said += [f"{name} {value:.4g}" for name, value in self.examiner.metrics("start").items()]
        self.steps_auto = self.settle_steps()
        self.ask_ahead()
        for name, arm in self.arms.items():
            with self.step("train" if name == "student" else f"baseline {name}") as said:
                if not arm.run(self.observe, self.stop):
                    raise Stopped
                said.append(f"{sum(self.steps_in(n.what) for n in arm.nodes.values() if isinstance(n.what, Stage)):,} steps")
        return self.close(self.export(), self.measure())

    def open(self) -> None:
        """Data, roles, arms and the examiner: everything but training. What cannot work is refused before a weight is read."""
        torch.set_num_threads(self.recipe.threads or torch.get_num_threads())
        plan_of(self.recipe, self.folder.name, self.base, probe=False, rows=Rows())
        self.cast = Cast(self.recipe, self.cache, self.base)
        choose(self.cast)
        with self.step("data") as said:
            self.rows = aligned(self.recipe, read(self.recipe.data, self.place()), self.cast.readers())
            readers = self.cast.readers()
            refuse_rows(self.recipe, self.rows, readers)
            cuts = dict.fromkeys(line for name in readers for line in readers[name].cuts())
            self.rows = replace(self.rows, notes=(*self.rows.notes, *cuts))
            keys = {"train rows": self.rows.train, "held-out rows": self.rows.held_out}
            same_inputs(self.folder, {**{name: sha256_json([row.key for row in rows]) for name, rows in keys.items()}, **self.cast.identities()})
            write_text(self.folder / "plan.txt", f"{plan_of(self.recipe, self.folder.name, self.base, probe=False, rows=self.rows)}\n")
            said += [f"{len(self.rows.train):,} rows to train on, {len(self.rows.held_out):,} held out", *self.rows.notes]
        self.recipe = self.cast.recipe  # the plan has said what was chosen
        with self.step("student") as said:
            said += self.student()
        recipes = {"student": self.recipe, **{name: text_only(self.recipe) for name in self.recipe.baseline}}
        self.arms = {name: self.arm(name, recipe) for name, recipe in recipes.items()}
        self.kept: Mapping[str, Any] = self.cast.answers(self.recipe.teacher, self.teacher)
        self.capture(self.rows.held_out, self.recipe.teacher, self.teacher, self.kept)
        self.examiner = Examiner(self.recipe, self.rows, self.teacher, self.kept, self.folder, self.openers(), self.cast.opener)

    @property
    def teacher(self) -> Role | None:
        return self.cast.originals.get("teacher")

    def openers(self) -> dict[str, Callable[[], Role]]:
        """Subject -> makes its role; teacher first."""
        teacher = self.teacher
        first: dict[str, Callable[[], Role]] = {} if teacher is None or not teacher.at_hand else {"teacher": lambda: teacher}
        return first | {"start": self.cast.fresh, **{name: lambda arm=arm: merged(arm.student(self.result(arm))) for name, arm in self.arms.items()}}

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[list[str]]:
        """Times a step, and tells what came of it: what is put into the list. A stop is heard before each."""
        if self.stop():
            raise Stopped
        began, said = time.perf_counter(), []
        with timed(self.folder / "steps", name):
            yield said
        self.tell.done(name, " · ".join(said), time.perf_counter() - began)

    def place(self, number: int = 0, models: Models | None = None) -> Place:
        """Where data steps find what they need: roles that can read, or at the beginning of a stage those that can speak."""
        return Place(models or self.cast.readers(), self.streams, number, self.base, live=models is not None)

    def student(self) -> list[str]:
        """The student before training; what its surgeries measured is kept, and what a search has found, so that it is measured once."""
        if (path := self.folder / "steps" / "student.json").is_file():
            self.cast.recall(read_json(path))
        role = self.cast.fresh(self.score)
        write_json(path, self.cast.settled())
        found = searched(self.recipe, self.folder, self.cast, self.rows, self.score, self.tell, self.stop)
        return [made_of(self.folder, self.cast, self.cast.fresh() if found else role), *found]

    @functools.cached_property
    def score(self) -> Calibration:
        """Measures roles for surgeries, on some training rows; tells how many, and hears a stop before each."""

        def heard(num: int, last: float) -> None:
            if self.stop():
                raise Stopped
            self.tell.bar("measure", num, 0, f"students; the last: KL {last:.4g}" if num else "students")

        rows = self.rows.draw(0, CALIBRATION_ROWS, self.streams) if self.rows.parts else []
        return Calibration(self.teacher, rows, heard)

    def capture(self, rows: Sequence[Row], source: Teacher | None, role: Role | None, kept: Mapping[str, Any]) -> None:
        """Asks a teacher that remembers about rows, each once in all runs."""
        if isinstance(kept, Answers) and kept.missing(row.key for row in rows):
            with self.step("capture") as said:
                num = capture(source, role, rows, kept, lambda done, total: self.tell.bar("capture", done, total, "rows"))  # type: ignore[arg-type]
                said += [f"the teacher on {num:,} rows", *(role.told() if role else ())]

    def drawn(self, number: int, stage: Stage, rows: Rows) -> list[Row]:
        """Rows that the stage in this place of the graph will ask the teacher about, in the order in which it will."""
        asked = (drawn(rows, turn, self.steps_in(stage), self.streams, number, t) for t, turn in enumerate(stage.turn))
        return list({row.key: row for some in asked for row in some}.values())

    def world_of(self, number: int, stage: Stage, world: World) -> World:
        """The world of a stage: with its own data or teacher, if it brings them, and all that a cached teacher will be asked."""
        if stage.data is not None:
            with self.step("data") as said:
                place, path = self.place(number, world.models), self.folder / "rows" / f"{number}.json"
                world = replace(world, rows=own_rows(stage, number, place, self.rows.held_out, path), steps=stage.data)
                said += [f"{len(world.rows.train):,} rows for stage {number}", *world.rows.notes]
        if world.teacher is None:
            return world
        source, role, kept = stage.teacher or world.teacher, self.teacher, self.kept
        if stage.teacher is not None:
            role = self.cast.share(source.open(self.cast.opener), "train.teacher")
            kept = self.cast.answers(source, role)
        assert role is not None
        world.models["teacher"] = source.beside(role, world.models)
        self.capture(self.drawn(number, stage, world.rows), source, role, kept)
        return replace(world, teacher=source, kept=kept)

    def settle_steps(self) -> int:
        """Steps of stages that say `auto`: as many as fit into `minutes`, at the pace of one step of each arm, which is tried; decided once."""
        path, stages = self.folder / "steps" / "plan.json", [s for s in self.recipe.train if s.steps == "auto"]
        if stages and not path.is_file():
            if self.recipe.minutes is None or not self.rows.held_out:
                raise Refused("steps", "train.0.steps", "a number, or auto with minutes: and held-out rows", "auto", "write steps: 200")
            began, self.steps_auto = time.perf_counter(), FEWEST
            self.ask_ahead()
            asking = (time.perf_counter() - began) / FEWEST
            with self.step("pace") as said:
                pace = {name: arm.pace() for name, arm in self.arms.items()}
                said.append(f"a step takes {sum(pace.values()):.3g} s: {', '.join(f'{name} {seconds:.3g} s' for name, seconds in pace.items())}")
            look = self.examiner.seconds_a_target("start") * len(self.examiner.table("start").row)
            heard = FITTED * fitted(self.recipe.train, len(self.rows.train))  # rows that stages hear before they learn
            heard += CALIBRATION_ROWS * measured(of_stages(self.recipe.train), self.cast.origin)
            looks = len(self.arms) + heard / len(self.rows.held_out)
            left = self.recipe.minutes * 60 - (time.time() - self.began) - CLOSING_SECONDS - looks * look + FEWEST * asking
            steps = affordable(left / sum(stage.repeat for stage in stages), asking + sum(pace.values()))
            write_json(path, {"steps": steps, "pace_seconds": pace, "asking_seconds": asking})
        return int(read_json(path)["steps"]) if stages else 0

    def ask_ahead(self) -> None:
        """Captures what all stages with the teacher and the data of the recipe will ask."""
        for number, node in enumerate(graph(self.recipe)):
            if isinstance(node.what, Stage) and node.what.teacher is None and node.what.data is None:
                self.capture(self.drawn(number, node.what, self.rows), self.recipe.teacher, self.teacher, self.kept)

    def steps_in(self, stage: Stage) -> int:
        return self.steps_auto if stage.steps == "auto" else stage.steps

    def arm(self, name: str, recipe: Recipe) -> Arm:
        """One way through the recipe, with roles of its own, made when it runs."""

        def world() -> World:
            teacher = recipe.teacher if name == "student" else None
            autocast = torch.bfloat16 if recipe.autocast == "bfloat16" else None
            own = (self.kept, self.streams, self.base, lambda models: self.examiner.look(models["student"]), autocast)
            return World(self.cast.models(), self.rows, recipe.data, teacher, *own)

        own = (self.cast.fresh, self.log, self.score, lambda node: self.steps_in(node.what), self.world_of, self.cast.compiled, self.tell.bar)
        return Arm(name, graph(recipe), world, self.folder, *own)

    def result(self, arm: Arm) -> str:
        """The node that is evaluated and exported."""
        return self.recipe.result or list(arm.nodes)[-1]

    @functools.cached_property
    def watched(self) -> list[Row]:
        """A few held-out rows that are looked at while training."""
        pick = torch.randperm(len(self.rows.held_out), generator=self.streams("watched"))[:WATCHED_ROWS].sort().values
        return [self.rows.held_out[i] for i in pick.tolist()]

    def observe(self, arm: str, node: str, loop: Loop, records: list[dict[str, Any]]) -> None:
        """Tells progress, and looks at a few held-out rows now and then; changes nothing."""
        due = self.watched and self.teacher is not None and loop.trained == "student" and loop.step * LOOKS % loop.steps < LOOKS
        if due and "kl" in (found := self.examiner.look(loop.world.models["student"], self.watched)):  # none across tokenizers
            self.log.append([{"v": 1, "arm": arm, "stage": node, "step": loop.step - 1, "name": "held_out_kl", "value": found["kl"]}])
        said = " · ".join(f"{r['name']} {r['sum'] / max(r['count'], 1):.4g}" for r in records if r["name"].split(".")[-1] not in SILENT)
        self.tell.bar("train" if arm == "student" else f"baseline {arm}", loop.step, loop.steps, said)

    def export(self) -> list[dict[str, Any]]:
        """Writes the student for others; returns the checks that were made."""
        arm = self.arms["student"]
        with self.step("export") as said:
            if any(stage.surgery for stage in self.recipe.train):
                grown(self.folder, arm.student(self.result(arm)))
            checks = exported(self.recipe, self.folder, lambda: arm.student(self.result(arm)), self.cast.provenance(self.rows))
            said += [str(check["result"]) for check in checks]
        return checks

    def measure(self) -> dict[str, Any]:
        """What evaluators find: subjects with metrics, and tables by name."""
        parts: dict[str, Any] = {}
        folders = {"student": self.folder / "student", "teacher": self.cast.folder(self.recipe.teacher.references) if self.recipe.teacher else None}
        folders = {name: folder for name, folder in folders.items() if folder is not None and folder.is_dir()}
        with self.step("evaluate") as said:
            for evaluator in self.recipe.evaluate if self.rows.held_out else ():
                parts = together(parts, evaluator(self.examiner.exam(folders=folders, base=self.base, teacher=self.teacher)))
            said.append(f"{len(self.rows.held_out):,} held-out rows")
        return parts

    def close(self, checks: list[dict[str, Any]], parts: dict[str, Any]) -> dict[str, Any]:
        """Samples, summary and report."""
        facts = {
            **spent(self.folder / "steps"),
            "steps": sum(self.steps_in(s) * s.repeat for s in self.recipe.train),
            "held_out_targets": len(self.examiner.table("student").row) if self.rows.held_out else 0,
            **self.examiner.about(self.cast.readers()["student"]),
            "watched": self.examiner.before(self.watched),
        }
        samples = draw_samples(self.examiner, self.recipe.seed)
        checks = [*checks, *trust(self.examiner, int(read_json(self.folder / "steps" / "sessions.json")))]
        return conclude(self.recipe, self.folder, parts, checks, self.rows, self.cast.provenance(self.rows), samples, self.log, facts)
