"""Contracts of every room: what a member must do, run by `limbeck check` and by the tests, for our own and anybody's components.

A contract is a function that takes a component and raises: AssertionError where the component does not keep it, `NotClaimed`
where nothing is asked of it. No member is listed anywhere: what is in the folder of a room is held against all its contracts.
"""

import importlib
import re
import time
from collections.abc import Sequence
from functools import cache
from typing import Any

from limbeck.check.contract import Contract, NotClaimed, base_of, snake
from limbeck.check.report import Outcome, Report
from limbeck.component import ROOMS, Component, find, nearest
from limbeck.errors import Refused

__all__ = ["Contract", "NotClaimed", "Outcome", "Report", "base_of", "check", "check_path", "contracts", "hold", "locate"]

MORE = {"objective": ("objective", "precision", "learning", "window"), "role": ("role",)}
"""Modules of contracts of a room, where they are not one of the room's name; components are also held to those of `component`."""


@cache
def contracts(room: str) -> dict[str, Contract]:
    """Name -> contract, of all that a member of a room must keep. `role` is for adapters of models, which are no components."""
    if room not in (*ROOMS, "role"):
        raise Refused("room", f"check {room}", "one of " + ", ".join((*ROOMS, "role")), room, f"write {nearest(room, ROOMS)}")
    found: dict[str, Contract] = {}
    for name in (*(("component",) if room != "role" else ()), *MORE.get(room, (room,))):
        module = importlib.import_module(f"limbeck.check.{name}")
        shared = getattr(module, "CONTRACTS", ())
        own = {key: value for key, value in vars(module).items() if getattr(value, "contract", False) and (value.__module__ == module.__name__ or value in shared)}
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
        status, message = "failed", f"{type(error).__name__}: {error}"
    return Outcome(name, status, message, time.perf_counter() - began)              # type: ignore[arg-type]


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
    kind = cls.model_fields["kind"].default if hasattr(cls, "model_fields") and "kind" in cls.model_fields else cls.__name__
    rows = tuple(hold(component, name, every[name], seed) for name in picked)
    return Report(kind, room, rows, len(every), again or f"{cls.__module__}:{cls.__qualname__}", seed)


def check_path(path: str, only: str | Sequence[str] | None = None, seed: int = 0) -> Report:
    """Checks the component at `module:Class`; the module is imported, so it must be one you trust."""
    return check(locate(path), only, seed, path)


def locate(path: str) -> type[Component]:
    """The component class at `module:Class`, or at `limbeck.<room>:Class` for one of ours.

    Raises:
        Refused: `check`, where there is none.
    """
    module_name, colon, name = path.partition(":")
    if not colon or not re.fullmatch(r"[A-Za-z_][\w.]*", module_name) or not name.isidentifier():
        raise Refused("check", path, "module:Class, like mylab.losses:RankedKL", path, "write the module, a colon and the class")
    room = module_name.removeprefix("limbeck.")
    try:
        found: Any = find(base_of(room), snake(name)) if room in ROOMS and room != module_name else getattr(importlib.import_module(module_name), name)
    except Exception as error:                          # a stranger's import may raise anything
        raise Refused("check", path, "a module that can be imported, and a class in it", f"{type(error).__name__}: {error}",
                      "correct the name, or run from the folder of the package") from None
    if not (isinstance(found, type) and issubclass(found, Component) and "kind" in found.model_fields):
        raise Refused("check", path, "a component: a class of a room, with a kind", getattr(found, "__name__", type(found).__name__),
                      "name a final class (limbeck list shows the rooms)")
    return found
