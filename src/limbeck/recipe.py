"""The one document a user writes, and how it is read."""

import copy
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import Field, field_validator, model_validator

from limbeck.component import Document, changed, nearest, validate
from limbeck.data.base import AnyStep
from limbeck.errors import Refused
from limbeck.evaluate.base import AnyEvaluator
from limbeck.export.base import AnyExporter
from limbeck.merge.base import AnyMerge, Merge
from limbeck.objective.base import AnyObjective
from limbeck.objective.cross_entropy import CrossEntropy
from limbeck.search.document import Search
from limbeck.student.base import AnySurgery
from limbeck.teacher.base import AnyTeacher, spelled
from limbeck.text import document
from limbeck.train.stage import Stage, Turn

NUMBER = re.compile(r"-?[0-9]{1,9}")
SHIPPED = Path(__file__).parent / "recipes"


class Paper(Document):
    """The published work that a recipe follows."""

    title: str
    """Title, as printed."""
    arxiv: str = ""
    """arXiv id, like 1503.02531."""
    url: str = ""
    """Where it is, if not on arXiv."""


class Student(Document):
    """How a role other than the teacher comes to be."""

    start: str = "teacher"
    """`teacher`, `student`, or a model reference."""
    surgery: tuple[AnySurgery, ...] = ()
    """Changes to it, in order."""


class Claim(Document):
    """What a paper says is better, and how that is measured here: fixed before the first run (`make claims`)."""

    expects: str
    """What should come out, as a sentence."""
    arm: str
    """The arm that should be better ..."""
    than: Annotated[tuple[str, ...], Field(min_length=1)]
    """... than each of these."""
    also: dict[str, tuple[str, ...]] = Field(default_factory=dict, json_schema_extra={"since": False})
    """Further arms that should be better, each than others: the claim holds if all are."""
    arms: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_]{1,40}$")], dict[str, Any]]
    """Name -> changes to the setting: path -> value. All are shown, compared or not."""
    setting: dict[str, Any] = Field(default_factory=dict)
    """Changes that make the recipe small enough to be measured: path -> value."""
    prepare: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Name -> a recipe that is run first; the setting opens its student as `run:claim-RECIPE-NAME`."""
    grid: dict[str, tuple[Any, ...]]
    """One path, and the values that every arm tries at it, as a rule three learning rates; each arm keeps its best."""
    metric: str = "student.kl"
    """What is compared, by its path in the summary of a run."""
    greater: bool = False
    """Whether more is better."""
    told: tuple[str, ...] = Field(default=(), json_schema_extra={"since": False})
    """Further figures, by their path: they stand in the record of each arm at its best, and decide nothing."""
    ranks: bool = Field(default=False, json_schema_extra={"since": False})
    """Whether the record also ranks all arms on each seed: mean ranks, Friedman's test, Nemenyi's critical difference; they decide nothing."""
    seeds: Annotated[tuple[int, ...], Field(min_length=3)] = (0, 1, 2)
    """Seeds; arms are compared seed by seed."""

    @model_validator(mode="after")
    def arms_are_known(self) -> "Claim":
        pairs = self.pairs
        for name in (name for pair in pairs for name in pair):
            if name not in self.arms:
                raise ValueError(f"arms: one called {name}")
        if len({other for _, other in pairs}) < len(pairs):
            raise ValueError("also: arms that nothing else is compared with")
        if len(self.grid) != 1:
            raise ValueError("grid: one path with its values")
        return self

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Which arm should be better than which."""
        return [(arm, other) for arm, others in ((self.arm, self.than), *self.also.items()) for other in others]


class Recipe(Document):
    """A distillation, from data to exported student, as one document."""

    cosmetic: ClassVar[frozenset[str]] = frozenset({"about", "paper", "covers", "leaves_out", "version", "toy", "claim"})
    """Fields that change nothing that is computed."""

    about: str = ""
    """One sentence: what is made of what."""
    paper: Paper | None = None
    """The published work that it follows."""
    covers: tuple[str, ...] = ()
    """Parts of that work that are covered."""
    leaves_out: tuple[str, ...] = ()
    """What that work also does, and this does not."""
    version: int = Field(default=1, ge=1)
    """Raised when the recipe changes what it computes."""
    seed: int = 0
    """Of all random streams."""
    data: tuple[AnyStep, ...] = ()
    """Where rows come from, and what is done with them."""
    teacher: AnyTeacher | None = None
    """Who teaches: a model reference (then it is run live), or a kind of teacher."""
    student: Student = Student()
    """Who learns."""
    search: Search | None = Field(default=None, json_schema_extra={"since": 2})
    """Chooses what stands in each block of the student, after its surgeries and before it trains."""
    role: dict[str, Student] = Field(default_factory=dict)
    """Further roles: critic, discriminator, peer, ..."""
    train: Annotated[tuple[Stage, ...], Field(min_length=1)]
    """Stages: one after the other, or a graph by `name` and `start`."""
    merge: tuple[AnyMerge, ...] = ()
    """Merges of stages, by name."""
    result: str | None = None
    """The stage or merge that is evaluated and exported; none: the last one."""
    baseline: tuple[Literal["text_only", "labels_only"], ...] = ()
    """The same student by other means: trained as long without the teacher, on the text alone or on the labels alone of its rows."""
    baseline_objective: tuple[AnyObjective, ...] = Field(default=(), json_schema_extra={"since": 2})
    """What it learns from then in each stage; none: cross_entropy on labels."""
    evaluate: tuple[AnyEvaluator, ...] = ()
    """What is measured before and after."""
    export: tuple[AnyExporter, ...] = ()
    """What is written for others."""
    minutes: Annotated[float, Field(gt=0)] | None = None
    """Time that `steps: auto` is planned into."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where it runs; auto: cuda, else mps, else cpu."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Weights while training."""
    autocast: Literal["none", "bfloat16"] = "none"
    """Lower precision inside the forward pass, with float32 weights."""
    compile: bool = False
    """Whether the student's blocks are compiled by torch while training."""
    threads: int | None = Field(default=None, gt=0)
    """CPU threads; none: all cores."""
    toy: dict[str, Any] = Field(default_factory=dict)
    """Changes that make it run in seconds: path -> value; sizes, steps, data and models only."""
    claim: Claim | None = None
    """What the paper claims and how it is measured here; what was found stands beside the recipes, in claims/."""

    @field_validator("teacher", mode="before")
    @classmethod
    def a_reference_is_live(cls, value: Any) -> Any:
        return spelled(value)

    @field_validator("export", "evaluate", "baseline", "baseline_objective", "merge", "data", mode="before")
    @classmethod
    def one_is_a_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, (str, dict)) else value

    @model_validator(mode="after")
    def names_are_known(self) -> "Recipe":
        if self.student.start == "student":
            raise ValueError("student.start: teacher, or a model reference; a student cannot start from itself")
        starts = (self.student.start, *(role.start for role in self.role.values()))
        if self.teacher is not None and len(self.teacher.references) > 1 and "teacher" in starts:
            raise ValueError(f"student.start: a model reference, such as {self.teacher.references[0]}, since the teacher is several models")
        if self.teacher is not None and self.teacher.of_student and self.student.start not in ("teacher", *self.teacher.references):
            raise ValueError(f"student.start: teacher, since {dict(self.teacher)['kind']} is the student in another form")
        taken = [name for name in self.role if name in ("student", "teacher")]
        if taken:
            raise ValueError(f"role: {taken[0]} has a key of its own")
        if len({exporter.kind for exporter in self.export}) < len(self.export) or len(self.export) > 1:  # type: ignore[attr-defined]
            raise ValueError("export: one exporter; run again with another for a second format")
        trained = dict.fromkeys(turn.trains for stage in self.train for turn in stage.turn if turn.trains != "student")
        for i, stage in enumerate(self.train):
            if idle := [role for role in stage.restart if role not in trained]:
                do = "for the student write start: student" if "student" in idle else f"{idle[0]} is as it was"
                raise ValueError(f"train.{i}.restart: a further role that some turn trains ({', '.join(trained) or 'there is none'}); {do}")
            if any(surgery.retokenizes for surgery in stage.surgery):
                raise ValueError(f"train.{i}.surgery: none that changes the tokenizer: write it under student, since rows are cut by it")
            if stage.steps == "auto" and any(step.needs for step in stage.data or ()):
                raise ValueError(f"train.{i}.steps: a number, since its rows are written when it begins")
        if any("teacher" in map(objective.role, objective.needs) for objective in self.baseline_objective):
            raise ValueError("baseline_objective: one that does without the teacher")
        graph(self)
        return self


class Node(NamedTuple):
    """A stage or a merge, with the names that it comes after."""

    name: str
    what: Stage | Merge
    after: tuple[str, ...]
    where: str
    """Its path in the recipe."""


def graph(recipe: Recipe) -> list[Node]:
    """Stages and merges in an order in which each comes after what it starts from.

    Raises:
        ValueError: for a name that is unknown, used twice, or part of a cycle, with its path.
    """
    nodes: dict[str, Node] = {}

    def add(node: Node) -> None:
        if node.name in nodes or node.name in ("student", "teacher"):
            raise ValueError(f"{node.where}: the name {node.name} is taken")
        nodes[node.name] = node

    before = "student"
    for i, stage in enumerate(recipe.train):
        name = stage.name or f"stage-{i}"
        for n in range(stage.repeat):
            own = name if n == stage.repeat - 1 else f"{name}.{n}"
            what = changed(stage, reconstruct=None) if n and stage.reconstruct else stage  # fitted once
            add(Node(own, what, (before if n or stage.start is None else stage.start,), f"train.{i}"))
            before = own
    for i, merge in enumerate(recipe.merge):
        if not merge.of:
            raise ValueError(f"merge.{i}.of: at least one name")
        add(Node(merge.name, merge, merge.of, f"merge.{i}"))
    for node in nodes.values():
        for name in node.after:
            if name != "student" and name not in nodes:
                raise ValueError(f"{node.where}: nothing is called {name}; {nearest(name, ['student', *nodes])} is known")
    if recipe.result is not None and recipe.result not in nodes:
        raise ValueError(f"result: nothing is called {recipe.result}; {nearest(recipe.result, nodes)} is known")
    return ordered(nodes)


def ordered(nodes: Mapping[str, Node]) -> list[Node]:
    """Each node after those that it comes after, else as written; a cycle is refused with its path."""
    out: dict[str, Node] = {}

    def visit(name: str, way: tuple[str, ...]) -> None:
        if name in way:
            raise ValueError(f"{nodes[name].where}: a cycle: {' -> '.join((*way[way.index(name) :], name))}")
        if name in nodes and name not in out:
            for earlier in nodes[name].after:
                visit(earlier, (*way, name))
            out[name] = nodes[name]

    for name in nodes:
        visit(name, ())
    return list(out.values())


def text_only(recipe: Recipe) -> Recipe:
    """The same student, data, order, steps and optimiser, without the teacher: only the objective differs."""
    stages = [
        changed(
            stage,
            teacher=None,
            reconstruct=None,
            turn=tuple(without_teacher(turn, recipe.baseline_objective or (CrossEntropy(),)) for turn in stage.turn),
            data=None if stage.data is not None and any(step.needs for step in stage.data) else stage.data,  # what models write is not text
        )
        for stage in recipe.train
    ]
    return changed(recipe, train=tuple(stages), teacher=None, baseline=(), baseline_objective=())


def without_teacher(turn: Turn, objectives: Sequence[Any]) -> Turn:
    from limbeck.forward.paired import Paired

    seats = {} if turn.trains == "student" else {"student": turn.trains}
    through = tuple(role for role in turn.through if role != "teacher")
    seated = tuple(changed(objective, seats={**objective.seats, **seats}) for objective in objectives)
    return changed(turn, objective=seated, align=(), forward=Paired(), through=through, balance="none")


TOY = "As a toy, with other models and sizes, in seconds:"
"""Stands before what a recipe is about, where its toy form is meant."""


def load(source: str | Path | Mapping[str, Any] | Recipe, changes: Sequence[str] = (), toy: bool = False) -> Recipe:
    """A recipe from a file, a shipped recipe's name or plain data, with changes like `train.0.steps=50`.

    Raises:
        Refused: with file, line and path, for anything that is not a recipe.
    """
    if isinstance(source, Recipe):
        plain, lines, name = source.model_dump(mode="json"), {}, "recipe"
    elif isinstance(source, Mapping):
        plain, lines, name = copy.deepcopy(dict(source)), {}, "recipe"
    else:
        path = find(str(source))
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise Refused("yaml", str(path), "UTF-8 text", f"byte {error.start} is none", "save the file as UTF-8") from None
        (plain, lines), name = document.load(text, path.name), path.name
    if not isinstance(plain, dict):
        raise Refused("yaml", name, "a mapping of recipe keys", type(plain).__name__, "begin with about:, data:, teacher:, student:, train:")
    toys = plain.get("toy") if toy and isinstance(plain.get("toy"), dict) else {}
    for path_, value in {**(toys or {})}.items():
        change(plain, path_, value, "toy")
        lines[place_of(path_)] = 0
    if toys and isinstance(plain.get("about"), str):
        plain["about"] = f"{TOY} {plain['about']}"  # its models and sizes are others than those that this names
    for word in changes:
        key, equals, value = word.partition("=")
        if not equals:
            raise Refused("key", f"command line  {word}", "key=value", word, f"{word}=...")
        change(plain, key, here(document.value(value)))
        lines[place_of(key)] = 0  # what is wrong there does not stand in the file
    return validate(Recipe, plain, name, lines)


def here(value: Any) -> Any:
    """A value of the command line, in which paths that begin with ./ or ../ start where it is typed: others start at the recipe."""
    if isinstance(value, dict):
        return {name: here(one) for name, one in value.items()}
    if isinstance(value, list):
        return [here(one) for one in value]
    if isinstance(value, str):
        scheme, colon, path = value.rpartition(":")
        return f"{scheme}{colon}{os.path.abspath(path)}" if path.startswith(("./", "../")) else value
    return value


def find(source: str) -> Path:
    """The file of a recipe: a path, or the name of one that is shipped."""
    shipped = SHIPPED / f"{source}.yaml"
    try:
        if Path(source).is_file():
            return Path(source)
        if "/" not in source and shipped.is_file():
            return shipped
    except OSError:  # a name that is longer than names can be
        pass
    names = [path.stem for path in SHIPPED.glob("*.yaml")]
    raise Refused(
        "recipe", source, "a recipe file, a recipe's name or a run", "no such file", f"limbeck list recipe; nearest: {nearest(source, names)}"
    )


def place_of(key: str) -> tuple[int | str, ...]:
    """`train.0.steps` as the path of a line."""
    return tuple(int(word) if NUMBER.fullmatch(word) else word for word in key.split("."))


def change(plain: Any, key: str, value: Any, source: str = "command line") -> None:
    """Sets one place of a document by its dotted path, with `*` for every item of a list; null removes."""
    *way, last = key.split(".")
    place: Any = plain
    for i, word in enumerate(way):
        if word == "*" and isinstance(place, list):
            for n in range(len(place)):
                change(plain, ".".join((*way[:i], str(n), *way[i + 1 :], last)), value, source)
            return
        part: Any = int(word) if isinstance(place, list) and NUMBER.fullmatch(word) else word
        try:
            place = place[part] if isinstance(place, list) else place.setdefault(part, {})
        except (IndexError, TypeError, AttributeError):
            raise Refused(
                "key", f"{source}  {key}", f"a place in the recipe: {'.'.join(way[:i])} has no {word}", key, "look at limbeck show"
            ) from None
    if isinstance(place, list) and NUMBER.fullmatch(last) and -len(place) <= int(last) < len(place):
        place[int(last)] = value
    elif isinstance(place, dict) and value is None:
        place.pop(last, None)
    elif isinstance(place, dict):
        place[last] = value
    else:
        raise Refused("key", f"{source}  {key}", "a place in the recipe", key, "look at limbeck show")
