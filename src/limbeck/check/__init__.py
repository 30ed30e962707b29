"""Contracts of every room: what a member must do, run by `limbeck check` and by the tests, for our own and anybody's components.

A contract is a function that takes a component and raises: AssertionError where the component does not keep it, `NotClaimed`
where nothing is asked of it. No member is listed anywhere: what is in the folder of a room is held against all its contracts.
"""

import importlib
import sys
import time
from collections.abc import Sequence
from functools import cache
from types import ModuleType
from typing import Any

from pydantic_core import PydanticCustomError

from limbeck.check.contract import MODULES, Contract, NotClaimed, base_of, snake
from limbeck.check.report import Outcome, Report, render
from limbeck.component import LOADED, ROOMS, Component, find, members, nearest
from limbeck.errors import Refused

__all__ = ["Contract", "NotClaimed", "Outcome", "Report", "base_of", "check", "check_path", "contracts", "hold", "kinds", "locate", "render"]


@cache
def contracts(room: str) -> dict[str, Contract]:
    """Name -> contract, of all that a member of a room must keep. `role` is for adapters of models, which are no components."""
    if room not in (*ROOMS, "role"):
        raise Refused("room", f"check {room}", "one of " + ", ".join((*ROOMS, "role")), room, f"write {nearest(room, ROOMS)}")
    found: dict[str, Contract] = {}
    for name in (*(("component",) if room != "role" else ()), *MODULES.get(room, (room,))):
        module = importlib.import_module(f"limbeck.check.{name}")
        shared = getattr(module, "CONTRACTS", ())
        own = {
            key: value
            for key, value in vars(module).items()
            if getattr(value, "contract", None) is True and (value.__module__ == module.__name__ or value in shared)
        }
        assert not own.keys() & found.keys(), f"two contracts of {room} share a name: {own.keys() & found.keys()}"
        found |= own
    return found


def hold(component: Any, name: str, run: Contract, seed: int = 0) -> Outcome:
    """Holds one contract against one component; whatever a stranger's component raises is an outcome, not a crash."""
    began = time.perf_counter()
    try:
        run(component, seed)
        status, message = "passed", ""
    except NotClaimed as reason:
        status, message = "not claimed", str(reason)
    except AssertionError as error:
        status, message = "failed", str(error) or "an assertion failed"
    except Exception as error:
        missing = isinstance(error, Refused) and error.slug == "extra"
        status, message = ("not claimed", f"not tried: {error.do}") if missing else ("failed", f"{type(error).__name__}: {error}")  # type: ignore[attr-defined]
    return Outcome(name, status, message, time.perf_counter() - began)  # type: ignore[arg-type]


def check(component: Any, only: str | Sequence[str] | None = None, seed: int = 0, again: str = "") -> Report:
    """Holds the contracts of its room against a component class, an instance, or a role.

    Args:
        component: the class (its `example()` is used), an instance with the fields that matter, or a `Role`.
        only: names of contracts to run; none: all of them.
        seed: of all example signals, rows and weights.
        again: how the component is named in the line that says how to repeat a failure.
    """
    room = getattr(component, "room", "") or "role"
    every = contracts(room)
    picked = (only,) if isinstance(only, str) else tuple(only or every)
    for name in picked:
        if name not in every:
            raise Refused("contract", f"check --only {name}", "one of " + ", ".join(every), name, f"write {nearest(name, every)}")
    cls = component if isinstance(component, type) else type(component)
    kind = cls.model_fields["kind"].default if room != "role" else component.anatomy.family.family if hasattr(component, "anatomy") else cls.__name__
    rows = tuple(hold(component, name, every[name], seed) for name in picked)
    return Report(kind, room, rows, len(every), again or f"{cls.__module__}:{cls.__qualname__}", seed)


def check_path(path: str, only: str | Sequence[str] | None = None, seed: int = 0) -> list[Report]:
    """Checks the component at `module:Class` (imported, so it must be one you trust), at `room.kind`, `role.family`, or `all` of limbeck."""
    if path != "all":
        return [check(locate(path), only, seed, path)]
    every = [(room, kind) for room in (*ROOMS, "role") for kind in kinds(room)]
    named = [(room, kind) for room, kind in every if only is None or only in contracts(room)]
    return [check(locate(f"{room}.{kind}"), only, seed, f"{room}.{kind}") for room, kind in named]


def kinds(room: str) -> list[str]:
    """Kinds of a room; for `role`, the families of models whose anatomy is known."""
    if room == "role":
        from limbeck.model.anatomy import family_files

        return sorted({**family_files("speech"), **family_files()})
    return [kind for kind, sentence in members(room).items() if sentence or has_kind(room, kind)]


def has_kind(room: str, file: str) -> bool:
    """Whether a file of a room declares a component, though it does not say what it does."""
    importlib.import_module(f"limbeck.{room}.{file}")
    return (room, file) in LOADED


def locate(path: str) -> Any:
    """The component class at `module:Class`, `limbeck.<room>:Class` or `room.kind`; a small model of the family at `role.family`.

    Raises:
        Refused: `check`, where there is none.
    """
    module_name, colon, name = path.partition(":")
    room, _, kind = path.partition(".")
    inside = module_name.removeprefix("limbeck.") if colon else room
    try:
        if not colon and room == "role" and kind in kinds("role"):
            from limbeck.check.models import family_of

            return family_of(kind)
        if inside in ROOMS and (not colon or module_name.startswith("limbeck.")):
            return find(base_of(inside), snake(name) if colon else kind)
        found: Any = getattr(importlib.import_module(module_name), name) if colon else None
    except PydanticCustomError as error:
        hint, exact = error.message(), not error.message().startswith("one of")
        raise Refused(
            "check",
            path,
            f"a kind of {inside}: {hint}",
            snake(name) if colon else kind,
            f"limbeck check {inside}.{hint}" if exact else f"limbeck list {inside}",
        ) from None
    except Exception as error:  # a stranger's import may raise anything
        raise Refused(
            "check",
            path,
            "a module that can be imported, and a class in it",
            f"{type(error).__name__}: {error}",
            "correct the name, or run from the folder of the package",
        ) from None
    if not (isinstance(found, type) and issubclass(found, Component) and "kind" in found.model_fields):
        raise Refused(
            "check",
            path,
            "module:Class of a component, or room.kind",
            getattr(found, "__name__", str(found)),
            "write it like mylab.losses:RankedKL, or objective.skew_kl",
        )
    return found


class Callable(ModuleType):
    """The package can be called: `limbeck.check(MyObjective)` is `limbeck.check.check(MyObjective)`."""

    def __call__(self, *args: Any, **named: Any) -> Report:
        return check(*args, **named)


sys.modules[__name__].__class__ = Callable
