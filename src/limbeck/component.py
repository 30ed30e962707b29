"""Component: the one base class. A component is its own config, and often its own function.

A *room* is a folder of `limbeck`; its `base.py` declares the abstract class with `room = "objective"`. Each other public
file of the folder declares one final class, whose `kind` is the file's name. Nothing is registered anywhere: the folder is
the list, and a member is imported when a recipe names it.
"""

import ast
import difflib
import importlib
import importlib.util
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, TypeVar, cast, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import PydanticCustomError, core_schema

from limbeck.errors import Refused

KIND = re.compile(r"([a-z][a-z0-9_]*:)?[a-z][a-z0-9_]*")
ROOMS = ("schedule", "noise", "block", "data", "teacher", "student", "align", "forward", "objective", "merge", "evaluate", "export")
ROOM = "limbeck:room"
"""Mark in a JSON schema of a place that holds any component of a room, until `schema` writes the reference."""
LOADED: dict[tuple[str, str], type["Component"]] = {}
"""Room and kind of every final class that has been imported, ours or a user's own."""
SWITCHED_OFF: set[tuple[str, str]] = set()
"""Room and kind of what others have installed and cannot be imported: said once."""


class Document(BaseModel):
    """A frozen, validated part of a recipe."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, arbitrary_types_allowed=True, allow_inf_nan=False)
    in_place: ClassVar[tuple[str, ...]] = ()
    """Fields that hold a list of parts, of which a single one may be written in place of the list."""

    @classmethod
    def __get_pydantic_json_schema__(cls, core: Any, handler: Any) -> dict[str, Any]:
        made = handler(core)
        own = handler.resolve_ref_schema(made)
        for name in cls.in_place:
            part = handler.resolve_ref_schema(own["properties"][name]["items"])
            own["properties"] = {**part["properties"], **own["properties"]}
            own["required"] = [other for other in own.get("required", ()) if other != name]
        return made


D = TypeVar("D", bound=Document)


def changed(document: D, **fields: Any) -> D:
    """The same document with some fields changed, validated again."""
    return type(document).model_validate({**dict(document), **fields})


class Component(Document):
    """A frozen, validated description of one mechanism, which is also that mechanism."""

    room: ClassVar[str] = ""
    revision: ClassVar[int] = 1
    """Raised by whoever changes what the component computes; part of every cache key."""
    unread: ClassVar[frozenset[str]] = frozenset()
    """Fields that only tell others something (names, labels): the contract does not ask that they are read."""

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        for base in cls.__bases__:
            if "kind" in getattr(base, "model_fields", {}):
                raise TypeError(f"{base.__name__} is final; wrap it instead of subclassing it")
        if "kind" in cls.model_fields:
            kind = cls.model_fields["kind"].default
            if not isinstance(kind, str) or not KIND.fullmatch(kind):
                raise TypeError(f"{cls.__name__}: kind must be written in snake case, like skew_kl or mylab:skew_kl, not {kind!r}")
            known = LOADED.get((cls.room, kind))
            if known and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
                raise TypeError(f"kind {kind!r} of {cls.room} is taken by {known.__module__}")
            LOADED[cls.room, kind] = cls

    @model_validator(mode="after")
    def schedules_within_bounds(self) -> "Component":
        for which in (0, 1) if self.schedules else ():
            ends = {name: schedule.ends[which] for name, schedule in self.schedules.items()}
            try:
                changed(self, **ends)
            except ValidationError as error:
                first = error.errors()[0]
                name = str(first["loc"][0]) if first["loc"] else "fields"
                told = first["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
                raise ValueError(f"{name}: {told}, all the way; the schedule reaches {ends.get(name, 'its end')}") from None
        return self

    @classmethod
    def example(cls) -> "Component":
        """An instance for contracts and docs; one that has required fields overrides this."""
        return cls()

    @property
    def schedules(self) -> dict[str, Any]:
        """Field -> the schedule that stands there in place of a number."""
        return {name: value for name, value in self if isinstance(value, Component) and value.room == "schedule"}

    def at(self, step: int, memory: Mapping[str, Any] = MappingProxyType({})) -> "Component":
        """The same component with every schedule replaced by its number at this step, validated again; `memory` is what schedules
        remember, by field."""
        moving = {name: schedule.value(step, memory.get(name)) for name, schedule in self.schedules.items()}
        return type(self).model_validate({**dict(self), **moving}) if moving else self

    def build(self, example: Any) -> Any:
        """What this component learns or remembers (an `nn.Module`), made to fit example signals; None if nothing.

        Example signals come from one dry run of one group of rows. The module is optimised in a group of its own,
        checkpointed, and left out of the export.
        """
        return None


class Choice:
    """Marks a field that may hold any component of a room: `AnyObjective = Annotated[Objective, Choice()]`.

    In a document the component is written as its kind, or as a mapping with `kind` and the fields that differ.
    """

    def __get_pydantic_core_schema__(self, source: type[Component], handler: Any) -> Any:
        def pick(value: Any) -> Component:
            if isinstance(value, source):
                return value
            config = {"kind": value} if isinstance(value, str) else value
            kind = config.get("kind") if isinstance(config, Mapping) else None
            if not isinstance(kind, str):
                raise PydanticCustomError("kind", "a kind of {room}, or a mapping that has one", {"room": source.room})
            return find(source, kind).model_validate(config)

        dump = core_schema.plain_serializer_function_ser_schema(lambda value: value.model_dump(mode="json"))
        return core_schema.no_info_plain_validator_function(pick, serialization=dump, metadata={"room": source.room})

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        return {ROOM: schema["metadata"]["room"]}


def find(base: type[Component], kind: str) -> type[Component]:
    """The final class of a kind; raises pydantic's error for an unknown one, with the nearest name."""
    room = base.room
    if KIND.fullmatch(kind) and (room, kind) not in LOADED:
        if ":" in kind:
            load_plugin(room, kind)
        elif kind in members(room):
            importlib.import_module(f"limbeck.{room}.{kind}")
    found = LOADED.get((room, kind))
    if found is None or not issubclass(found, base):
        raise PydanticCustomError("kind", "{hint}", {"hint": nearest(kind, members(room)), "room": room, "got": kind})
    return found


def menu(package: str) -> tuple[Any, Any]:
    """`__getattr__` and `__dir__` of a room: `limbeck.objective.SkewKL` is the class of the kind skew_kl, imported when it is asked for."""
    room = package.rpartition(".")[2]

    def get(name: str) -> Any:
        kind = next((k for k in members(room) if k.replace("_", "") == name.lower()), None)
        found = vars(importlib.import_module(f"{package}.{kind}")).get(name) if kind else None
        if found is None:
            raise AttributeError(f"{package} has no {name}; it has {', '.join(members(room))}")
        return found

    return get, lambda: sorted(members(room))


def nearest(word: str, known: Any) -> str:
    """`skew_kl`, if that is what was meant; else all that is known."""
    near = difflib.get_close_matches(str(word), list(known), n=1, cutoff=0.6)
    return near[0] if near else "one of " + ", ".join(sorted(known))


@cache
def members(room: str) -> dict[str, str]:
    """Kind -> its one-sentence description, read from the files of the room without importing them."""
    folder = Path(__file__).parent / room
    found = {path.stem: summary(path) for path in sorted(folder.glob("*.py")) if path.stem != "base" and path.stem[0] != "_"}
    return {kind: text for kind, text in found.items() if text}  # a file without a component is no member


def summary(path: Path) -> str:
    """First sentence of the docstring of the class that has a kind."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and any(isinstance(x, ast.AnnAssign) and getattr(x.target, "id", "") == "kind" for x in node.body):
            return (ast.get_docstring(node) or "").split("\n\n")[0].replace("\n", " ")
    return ""


def load_plugin(room: str, kind: str) -> None:
    """Imports `package:kind` from the entry point `<room>.<kind>` of that distribution, in the group `limbeck`."""
    package, _, name = kind.partition(":")
    for point in entry_points(group="limbeck", name=f"{room}.{name}"):
        if point.dist is not None and re.sub(r"[-_.]+", "_", point.dist.name).lower() == package and (room, kind) not in SWITCHED_OFF:
            try:
                point.load()
            except Exception as error:  # a stranger's import may raise anything
                SWITCHED_OFF.add((room, kind))
                warnings.warn(f"{kind} is switched off: {point.value} cannot be imported ({error})", stacklevel=2)


def canonical(value: Any) -> Any:
    """A component as plain data for cache keys: kinds, revisions, every field but cosmetic ones, and new ones only if set."""
    if isinstance(value, Document):
        out: dict[str, Any] = {"revision": value.revision} if isinstance(value, Component) else {}
        for name, field in type(value).model_fields.items():
            extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
            item = getattr(value, name)
            if not extra.get("cosmetic") and not ("since" in extra and item == field.get_default(call_default_factory=True)):
                out[name] = canonical(item)
        return out
    if isinstance(value, Mapping):
        return {str(key): canonical(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [canonical(item) for item in value]
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raise TypeError(f"{type(value).__name__} cannot be part of a recipe")


def canonical_json(value: Any) -> str:
    """One spelling of a value, whatever the order of its keys."""
    return json.dumps(canonical(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def schema(cls: type[Document]) -> dict[str, Any]:
    """JSON schema of a document: `$defs/<room>` is any component of a room, and `$defs/<room>.<kind>` stands once for all of its kind."""
    rooms: list[str] = []
    defs: dict[str, Any] = {}

    def refer(item: Any) -> Any:
        if isinstance(item, list):
            return [refer(one) for one in item]
        if not isinstance(item, dict):
            return item
        item = {key: refer(one) for key, one in item.items()}
        if room := item.pop(ROOM, None):
            rooms.extend([room] * (room not in rooms))
            item["$ref"] = f"#/$defs/{room}"
        return item

    def take(part: type[Document]) -> dict[str, Any]:
        made = refer(part.model_json_schema())
        defs.update(made.pop("$defs", {}))
        return made

    out = take(cls)
    for room in rooms:  # grows while it is walked: a kind may hold components of other rooms
        kinds = [kind for kind, sentence in members(room).items() if sentence]
        for kind in kinds:
            importlib.import_module(f"limbeck.{room}.{kind}")
            made = take(LOADED[room, kind])
            defs[f"{room}.{kind}"] = {**made, "required": ["kind", *made.get("required", ())]}
        elsewhere = {"type": "string", "pattern": ":"}  # package:kind of another package, or a reference where one may stand
        defs[room] = {
            "anyOf": [
                {"enum": kinds},
                *({"$ref": f"#/$defs/{room}.{kind}"} for kind in kinds),
                elsewhere,
                {"type": "object", "properties": {"kind": elsewhere}, "required": ["kind"]},
            ]
        }
    return {**out, "$schema": "https://json-schema.org/draft/2020-12/schema", "$defs": dict(sorted(defs.items()))}


def validate(cls: type[Document], value: Any, source: str = "", lines: Mapping[tuple, int] | None = None, at: tuple = ()) -> Any:
    """Validates plain data; pydantic's errors become one of ours, with file, line and path."""
    try:
        return cls.model_validate(value)
    except ValidationError as error:
        raise explain(cls, value, error, source, lines or {}, at) from None


def explain(cls: type, value: Any, error: ValidationError, source: str, lines: Mapping[tuple, int], at: tuple) -> Refused:
    """The most telling of pydantic's errors, as expected, got, do."""
    every = error.errors(include_url=False)
    first = max(every, key=lambda e: len(e["loc"]) + 10 * telling(e))
    words = keys_of(value)
    loc = tuple(p for p in first["loc"] if isinstance(p, int) or p in words or not re.search(r"[\[(-]|^float$|^int$|^str$", p))
    path, owner, host = written(cls, value, loc)
    line = next((lines[at + path[:n]] for n in range(len(path), -1, -1) if at + path[:n] in lines), None)
    where = "  ".join(x for x in (f"{source}:{line}" if line else source, ".".join(map(str, at + path))) if x)
    name, got = (str(path[-1]) if path else cls.__name__), first["input"]
    if first["type"] == "extra_forbidden":
        known = fields_of(owner) + ([name for name in fields_of(host) if name not in fields_of(owner)] if host else [])
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
        kind = getattr(owner.model_fields.get("kind"), "default", None) or (host or owner).__name__.lower()
        return Refused(
            "key", where, f"a field of {kind}: {', '.join(known)}", f"{name}: {short(got)}", f"write {near[0]}" if near else f"remove {name}"
        )
    if first["type"] == "kind":
        context, hint = first.get("ctx", {}), first["msg"]
        exact = not hint.startswith(("one of", "a kind"))
        expected = f"a kind of {context.get('room', name)}" + ("" if exact else f": {hint}")
        return Refused("kind", where, expected, short(got), f"write {hint}" if exact else f"limbeck list {context.get('room', '')}".strip())
    if first["type"] == "missing":
        return Refused("key", where, f"a value for {name}", "nothing", f"add {name}")
    message = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if not path and (place := re.match(r"([a-z_]+(?:\.\w+)*): ", message)):  # what is wrong of a whole document names its place itself
        name, got = place[1], inside(value, place[1].split("."))
    return Refused("value", where, message, f"{name}: {short(got)}", f"change {name}")


def inside(value: Any, path: Sequence[str]) -> Any:
    """What stands at a path of plain data; as far as it goes."""
    for word in path:
        if isinstance(value, Mapping) and word in value:
            value = value[word]
        elif isinstance(value, (list, tuple)) and word.isdigit() and int(word) < len(value):
            value = value[int(word)]
        else:
            break
    return value


def keys_of(value: Any) -> set[Any]:
    """All keys of a document: pydantic's names for the branches of a union are none of them."""
    if isinstance(value, Mapping):
        return set(value).union(*(keys_of(item) for item in value.values()))
    return set().union(*(keys_of(item) for item in value)) if isinstance(value, (list, tuple)) else set()


def telling(error: Any) -> bool:
    """Whether an error says what the user meant; a number is not meant as a schedule because a schedule would also do."""
    return error["type"] == "extra_forbidden" or error["type"] == "kind" and isinstance(error["input"], (str, Mapping))


def fields_of(owner: type[Document]) -> list[str]:
    """Names that may be written there, with those of the part that may be written in its place."""
    names = [name for name in owner.model_fields if name != "kind"]
    for name in owner.in_place:
        names += fields_of(document_in(owner.model_fields[name])[0])  # type: ignore[arg-type]
    return names


def document_in(field: Any) -> tuple[type[Document] | None, type[Component] | None]:
    """The document class, and the base of the room, that a field may hold."""
    found, room, stack = None, None, [field.annotation, *field.metadata]
    while stack:
        item = stack.pop()
        if isinstance(item, type) and issubclass(item, Component) and item.room:
            room = item
        elif isinstance(item, type) and issubclass(item, Document):
            found = item
        stack.extend(get_args(item))
    return found, room


def written(cls: type, value: Any, path: tuple) -> tuple[tuple, type[Document], type[Document] | None]:
    """The path as the user wrote it, the class that owns its last key, and the one in whose place it was written, if any."""
    place: Any = value
    owner, host, out, skip = cls, None, [], 0
    for key in path[:-1]:
        if skip:
            skip -= 1
            continue
        field = owner.model_fields.get(key) if isinstance(key, str) and issubclass(owner, Document) else None
        found, room = document_in(field) if field else (None, None)
        if isinstance(place, Mapping) and key in owner.in_place and key not in place:
            owner, host, skip = found or owner, owner, 1
            continue
        out.append(key)
        host = None
        try:
            place = cast(Any, place)[key]
        except (KeyError, IndexError, TypeError):
            place = None
        if field:
            pending = found, room
        found, room = pending if not field else (found, room)
        kind = place.get("kind") if isinstance(place, Mapping) else place if isinstance(place, str) else None
        if room and isinstance(kind, str) and (room.room, kind) in LOADED:
            owner = LOADED[room.room, kind]
        elif found or room:
            owner = found or room or owner
    return (*out, *path[-1:]), owner, host


def short(value: Any, limit: int = 60) -> str:
    """A value as one short line."""
    text = json.dumps(value, ensure_ascii=True, default=str) if not isinstance(value, str) else value
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 3] + "..."
