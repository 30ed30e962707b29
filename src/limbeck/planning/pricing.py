"""What each step of a run costs, from shapes and the speed of the machine."""

import sys
from dataclasses import dataclass

from limbeck.data.base import Rows
from limbeck.examine import CALIBRATION_ROWS
from limbeck.planning.cost import TRAINED_COPIES, Cost
from limbeck.planning.steps import BACKWARD, FEWEST, FITTED, affordable, fitted
from limbeck.recipe import Recipe
from limbeck.search.document import Bill
from limbeck.train.stage import Stage

EVALUATION_SECONDS = 60.0
"""Timings of decoding, samples and the report."""
LOGIT_BYTES = 4
"""Of a logit of the teacher, which are kept while surgeries measure."""
STATE_BYTES = 4
"""Of a number of the teacher's states, while a student is fitted to them."""
MEANS = 2
"""Copies of what learns in a checkpoint, beside the weights: the two means of AdamW."""
Measured = tuple[int, Cost]
"""How often surgeries measure at most, and what the model costs that they begin with."""


@dataclass(frozen=True)
class Line:
    """One step of a run."""

    step: str
    what: str
    seconds: float
    memory_bytes: float
    disk_bytes: float = 0.0
    cached: str = "-"
    """`yes`, or why not."""


class Pricing:
    """Prices the steps of a recipe."""

    def __init__(
        self,
        recipe: Recipe,
        rows: Rows,
        costs: dict[str, Cost],
        length: int,
        flops: float,
        search: Bill | None = None,
        measured: Measured | None = None,
    ):
        self.search, self.measured = search, measured
        self.recipe, self.rows, self.costs, self.length = recipe, rows, costs, length
        self.student, self.teacher, self.flops = costs["student"], costs.get("teacher"), flops
        self.seconds = {name: c.forward_flops / flops for name, c in costs.items()}
        whole = any("length" in type(step).model_fields for step in recipe.data)  # then a draw is a bin of that length
        groups = sum(len(part.groups) for part in rows.parts)
        self.drawn = 1.0 if whole or not groups else len(rows.train) / groups
        """Rows of a draw, on average."""
        self.held, self.arms = len(rows.held_out) * length, 1 + len(recipe.baseline)
        self.auto = self.affordable() if any(stage.steps == "auto" for stage in recipe.train) else 0

    def affordable(self) -> int:
        """Steps of a stage that says `auto`, at this speed; the run settles it by what it measures."""
        if self.recipe.minutes is None:
            return FEWEST
        before = sum(line.seconds for line in (self.searching(), self.measuring(), self.tries(), self.fitting()) if line is not None)
        fixed = EVALUATION_SECONDS + before + self.held * (self.seconds.get("teacher", 0) + (1 + self.arms) * self.seconds["student"])
        a_step = self.seconds.get("teacher", 0.0) + self.arms * BACKWARD * self.seconds["student"]
        return affordable(self.recipe.minutes * 60 - fixed, a_step * self.recipe.train[0].turn[-1].batch * self.drawn * self.length)

    def steps(self, stage: Stage) -> int:
        """Optimiser steps of a stage, all its repeats together."""
        return (self.auto if stage.steps == "auto" else stage.steps) * stage.repeat

    def training(self) -> tuple[int, float, float]:
        """Positions, seconds and memory of training one arm."""
        positions, seconds = 0, 0.0
        for stage in self.recipe.train:
            for turn in stage.turn:
                window, times = round(turn.batch * self.drawn) * self.length, -(-self.steps(stage) // turn.every)
                positions += times * window
                seconds += times * window * BACKWARD * self.seconds["student"]
        return positions, seconds, self.training_bytes()

    def training_bytes(self) -> float:
        """Memory of training one arm."""
        memory, beside = 0.0, self.teacher.weight_bytes if self.teacher else 0
        for turn in (turn for stage in self.recipe.train for turn in stage.turn):
            window, chunk = round(turn.batch * self.drawn) * self.length, max((dict(o).get("chunk", 0) for o in turn.objective), default=0)
            memory = max(memory, self.student.train_bytes(-(-window // turn.micro), min(chunk, window)) + beside)
        return memory

    def searching(self) -> Line | None:
        """A search: at each step the whole model is heard once, and once more, forth and back, with each variant in all blocks; then models are
        measured, and what they are compared with."""
        bill = self.search
        if bill is None:
            return None
        learned, measured = bill.learned(self.length), bill.measurements * CALIBRATION_ROWS * self.length
        seconds = (learned * (1 + bill.variants * BACKWARD) + measured) * self.seconds["student"]
        seconds += CALIBRATION_ROWS * self.length * self.seconds.get("teacher", 0.0)
        what = f"{bill.variants} x {self.student.layers} variants, {learned + measured:,} tokens"
        parts = bill.part_bytes * (1 + TRAINED_COPIES * bool(bill.steps))
        memory = 2 * self.student.weight_bytes + parts + bill.batch * self.length * self.student.activation_bytes * bool(bill.steps)
        return Line("search", what, seconds, memory, self.student.weight_bytes)

    def measuring(self) -> Line | None:
        """What surgeries measure to choose: models nearly as large as the one that they begin with, and the teacher once, on a few rows each."""
        if self.measured is None or self.teacher is None:
            return None
        (num, begun), positions = self.measured, CALIBRATION_ROWS * self.length
        seconds = positions * (num * begun.forward_flops / self.flops + self.seconds["teacher"])
        memory = begun.weight_bytes + self.teacher.weight_bytes + positions * self.teacher.vocab * LOGIT_BYTES
        return Line("measure", f"at most {num:,} x {CALIBRATION_ROWS} rows", seconds, memory)

    def tries(self) -> Line | None:
        """Candidates of surgeries that learn before they are measured: at most one for each block."""
        num, positions, a_position = 0, 0, BACKWARD * self.seconds["student"]
        if self.recipe.teacher is not None and not self.recipe.teacher.remembers:
            a_position += self.seconds["teacher"]
        for stage in self.recipe.train:
            steps = sum(surgery.tries for surgery in stage.surgery) * self.student.layers * stage.repeat
            num += steps
            positions += steps * sum(turn.batch for turn in stage.turn) * self.length
        what = f"candidates learn, at most {num:,} steps in all"
        return Line("surgery", what, positions * a_position, self.training_bytes() + self.student.weight_bytes) if num else None

    def fitting(self) -> Line | None:
        """What stages fit in closed form before they learn: the teacher's states are kept meanwhile."""
        rows = fitted(self.recipe.train, len(self.rows.train) or sys.maxsize)
        if not rows or self.teacher is None:
            return None
        positions = rows * self.length
        seconds = positions * (FITTED * self.seconds["student"] + self.seconds["teacher"])
        memory = self.student.weight_bytes + self.teacher.weight_bytes + positions * (self.student.layers + 1) * self.teacher.width * STATE_BYTES
        return Line("reconstruct", f"{rows:,} rows, {positions:,} positions", seconds, memory)

    def asking(self, positions: int) -> Line | None:
        """What the teacher is asked while training, live or once."""
        if self.teacher is None:
            return None
        source = self.recipe.teacher
        if source is None or not source.remembers:
            kind = dict(source)["kind"] if source is not None else "live"
            return Line("teacher", f"{kind}, {positions:,} positions", positions * self.seconds["teacher"], self.teacher.weight_bytes)
        once = min(positions, len(self.rows.train) * self.length) if self.rows.train else positions
        disk = (once + self.held) * self.teacher.targets * source.bytes_a_target(self.teacher.width, self.teacher.vocab)
        return Line("capture", f"{once + self.held:,} positions", once * self.seconds["teacher"], self.teacher.weight_bytes, disk)

    def lines(self) -> list[Line]:
        """One line a step."""
        weights = self.student.weight_bytes + (self.teacher.weight_bytes if self.teacher else 0)
        positions, seconds, memory = self.training()
        disk, look = 2 * (self.student.weight_bytes + MEANS * self.student.trained_bytes), self.held * self.seconds["student"]
        first = self.held * self.seconds.get("teacher", 0.0) + look
        out = [
            Line("data", f"{len(self.recipe.data)} steps", 2, 0.5e9),
            self.measuring(),
            self.searching(),
            Line("before", f"{len(self.rows.held_out):,} held-out rows, teacher and start", first, weights),
            self.asking(positions),
            self.tries(),
            self.fitting(),
            Line("train", f"{sum(map(self.steps, self.recipe.train)):,} steps, {positions:,} positions", seconds, memory, disk),
            *(Line("baseline", f"{name}, the same steps", seconds, memory, disk) for name in self.recipe.baseline),
            Line("evaluate", f"{len(self.rows.held_out):,} held-out rows, timings, samples", EVALUATION_SECONDS + self.arms * look, 2 * weights),
            Line("export", ", ".join(dict(e)["kind"] for e in self.recipe.export), 5, 3 * self.student.weight_bytes, self.student.weight_bytes),
        ]
        return [line for line in out if line is not None]
