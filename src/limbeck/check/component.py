"""Contracts of every component, whatever its room."""

import doctest
import importlib
import inspect
import json
import math
import re
import sys
from typing import Annotated, Any, get_args

import yaml as pyyaml
from pydantic import TypeAdapter, ValidationError

from limbeck.check.contract import MODULES, NotClaimed, base_of, contract, snake
from limbeck.check.reads import recorded, variants
from limbeck.component import ROOMS, Choice, Component, canonical, canonical_json, changed, find
from limbeck.schedule.base import Schedule
from limbeck.schedule.linear import Linear
from limbeck.text import document

YEAR = re.compile(r"^(1[89]|20)\d\d\b")


@contract
def yaml(component: Component) -> None:
    """It is the same after being written as YAML and read back, by itself and where any kind of its room may stand."""
    text = pyyaml.safe_dump(component.model_dump(mode="json"), sort_keys=False)
    plain = document.load(text)[0]
    again = type(component).model_validate(plain)
    assert again == component, f"written and read back, it differs: {again!r}, was {component!r}"
    chosen = TypeAdapter(Annotated[base_of(component.room), Choice()]).validate_python(plain)  # type: ignore[misc, arg-type]
    assert chosen == component and type(chosen) is type(component), f"chosen by its kind, it is {chosen!r}"
    try:
        type(component).model_validate({**plain, "no_such_field": 1})
    except ValidationError:
        return
    raise AssertionError("an unknown field is not refused")


@contract
def documented(component: Component) -> None:
    """One sentence without a paper's name, an example that runs, references, and a description of each field."""
    cls = type(component)
    text = inspect.cleandoc(cls.__dict__.get("__doc__") or "")
    assert text, "no docstring"
    first = text.split("\n\n")[0].replace("\n", " ")
    assert first.rstrip().endswith((".", ":")) and first[0].isupper(), f"the docstring begins with no sentence: {first!r}"
    _, found, references = text.partition("References:")
    assert found and references.strip(), "no References: in the docstring"
    for nickname in nicknames(references):
        assert not re.search(rf"(?<!\w){re.escape(nickname)}(?!\w)", first), f"the first sentence names a paper: {nickname}"
    for name, field in cls.model_fields.items():
        assert name == "kind" or field.description, f"the field {name} has no docstring"
    run_examples(cls, text)


def nicknames(references: str) -> set[str]:
    """Names that papers gave to themselves: one word with several capitals or a digit, between the authors and the year."""
    found = set()
    for line in references.splitlines():
        pieces = [piece.strip() for piece in line.split(",")]
        year = next((i for i, piece in enumerate(pieces) if YEAR.match(piece)), 0)
        found |= {p for p in pieces[:year] if re.fullmatch(r"[\w.+-]+", p) and (sum(c.isupper() for c in p) > 1 or re.search(r"\d", p))}
    return found


def run_examples(cls: type[Component], text: str) -> None:
    """Runs the doctest, with the names of the module at hand."""
    names = dict(vars(sys.modules[cls.__module__])) | {cls.__name__: cls}
    test = doctest.DocTestParser().get_doctest(text, names, cls.__name__, None, 0)
    assert test.examples, "no Example: with >>> in the docstring"
    said: list[str] = []
    found = doctest.DocTestRunner(verbose=False).run(test, out=said.append)
    assert not found.failed, "the example does not run as written: " + "".join(said)


@contract
def named(component: Component) -> None:
    """Kind, class and, for our own, the file have one name."""
    cls = type(component)
    kind = cls.model_fields["kind"].default
    assert kind.rpartition(":")[2] == snake(cls.__name__), f"kind {kind!r} of class {cls.__name__}, expected {snake(cls.__name__)!r}"
    if cls.__module__.startswith("limbeck."):
        file = cls.__module__.removeprefix(f"limbeck.{cls.room}.")
        assert file == kind, f"kind {kind!r} stands in {cls.__module__}, expected limbeck.{cls.room}.{kind}"
        assert find(base_of(cls.room), kind) is cls, f"limbeck finds another class by the kind {kind!r}"
    else:
        assert ":" in kind, f"kind {kind!r} outside of limbeck, expected its package in front: package:{kind}"


@contract
def canonical_form(component: Component) -> None:
    """Its form in cache keys is plain data, does not depend on the order of fields, and tells different settings apart."""
    cls, text = type(component), canonical_json(component)
    assert json.loads(text) == canonical(component), "the canonical form is not plain JSON"
    assert cls.revision >= 1 and component.room in ROOMS, f"revision {cls.revision}, room {component.room!r}"
    backwards = cls.model_validate(dict(reversed(list(component.model_dump(mode="json").items()))))
    assert canonical_json(backwards) == text, "the canonical form depends on the order of the fields"
    extras = {name: field.json_schema_extra for name, field in cls.model_fields.items()}
    cosmetic = {name for name, extra in extras.items() if isinstance(extra, dict) and extra.get("cosmetic")}
    for other in variants(component)[1:]:
        if any(getattr(other, name) != getattr(component, name) for name in cls.model_fields if name not in cosmetic):
            assert canonical_json(other) != text, f"{other!r} has the cache key of {component!r}"


@contract
def fields_read(component: Component) -> None:
    """Every field of its own is read when it works, with one choice or another; fields of the room's base are read by limbeck."""
    cls = type(component)
    ours = set(cls.model_fields) - set(base_of(cls.room).model_fields) - {"kind"} - cls.unread
    if not ours:
        raise NotClaimed("it has no fields of its own")
    exercise = importlib.import_module(f"limbeck.check.{MODULES.get(cls.room, (cls.room,))[0]}").exercise
    problem: NotClaimed | None = None
    with recorded(cls) as seen:
        for variant in variants(component):
            try:
                exercise(variant)
            except NotClaimed as reason:
                problem = reason
            if ours <= seen:
                return
    if problem:
        raise problem
    raise AssertionError(f"never read while it works: {', '.join(sorted(ours - seen))} (set `unread` where a field only tells others something)")


def moving(cls: type[Component]) -> list[str]:
    """Fields that may be a schedule."""

    def may(annotation: Any) -> bool:
        return isinstance(annotation, type) and issubclass(annotation, Schedule) or any(map(may, get_args(annotation)))

    return [name for name, field in cls.model_fields.items() if may(field.annotation)]


@contract
def schedules(component: Component) -> None:
    """A field that may move follows its schedule, and a schedule that leaves the bounds of the field is refused at that step."""
    fields = moving(type(component))
    if not fields:
        raise NotClaimed("no field may move")
    for name in fields:
        now = getattr(component, name)
        ends = [x for x in (0.25, 0.75, 1.5, -2.0, 2.0, 6.0) if accepts(component, name, x)][:2]  # the last two: where only whole numbers go
        assert len(ends) == 2, f"{name} takes a schedule, but hardly a number"
        mover = changed(component, **{name: Linear(start=ends[0], end=ends[1], steps=4)})
        for step, share in ((0, 0.0), (1, 0.25), (4, 1.0), (9, 1.0)):
            expected = ends[0] + share * (ends[1] - ends[0])
            got = getattr(mover.at(step), name)
            assert isinstance(got, float | int) and math.isclose(got, expected), f"{name} at step {step} is {got!r}, expected {expected}"
            assert mover.at(step) == changed(component, **{name: expected}), f"at(step) changes more than {name}"
        assert component.at(3) == component or isinstance(now, Schedule), "at(step) changes a component without schedules"
        outside = next((x for x in (-1.0, 2.0, 1e9) if not accepts(component, name, x)), None)
        if outside is not None:
            try:
                changed(component, **{name: Linear(start=ends[0], end=outside, steps=4)}).at(4)
            except ValidationError:
                continue
            raise AssertionError(f"{name}: {outside} is refused as a number, but not as the end of a schedule")


def accepts(component: Component, name: str, value: Any) -> bool:
    """Whether a field may have a value."""
    try:
        changed(component, **{name: value})
    except ValidationError:
        return False
    return True
