"""Before spending: what a run will cost, whether it can work, and what is there already. No weights are loaded."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from limbeck.data.base import Place, Rows
from limbeck.errors import Refused
from limbeck.model.anatomy import anatomy
from limbeck.model.base import Models, Role
from limbeck.model.conversion import conversion_key
from limbeck.model.loading import bytes_tokenizer
from limbeck.model.opening import open_meta
from limbeck.model.reference import Reference
from limbeck.model.text import Text
from limbeck.numerics import Streams
from limbeck.planning.cost import Cost, cost
from limbeck.planning.probe import Machine, machine
from limbeck.planning.refusals import refuse_hopeless, refuse_rows
from limbeck.planning.steps import BACKWARD, FEWEST, affordable
from limbeck.recipe import Recipe, find, load
from limbeck.roles import Cast, located
from limbeck.store import Cache
from limbeck.teacher.cached import Cached
from limbeck.text.show import duration, size
from limbeck.train.settle import settle

LENGTH = 128
"""Positions of a row, where no data step says how long rows are."""
EVALUATION_SECONDS = 60.0
"""Timings of decoding, samples and the report."""


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


@dataclass(frozen=True)
class Plan:
    """What a run will cost."""

    name: str
    machine: Machine
    roles: dict[str, tuple[str, Cost]]
    """Role -> what it is, and its cost."""
    data: str
    needs: tuple[str, ...]
    """What each objective asks, and what is not met exactly."""
    steps: tuple[Line, ...]
    notes: tuple[str, ...] = field(default=())

    @property
    def seconds(self) -> float:
        return sum(line.seconds for line in self.steps if line.cached != "yes")

    @property
    def memory_bytes(self) -> float:
        return max(line.memory_bytes for line in self.steps)

    def as_json(self) -> dict[str, Any]:
        """The same for a script."""
        return {
            "schema": "limbeck.plan/1",
            "recipe": self.name,
            "seconds": self.seconds,
            "memory_bytes": self.memory_bytes,
            "roles": {
                name: {"what": what, "parameters": c.parameters, "weight_bytes": c.weight_bytes, "layers": c.layers}
                for name, (what, c) in self.roles.items()
            },
            "data": self.data,
            "needs": list(self.needs),
            "steps": [vars(line) for line in self.steps],
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        speed = f"{self.machine.flops / 1e9:,.0f} GFLOP/s" + (" measured" if self.machine.measured else " assumed")
        out = [
            f"plan of {self.name} · no weights loaded · this machine: {self.machine.cpus} cores, {self.machine.memory_bytes / 1e9:.0f} GB, {speed}"
        ]
        out += [
            f"  {name:<8} {what:<52} {c.layers:>3} blocks  {c.parameters / 1e6:>9,.1f} M  {size(c.weight_bytes):>9}"
            for name, (what, c) in self.roles.items()
        ]
        out += [f"  {'data':<8} {self.data}", *(f"  {'needs':<8} {line}" for line in self.needs)]
        out += [f"  {'step':<11} {'what':<46} {'time':>10} {'memory':>9} {'disk':>9}  cached"]
        out += [
            f"  {x.step:<11} {x.what:<46} {duration(x.seconds):>10} {size(x.memory_bytes):>9} {size(x.disk_bytes) if x.disk_bytes else '-':>9}  {x.cached}"
            for x in self.steps
        ]
        disk = sum(x.disk_bytes for x in self.steps)
        out += [f"  {'total':<11} {'without what is cached':<46} {duration(self.seconds):>10} {size(self.memory_bytes):>9} {size(disk):>9}"]
        out += [
            f"  fits     {size(self.memory_bytes)} of {size(self.machine.memory_bytes)} memory; {size(disk)} of {size(self.machine.free_disk_bytes)} disk",
            *(f"  note     {n}" for n in self.notes),
        ]
        return "\n".join([*out, "  expect   times are estimates; quality is not predicted: it is measured"])


def plan(source: Any, *changes: str, toy: bool = False, probe: bool = True) -> Plan:
    """The plan of a recipe.

    Raises:
        Refused: what cannot work, or does not fit into memory or on the disk, before anything is spent.
    """
    recipe = load(source, changes, toy)
    path = find(str(source)) if isinstance(source, (str, Path)) else None
    return plan_of(recipe, path.stem if path else "recipe", str(path.parent) if path else ".", probe=probe)


def plan_of(recipe: Recipe, name: str, base: str, probe: bool = True, rows: Rows | None = None) -> Plan:
    """The plan of a recipe at hand; `base` is the folder that its paths start from. Rows that were read already are not read again."""
    cache, here = Cache(), machine(probe)
    cast = Cast(recipe, cache, base, opener=lambda text: on_meta(text, cache, base), plan=True)
    models = cast.models()
    refuse_hopeless(recipe, models)
    blind = [
        f"{role}: no tokenizer is at hand yet; rows are counted when the model is opened"
        for role in cast.originals
        if cast.originals[role].tokenizer is None
    ]
    known = rows is not None or not blind
    rows = rows if rows is not None else Rows() if blind else read(recipe, cast, base)
    needs = asked(recipe, models)
    length = next((dict(s)["length"] for s in recipe.data if "length" in type(s).model_fields), LENGTH)
    costs = {role: cost(models[role], length) for role in models}
    steps, auto = lines(recipe, rows, costs, length, here)
    what = {role: describe(recipe, role) for role in models}
    found = Plan(
        name,
        here,
        {role: (what[role], costs[role]) for role in sorted(models, key=lambda r: r != "teacher")},
        f"{len(rows.train):,} rows to train on, {len(rows.held_out):,} held out" if known else "not read yet",
        tuple(needs),
        tuple(steps),
        (*rows.notes, *(() if known else blind), *auto),
    )
    return fitting(found)


def on_meta(text: str, cache: Cache, base: str) -> Role:
    """A role without weights; its tokenizer where that can be had without opening the model."""
    reference = Reference.parse(located(text, base))
    module, config = open_meta(reference, cache=cache)
    return Text(module, tokenizer_of(reference, cache), anatomy(module))


def tokenizer_of(reference: Reference, cache: Cache) -> Any:
    """A model's tokenizer, if it can be read without converting or downloading anything."""
    if reference.scheme == "config":
        return bytes_tokenizer()
    folder = (
        Path(reference.name)
        if reference.scheme == "path"
        else cache.get(conversion_key(cache, reference))
        if reference.scheme in ("gguf", "package")
        else None
    )
    if folder is None or not (folder / "tokenizer.json").is_file():
        return None
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(folder))


def read(recipe: Recipe, cast: Cast, base: str) -> Rows:
    rows, place = Rows(), Place(cast.readers(), Streams(recipe.seed), base=base)
    for step in recipe.data:
        rows = step.rows(rows, place)
    refuse_rows(recipe, rows, cast.originals)
    return rows


def asked(recipe: Recipe, models: Models) -> list[str]:
    """What every turn asks of every role; what cannot be had is refused here."""
    out = []
    for i, stage in enumerate(recipe.train):
        for t, turn in enumerate(stage.turn):
            where = f"train.{i}" + f".turn.{t}" * (len(stage.turn) > 1)
            settled = settle(turn, (*recipe.data, *turn.data), models, where)
            said = " · ".join(f"{role}: {', '.join(names)}" for role, names in settled.needs.items())
            out += [f"{where}: {said}" + ("" if settled.notes else ": exact"), *settled.notes]
    return out


def lines(recipe: Recipe, rows: Rows, costs: dict[str, Cost], length: int, here: Machine) -> tuple[list[Line], list[str]]:
    """One line a step, with times from measured or assumed speed."""
    student, teacher = costs["student"], costs.get("teacher")
    weights = student.weight_bytes + (teacher.weight_bytes if teacher else 0)
    seconds = {name: c.forward_flops / here.flops for name, c in costs.items()}
    held = len(rows.held_out) * length
    arms = 1 + len(recipe.baseline)
    first = recipe.train[0].turn[-1]
    fixed = EVALUATION_SECONDS + held * (seconds.get("teacher", 0) + (1 + arms) * seconds["student"])
    count = (
        affordable(recipe.minutes, fixed, {k: v for k, v in seconds.items() if k in ("teacher", "student")}, first.batch * length, arms, 0)
        if recipe.minutes
        else FEWEST
    )
    notes = [f"steps: auto is {count} at this speed; it is settled by what the run measures"] if any(s.steps == "auto" for s in recipe.train) else []
    out = [Line("data", f"{len(recipe.data)} steps", 2, 0.5e9)]
    train_bytes, train_seconds, targets = 0.0, 0.0, 0
    for stage in recipe.train:
        n = (count if stage.steps == "auto" else stage.steps) * stage.repeat
        for turn in stage.turn:
            positions = turn.batch * length
            targets += n // turn.every * positions
            train_seconds += n / turn.every * positions * BACKWARD * seconds["student"]
            chunk = max((getattr(o, "chunk", 256) for o in turn.objective), default=256)
            train_bytes = max(
                train_bytes, student.train_bytes(-(-positions // turn.micro), min(chunk, positions)) + (teacher.weight_bytes if teacher else 0)
            )
    if teacher:
        kept = isinstance(recipe.teacher, Cached)
        asks = min(targets, len(rows.train) * length) if kept and rows.train else targets
        width = 4 * (teacher.parameters and 1) * (recipe.teacher.k * 3 if kept and recipe.teacher.keep == "top_k" else 600)  # type: ignore[union-attr]
        out.append(
            Line("before", f"{len(rows.held_out):,} held-out rows, teacher and start", held * (seconds["teacher"] + seconds["student"]), weights, 0)
        )
        out.append(Line("capture" if kept else "teacher", f"{asks:,} positions", asks * seconds["teacher"], weights, asks * width if kept else 0))
    state = 3 * student.weight_bytes
    out.append(
        Line(
            "train",
            f"{sum((count if s.steps == 'auto' else s.steps) * s.repeat for s in recipe.train):,} steps, {targets:,} positions",
            train_seconds,
            train_bytes,
            2 * state,
        )
    )
    out += [Line("baseline", f"{name}, the same steps", train_seconds, train_bytes, 2 * state) for name in recipe.baseline]
    out.append(
        Line(
            "evaluate",
            f"{len(rows.held_out):,} held-out rows, timings, samples",
            EVALUATION_SECONDS + held * arms * seconds["student"],
            2 * weights,
            0,
        )
    )
    return [*out, Line("export", "safetensors", 5, 3 * student.weight_bytes, student.weight_bytes)], notes


def describe(recipe: Recipe, role: str) -> str:
    """What a role is made of, in a few words."""
    if role == "teacher":
        return f"{recipe.teacher.reference}, {recipe.teacher.kind}" if recipe.teacher else ""  # type: ignore[attr-defined]
    how = recipe.student if role == "student" else recipe.role[role]
    return ", ".join([how.start, *(s.kind for s in how.surgery)])  # type: ignore[attr-defined]


def fitting(found: Plan) -> Plan:
    """The plan, if memory and disk suffice."""
    biggest = max(found.steps, key=lambda line: line.memory_bytes)
    if biggest.memory_bytes > found.machine.memory_bytes:
        raise Refused(
            "memory",
            f"{found.name}  step {biggest.step}",
            f"at most {size(found.machine.memory_bytes)}",
            size(biggest.memory_bytes),
            "raise train.0.micro, or start from a smaller student",
            code=3,
        )
    disk = sum(line.disk_bytes for line in found.steps)
    if disk > found.machine.free_disk_bytes:
        raise Refused(
            "space",
            found.name,
            f"{size(disk)} of disk",
            f"{size(found.machine.free_disk_bytes)} free",
            "free some, or set checkpoint.keep: 1",
            code=3,
        )
    return found


__all__ = ["Line", "Plan", "plan", "plan_of"]
