"""What a contract is: a function of one component that raises where the component does not keep it."""

import functools
import importlib
import inspect
import re
from collections.abc import Callable
from typing import Any

from limbeck.component import Component

Contract = Callable[..., None]
"""Takes a component class (its example is used) or an instance, and a seed."""
MODULES = {"objective": ("objective", "precision", "learning", "window"), "student": ("surgery",)}
"""Modules of contracts of a room, where it is not one of the room's name; the first has `exercise`, one ordinary use."""


class NotClaimed(Exception):
    """The contract asks nothing of this component, for the reason given."""


class Unfit(AssertionError):
    """The component refuses the example signals."""


def contract(function: Callable[..., None]) -> Contract:
    """Marks a function of one instance as a contract; it can then be called with a class too, and with a seed or without."""
    seeded = "seed" in inspect.signature(function).parameters

    @functools.wraps(function)
    def run(component: Any, seed: int = 0) -> None:
        instance = component.example() if isinstance(component, type) and issubclass(component, Component) else component
        return function(instance, seed=seed) if seeded else function(instance)

    run.contract = True  # type: ignore[attr-defined]
    return run


def slow(run: Contract) -> Contract:
    """Marks a contract as one for the slow suite."""
    run.slow = True  # type: ignore[attr-defined]
    return run


def base_of(room: str) -> type[Component]:
    """The abstract class of a room."""
    module = importlib.import_module(f"limbeck.{room}.base")
    return next(value for value in vars(module).values() if isinstance(value, type) and Component in value.__bases__ and value.room == room)


def snake(name: str) -> str:
    """`ForwardKL` -> `forward_kl`: what the kind of a class is called."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def close(got: Any, expected: Any, tolerance: tuple[float, float], what: str) -> None:
    """Raises with both numbers where two tensors (or numbers) lie further apart than the relative and absolute tolerance.

    Tensors are compared by their norms: entries that should cancel are not held against their own size.
    """
    import torch

    a, b = (torch.as_tensor(x).detach().double().cpu() for x in (got, expected))
    assert a.shape == b.shape, f"{what}: shape {tuple(a.shape)}, expected {tuple(b.shape)}"
    gap, size = (a - b).norm().item(), b.norm().item()
    bound = tolerance[0] * size + tolerance[1] * max(1, a.numel()) ** 0.5
    if not gap <= bound:
        shown = f"{a.item():.6g}, expected {b.item():.6g}" if a.numel() == 1 else f"{gap:.3g} apart, at a size of {size:.3g}"
        raise AssertionError(f"{what}: {shown} (allowed {bound:.2g})")
