"""Before spending: what a run will cost, whether it can work, and what is there already. No weights are loaded."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from limbeck.data.base import Place, Rows
from limbeck.errors import Refused
from limbeck.model.base import Models, Role
from limbeck.model.conversion import conversion_key
from limbeck.model.loading import tokenizer_in
from limbeck.model.opening import config_file, open_meta
from limbeck.model.recorded import Recorded, open_recorded, refuse_missing
from limbeck.model.reference import Reference, existing, in_folder, located
from limbeck.model.role import without_weights
from limbeck.model.served import open_served
from limbeck.numerics import Streams
from limbeck.planning.cost import Cost, cost
from limbeck.planning.keeping import choose
from limbeck.planning.pricing import Line, Pricing
from limbeck.planning.probe import Machine, machine
from limbeck.planning.refusals import refuse_hopeless, refuse_rows
from limbeck.planning.steps import measured, of_stages
from limbeck.recipe import Recipe, find, graph, load, text_only
from limbeck.roles import Cast
from limbeck.store import Cache
from limbeck.text.show import duration, size
from limbeck.train.settle import settle
from limbeck.train.stage import Stage
from limbeck.train.window import drawn

LENGTH = 128
"""Positions of a row, where no data step says how long rows are."""


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
        for x in self.steps:
            disk_of = size(x.disk_bytes) if x.disk_bytes else "-"
            out.append(f"  {x.step:<11} {x.what:<46} {duration(x.seconds):>10} {size(x.memory_bytes):>9} {disk_of:>9}  {x.cached}")
        disk, memory = sum(x.disk_bytes for x in self.steps), f"{size(self.memory_bytes)} of {size(self.machine.memory_bytes)} memory"
        out += [f"  {'total':<11} {'without what is cached':<46} {duration(self.seconds):>10} {size(self.memory_bytes):>9} {size(disk):>9}"]
        out += [
            f"  fits     {memory}; {size(disk)} of {size(self.machine.free_disk_bytes)} disk",
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
    cast = Cast(recipe, cache, base, opener=lambda text, reads="": on_meta(text, cache, base, reads), plan=True)
    kept = choose(cast)
    recipe = cast.recipe
    models = cast.models()
    refuse_hopeless(recipe, models)
    bill = None if recipe.search is None else recipe.search.check(cast.fresh())
    blind = [
        f"{role}: no tokenizer is at hand yet; rows are counted when the model is opened"
        for role, reader in cast.readers().items()
        if reader.tokenizer is None and reader.ragged
    ]
    known = rows is not None or not blind
    rows = rows if rows is not None else Rows() if blind else read(recipe, cast, base)
    needs = asked(recipe, models)
    if recipe.baseline:  # refused now, and not after the student has been trained
        asked(text_only(recipe), models)
    one = rows.train[:1]
    usual = LENGTH if any(models[role].ragged for role in models) else 1
    length = next((dict(s)["length"] for s in recipe.data if "length" in type(s).model_fields), usual)
    costs = {role: cost(models[role], length, one) for role in models}
    searched = [] if bill is None else [str(bill)]
    begun = cast.origin
    num = measured([*recipe.student.surgery, *of_stages(recipe.train)], begun)
    pricing = Pricing(recipe, rows, costs, length, here.flops, bill, None if begun is None or not num else (num, cost(begun, length, one)))
    auto = [f"steps: auto is {pricing.auto} at this speed; it is settled by what the run measures"] if pricing.auto else []
    steps = [replace(line, cached=captured(recipe, rows, cast, pricing)) if line.step == "capture" else line for line in pricing.lines()]
    what = {role: describe(recipe, role) for role in models}
    found = Plan(
        name,
        here,
        {role: (what[role], costs[role]) for role in sorted(models, key=lambda r: r != "teacher")},
        f"{len(rows.train):,} rows to train on, {len(rows.held_out):,} held out" if known else "not read yet",
        tuple(needs),
        tuple(steps),
        (*rows.notes, *(() if known else blind), *auto, *kept, *searched, *elsewhere(recipe, rows, pricing), *evaluations(recipe, base)),
    )
    return fitting(found)


def on_meta(text: str, cache: Cache, base: str, reads: str = "") -> Role:
    """A role without weights; its tokenizer where that can be had without opening the model."""
    reference = Reference.parse(located(text, base))
    if reference.scheme == "cache":
        return open_recorded(reference.path, weights=False)
    if reference.scheme == "endpoint":
        return open_served(reference, located(reads, base), cache, plan=True)
    return without_weights(open_meta(reference, cache=cache)[0], lambda: tokenizer_of(reference, cache), reference)


def tokenizer_of(reference: Reference, cache: Cache) -> Any:
    """A model's tokenizer, if it can be read without converting or downloading anything."""
    if reference.scheme == "config":
        return config_file(reference)[2]
    folder = (
        existing(reference)
        if reference.scheme == "path" or in_folder(reference)
        else cache.get(conversion_key(cache, reference))
        if reference.scheme in ("gguf", "package")
        else None
    )
    if folder is None or not (folder / "tokenizer.json").is_file():
        return None
    return tokenizer_in(folder)


def read(recipe: Recipe, cast: Cast, base: str) -> Rows:
    rows, place = Rows(), Place(cast.readers(), Streams(recipe.seed), base=base, extra={"plan": True})
    for step in recipe.data:
        rows = step.rows(rows, place)
    refuse_rows(recipe, rows, cast.readers())
    return rows


def asked(recipe: Recipe, models: Models) -> list[str]:
    """What every turn asks of every role; what cannot be had is refused here."""
    out = []
    for i, stage in enumerate(recipe.train):
        if stage.reconstruct is not None and not any(earlier.surgery for earlier in recipe.train[: i + 1]):  # else when it is its turn
            stage.reconstruct.wanted(*stage.reconstruct.suits(models, f"train.{i}"), f"train.{i}")
        for t, turn in enumerate(stage.turn):
            where = f"train.{i}" + f".turn.{t}" * (len(stage.turn) > 1)
            settled = settle(turn, (*recipe.data, *turn.data), models, where)
            said = " · ".join(f"{role}: {', '.join(ranges(names))}" for role, names in settled.needs.items())
            out += [f"{where}: {said}" + ("" if settled.notes else ": exact"), *settled.notes]
    return out


def ranges(names: Sequence[str]) -> list[str]:
    """Names of signals, those of consecutive layers together: `hidden.1 to 30`."""
    out: list[str] = []
    last = ("", -2)
    for name in names:
        stem, _, number = name.partition(".")
        here = (stem, int(number) if number.isdigit() else -2)
        if here == (last[0], last[1] + 1) and last[1] >= 0:
            out[-1] = f"{out[-1].partition(' to ')[0]} to {number}"
        else:
            out.append(name)
        last = here
    return out


def captured(recipe: Recipe, rows: Rows, cast: Cast, pricing: Pricing) -> str:
    """How much of what a cached teacher will be asked is there already."""
    source, role = recipe.teacher, cast.originals["teacher"]
    if source is None or not source.remembers or role.tokenizer is None or not rows.parts:
        return "not known yet"
    streams, lists = Streams(recipe.seed), [rows.held_out]
    for number, node in enumerate(graph(recipe)):
        if isinstance(node.what, Stage) and node.what.teacher is None and node.what.data is None:
            steps = pricing.steps(node.what) // node.what.repeat
            asked = (drawn(rows, turn, steps, streams, number, t) for t, turn in enumerate(node.what.turn))
            lists.append(tuple({row.key: row for some in asked for row in some}.values()))
    keys, answers = {row.key for some in lists for row in some}, cast.answers(source, role)
    there = sum(key in answers for key in keys)
    if isinstance(role, Recorded):
        refuse_missing(role.folder, len(keys), len(keys) - there)
    return "yes" if there == len(keys) else f"{there:,} of {len(keys):,} rows" if there else "no: never asked about these rows"


def elsewhere(recipe: Recipe, rows: Rows, pricing: Pricing) -> tuple[str, ...]:
    """What the teacher takes on another machine, if it is there: each row is asked about once."""
    positions, length = pricing.training()[0], pricing.length
    most = positions // length
    once = min(most, len(rows.train)) if rows.train else most
    return () if recipe.teacher is None else recipe.teacher.notes(once + len(rows.held_out), (once + len(rows.held_out)) * length)


def evaluations(recipe: Recipe, base: str) -> list[str]:
    """What evaluators will ask of servers; what cannot work is refused."""
    subjects = (*(["teacher"] if recipe.teacher else []), "start", "student", *recipe.baseline)
    return [note for evaluator in recipe.evaluate for note in evaluator.notes(subjects, base)]


def describe(recipe: Recipe, role: str) -> str:
    """What a role is made of, in a few words."""
    if role == "teacher":
        return f"{', '.join(recipe.teacher.references)}, {recipe.teacher.kind}" if recipe.teacher else ""  # type: ignore[attr-defined]
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
