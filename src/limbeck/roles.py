"""The roles of a recipe: opened, checked against each other, changed by their surgeries."""

import copy
import functools
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch

from limbeck.component import find
from limbeck.data.base import Rows
from limbeck.errors import LimbeckError, Refused
from limbeck.model.base import Models, Role, clone
from limbeck.model.conversion import conversion_key
from limbeck.model.opening import open_pretrained
from limbeck.model.recorded import Recorded, facts_of, open_recorded
from limbeck.model.reference import Reference, existing, identity, in_folder, located
from limbeck.model.role import as_role, share_tokenizer
from limbeck.model.served import open_served
from limbeck.model.text import Text
from limbeck.recipe import Recipe, Student
from limbeck.signals import unit_of
from limbeck.store import ANSWERS, Answers, Cache
from limbeck.student.base import Score, Surgery
from limbeck.teacher._packing import unpack
from limbeck.teacher._remembering import AbstractRemembering
from limbeck.teacher.base import Teacher
from limbeck.text.spans import fingerprint


class Cast:
    """Opens every role of a recipe once; `fresh` makes the student as it is before training."""

    def __init__(self, recipe: Recipe, cache: Cache, base: str = ".", opener: Callable[..., Role] | None = None, plan: bool = False):
        self.plan = plan
        """Only shapes matter: surgeries take a form that measures nothing."""
        self.recipe, self.cache, self.base = recipe, cache, base
        self.opener = opener or self.open
        self.searched: Callable[[Role], Role] | None = None
        """What a search has made of the student, once it is over."""
        self.place: Path | None = None
        """Where answers are kept; none: in the cache, by all that they depend on."""
        self.surgeries: dict[str, tuple[Surgery, ...]] = {}
        """Settled surgeries by role: from the run's folder, or measured now."""
        self.originals: dict[str, Role] = {}
        if recipe.teacher is not None:
            self.originals["teacher"] = recipe.teacher.open(self.opener)
        for name, how in {"student": recipe.student, **recipe.role}.items():
            if self.begins(how) not in ("teacher", "student"):
                self.originals[name] = self.opened(f"{name}.start", how)
            elif how.start == "teacher" and "teacher" in self.originals and not self.originals["teacher"].at_hand:
                do = "name a model with the teacher's tokenizer: start: path:FOLDER"
                raise Refused("start", f"{name}.start", "a model reference, since the teacher's weights are not at hand", "teacher", do)
            elif how.start == "teacher" and "teacher" not in self.originals:
                raise Refused("start", f"{name}.start", "a model reference, since there is no teacher", "teacher", "name a model, or add teacher:")
        self.refuse_changes()
        if not plan:
            self.one_tokenizer()

    def refuse_changes(self) -> None:
        """Refuses changes that a role does not take: surgeries, a search, compiled blocks."""
        hows = {"student": self.recipe.student, **self.recipe.role}
        asked: list[tuple[str, str, Sequence[Surgery]]] = [(f"{name}.surgery", name, how.surgery) for name, how in hows.items() if how.surgery]
        stages = enumerate(self.recipe.train)
        asked += [(f"train.{i}.surgery", stage.turn[-1].trains, stage.surgery) for i, stage in stages if stage.surgery]
        asked += [(key, "student", ()) for key in ("search", "compile") if getattr(self.recipe, key)]
        for where, name, surgeries in asked:
            begins = self.begins(hows[name]) if name in hows else name
            if (role := self.originals.get(begins if begins in ("teacher", "student") else name)) is not None:
                role.refuse_change(where, surgeries)

    def begins(self, how: Student) -> str:
        """What a role starts from: where that is a teacher whose answers were recorded, the model that spoke."""
        teacher = self.originals.get("teacher")
        return teacher.models[0] if how.start == "teacher" and isinstance(teacher, Recorded) else how.start

    @property
    def origin(self) -> Role | None:
        """The model that the student is made of, as it came; none where it is drawn."""
        return self.originals.get("student", self.originals.get("teacher"))

    def opened(self, where: str, how: Student) -> Role:
        """The model that a role starts from; one that was recorded must be at hand, and be the same."""
        text, teacher, do = self.begins(how), self.originals.get("teacher"), "name a model that is at hand, such as path:FOLDER"
        if text != how.start and isinstance(teacher, Recorded):
            expected = f"the recorded teacher's weights, {text}"
            try:
                there = [identity(Reference.parse(located(text, self.base)))]
            except LimbeckError as error:
                raise Refused("start", where, expected, error.got, do) from error
            if there != teacher.about["identity"]["weights"]:
                raise Refused("start", where, f"{expected}: {teacher.about['identity']['weights']}", str(there), do)
        elif text.startswith("cache:"):
            raise Refused("start", where, "a model with weights", text, do)
        return self.opener(text)

    def answers(self, source: Teacher | None, role: Role | None) -> Mapping[str, Any]:
        """Where what a teacher says about rows is kept, if it remembers: the same for all runs that would be told the same."""
        if role is None or not isinstance(source, AbstractRemembering):
            return {}
        if isinstance(role, Recorded):
            return Answers(role.folder, unpack=unpack)
        about = {"teacher": source.keeps, "temperature": 1, **self.identity(role, source.references)}
        return Answers(self.place or self.cache.root / ANSWERS / self.cache.key(about), about, facts_of(role, source.references), unpack)

    def open(self, text: str, reads: str = "") -> Role:
        """A role from a model reference; relative files start from the recipe's folder. A served model reads as another one does."""
        reference = Reference.parse(located(text, self.base))
        if reference.scheme == "endpoint":
            return open_served(reference, located(reads, self.base), self.cache)
        if reference.scheme == "cache":
            return open_recorded(reference.path).to(device_named(self.recipe.device))
        return as_role(open_pretrained(reference, dtype=self.recipe.dtype, cache=self.cache)).to(device_named(self.recipe.device))

    def identity(self, role: Role, texts: Sequence[str]) -> dict[str, Any]:
        """What a role's answers depend on: the weights of all models that speak, tokenizer, dtype."""
        weights = [identity(Reference.parse(located(text, self.base))) for text in texts]
        more = {"says": dict(role.self_description)} if role.self_description else {}
        return {"weights": weights, "tokenizer": fingerprint(role.tokenizer) if role.tokenizer else None, "dtype": self.recipe.dtype, **more}

    def identities(self) -> dict[str, Any]:
        """What every opened role is made of."""
        named: dict[str, tuple[str, ...]] = {"student": (self.begins(self.recipe.student),)}
        named |= {name: (self.begins(how),) for name, how in self.recipe.role.items()}
        if self.recipe.teacher is not None:
            named["teacher"] = self.recipe.teacher.references
        return {name: self.identity(role, named[name]) for name, role in self.originals.items()}

    def folder(self, texts: Sequence[str]) -> Path | None:
        """The folder that holds a model's weights in transformers' format, its own or the converted one; none for several models."""
        if len(texts) != 1:
            return None
        reference = Reference.parse(located(texts[0], self.base))
        if reference.scheme == "path" or in_folder(reference):
            return existing(reference)
        return self.cache.get(conversion_key(self.cache, reference)) if reference.scheme in ("gguf", "package") else None

    def one_tokenizer(self) -> None:
        """Roles with the same tokenizer share it; ids of two tokenizers are never compared."""
        for name, role in self.originals.items():
            if not any(surgery.retokenizes for surgery in self.surgeries_of(name)):  # then what it reads with in the end is compared
                self.share(role, f"{name}.start" if name != "teacher" else name)

    def share(self, role: Role, where: str) -> Role:
        """A role that uses the tokenizer object of the first one; another is refused where a teacher is heard and no alignment crosses."""
        first = next((r for r in self.originals.values() if r.tokenizer is not None), None)
        if role.tokenizer is None or first is None or role is first:
            return role
        crossed = any(a.crosses for stage in self.recipe.train for turn in stage.turn for a in turn.align)
        if self.heard() and not crossed or fingerprint(role.tokenizer) == fingerprint(first.tokenizer):
            share_tokenizer(role, first, where)
        return role

    def heard(self) -> bool:
        """Whether an objective listens to the teacher by pieces of a row, or a data step has it write: then ids must mean the same."""
        stages = self.recipe.train
        turns = [turn for stage in stages for turn in stage.turn]
        every = (objective for turn in turns for objective in turn.objective)
        said = (o.role(seat) for o in every for seat, names in o.needs.items() if any(unit_of(name) != "row" for name in names))
        steps = (*self.recipe.data, *(step for one in (*stages, *turns) for step in one.data or ()))
        return "teacher" in said or any("teacher" in step.needs for step in steps)

    def make(self, name: str, how: Student, score: Score | None = None) -> Role:
        """A role as it is before training, in memory of its own; surgeries that measure are settled the first time."""
        source = {"teacher": "teacher", "student": "student"}.get(self.begins(how), name)
        if source == "student" and name != "student":
            role = self.fresh()
        else:
            same = bool(how.surgery) and all(surgery.keeps_weights for surgery in how.surgery)
            role = clone(self.originals[source], self.originals[source].parameters() if same else ())
        if name not in self.surgeries:
            settled = []
            for surgery in self.surgeries_of(name):
                settled.append(surgery.shape() if self.plan else surgery.settle(role, score or unscored))
                role = settled[-1](role)
            self.surgeries[name] = tuple(settled)
        else:
            for surgery in self.surgeries[name]:
                role = surgery(role)
        if name == "student" and self.searched is not None:
            role = self.searched(role)
        return (self.share(role, f"{name}.surgery") if any(s.retokenizes for s in how.surgery) and not self.plan else role).eval()

    def surgeries_of(self, name: str) -> tuple[Surgery, ...]:
        """Those that a role gets before training."""
        how = self.recipe.student if name == "student" else self.recipe.role.get(name)
        return () if how is None else tuple(surgery.based(self.base) for surgery in how.surgery)

    def fresh(self, score: Score | None = None) -> Role:
        """The student before training."""
        return self.make("student", self.recipe.student, score)

    def settled(self) -> dict[str, Any]:
        """Surgeries by role, as plain data for the run's folder."""
        return {role: [s.model_dump(mode="json") for s in found] for role, found in self.surgeries.items()}

    def recall(self, plain: Mapping[str, Any]) -> None:
        """Takes up what `settled` gave."""
        self.surgeries = {
            role: tuple(cast(Surgery, find(Surgery, s["kind"]).model_validate(s)) for s in found)
            for role, found in plain.items()
        }

    def readers(self) -> Models:
        """Roles that read rows: the student sees them first."""
        own = {name: role for name, role in self.originals.items()}
        own = {"student": own.get("student", own.get("teacher")), **own}  # type: ignore[dict-item]
        return Models({name: reading(role, self.surgeries_of(name), self.plan) for name, role in own.items()})

    def provenance(self, rows: Rows) -> tuple[Mapping[str, Any], ...]:
        """What was used: roles and data, each with name, revision, licence and its part."""
        models = (
            {**role.provenance, "role": name, "name": shown(str(role.provenance.get("name", "a module at hand")))}
            for name, original in self.originals.items()
            for role in original.speakers
        )
        return (*models, *({**p, "role": "data"} for p in rows.provenance))

    def compiled(self, role: Role) -> Role:
        """The role with its blocks compiled, if the recipe asks for it."""
        if self.recipe.compile and isinstance(role, Text) and not self.plan:
            if device_named(self.recipe.device).type == "cpu" and not (shutil.which("g++") or shutil.which("clang++")):
                raise Refused(
                    "compile",
                    "compile",
                    "a C++ compiler, which torch needs to compile for the CPU",
                    "none",
                    "install g++, or leave compile out",
                    code=3,
                )
            for block in role.module.get_submodule(role.anatomy.path("blocks")).children():
                block.compile()
        return role

    def models(self) -> Models:
        """Every role, for training."""
        roles = {"student": self.compiled(self.fresh()), **{name: self.make(name, how) for name, how in self.recipe.role.items()}}
        models = Models(roles)
        if self.recipe.teacher is not None:
            models["teacher"] = self.recipe.teacher.beside(self.originals["teacher"], models)
        return models


def reading(role: Role, surgeries: Sequence[Surgery], plan: bool) -> Role:
    """A role that reads as it will after its surgeries; its weights are as they are."""
    tokenizer = functools.reduce(lambda before, surgery: surgery.reads(before, plan), surgeries, role.tokenizer)
    if tokenizer is role.tokenizer:
        return role
    made = copy.copy(role)
    made.tokenizer = tokenizer
    return made


def shown(name: str) -> str:
    """A model's name for others: of a path, only its last part."""
    return Path(name).name if "/" in name and Path(name).exists() else name


def unscored(role: Role) -> float:
    raise Refused(
        "score", "student.surgery", "training rows and a teacher to measure with", "none", "choose without measuring, or give data and teacher"
    )


def device_named(name: str) -> torch.device:
    """The device of a recipe."""
    if name != "auto":
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
