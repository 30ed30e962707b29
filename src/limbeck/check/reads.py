"""A recorder of the fields that a component reads while it works."""

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import ValidationError

from limbeck.check.contract import NotClaimed, Unfit
from limbeck.component import Component, changed


@contextmanager
def recorded(cls: type[Component]) -> Iterator[set[str]]:
    """Names of the fields of a class that are read, on any instance of it, inside the context.

    Copying, printing, comparing and saving read no field: they go past the attributes. What a validator of the class reads does not
    count either: it refuses something, and computes nothing.
    """
    seen: set[str] = set()
    fields = frozenset(cls.model_fields)
    validators = {getattr(v.func, "__code__", None) for v in cls.__pydantic_decorators__.model_validators.values()}
    before = vars(cls).get("__getattribute__")

    def read(self: Any, name: str) -> Any:
        if name in fields and sys._getframe(1).f_code not in validators:
            seen.add(name)
        return super(cls, self).__getattribute__(name)

    cls.__getattribute__ = read  # type: ignore[method-assign]
    try:
        yield seen
    finally:
        if before is None:
            del cls.__getattribute__
        else:
            cls.__getattribute__ = before  # type: ignore[method-assign]


def variants(component: Component) -> list[Component]:
    """The component, and others that differ in one choice: a field that only matters beside another value is read by one of them."""
    out = [component]
    for name, field in type(component).model_fields.items():
        if name == "kind":
            continue
        for value in choices(field.annotation):
            if value != getattr(component, name):
                try:
                    out.append(changed(component, **{name: value}))
                except ValidationError:  # this choice goes only with others
                    continue
    return out


def over_choices(function: Callable[..., None]) -> Callable[..., None]:
    """Runs a check on the component and on each of its variants; says in which choice it fails.

    It is not claimed where no variant claims it. A variant that does not go with the example is passed over; the component itself must.
    """

    @functools.wraps(function)
    def run(component: Component, **seed: int) -> None:
        reasons: list[NotClaimed] = []
        every = variants(component)
        for one in every:
            try:
                function(one, **seed)
            except NotClaimed as reason:
                reasons.append(reason)
            except Exception as error:
                if one is component:
                    raise
                if not isinstance(error, Unfit):
                    choice = ", ".join(f"{name}={value!r}" for name, value in one if value != getattr(component, name))
                    kind = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
                    raise AssertionError(f"with {choice}: {kind}{error}") from error
        if len(reasons) == len(every):
            raise reasons[0]

    return run


def choices(annotation: Any) -> list[Any]:
    """All values of a field that is a choice of words, or true or false."""
    origin = get_origin(annotation)
    if origin is Literal:
        return list(get_args(annotation))
    if annotation is bool:
        return [False, True]
    return [value for part in get_args(annotation) for value in choices(part)] if origin in (Union, UnionType) else []
