"""distill(teacher, student, loader): for modules and data that you hold."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from limbeck.component import validate
from limbeck.data.base import Place, Step
from limbeck.errors import Failed, Refused
from limbeck.model.base import Models
from limbeck.model.role import given
from limbeck.numerics import Streams
from limbeck.signals import VOCABULARY, Batch, View, unit_of
from limbeck.train.loop import Loop, NotFinite, World
from limbeck.train.stage import Stage


class Given(Step):
    """Windows from any iterable of (input, label), of mappings by name, or of inputs alone; it is passed through again and again.

    Example:
        >>> Given(batches=[(torch.zeros(2, 3), torch.tensor([0, 1]))]).takes
        'features'

    References:
        (any torch DataLoader)
    """

    kind: Literal["limbeck:given"] = "limbeck:given"
    unread: ClassVar[frozenset[str]] = frozenset({"batches"})
    batches: Any = ()
    """The iterable; each item is one window."""
    takes: str = "features"
    """Name of the input, where items do not name it: see `limbeck.signals.VOCABULARY`."""

    def build(self, example: Any) -> Any:
        return Cursor(self.batches)

    def window(self, batch: Batch, place: Place, memory: Any) -> Batch:
        item = memory.next(place.window)
        named = (
            dict(item)
            if isinstance(item, Mapping)
            else dict(zip((self.takes, "label"), item if isinstance(item, (tuple, list)) else (item,), strict=False))
        )
        unknown = [name for name in named if name not in VOCABULARY]
        if unknown:
            raise Refused("data", "loader", f"inputs called {', '.join(VOCABULARY)}", unknown[0], "rename it, or say takes=")
        inputs = {name: torch.as_tensor(x) for name, x in named.items()}
        num = len(next(x for name, x in inputs.items() if unit_of(name) in ("row", "target")))
        keys = tuple(f"{place.window}/{i}" for i in range(num))
        return Batch({"student": View(inputs)}, ("",) * num, torch.arange(num), keys, torch.ones(num))


class Cursor(nn.Module):
    """Where an iterable stands; it is started again at its end."""

    def __init__(self, batches: Iterable[Any]):
        super().__init__()
        self.batches, self.iterator, self.taken = batches, iter(batches), 0

    def next(self, window: int) -> Any:
        """The item of this window; items before it are skipped, as when a run goes on."""
        while True:
            item = self.one()
            self.taken += 1
            if self.taken > window:
                return item

    def one(self) -> Any:
        try:
            return next(self.iterator)
        except StopIteration:
            self.iterator = iter(self.batches)
            try:
                return next(self.iterator)
            except StopIteration:
                raise Refused("data", "loader", "at least one batch", "none", "give a loader that can be passed through again") from None

    def get_extra_state(self) -> dict[str, Any]:
        return {}

    def set_extra_state(self, state: Any) -> None:
        pass


def distill(
    teacher: Any,
    student: Any,
    loader: Iterable[Any],
    objective: Any = "forward_kl",
    steps: int = 100,
    *,
    takes: str = "features",
    says: str = "logits",
    seed: int = 0,
    observe: Callable[[int, dict[str, float]], None] | None = None,
    **turn: Any,
) -> Any:
    """Trains a student module to say what a teacher module says, in place, and returns it.

    Args:
        teacher: any `nn.Module` (or a `limbeck.model.base.Role`); it is never changed. None, for objectives that need no teacher.
        student: the module that learns; returned in eval mode.
        loader: iterable of windows: (input, label), {"features": ..., "label": ...}, or inputs; it must be able to start again.
        objective: a kind, a mapping with kind, a component, or a list of them.
        steps: optimiser steps, one window each.
        takes: name of the input, as in `limbeck.signals.VOCABULARY` (features, pixels, noise, ...).
        says: the signal that the modules return.
        seed: of all random streams.
        observe: hears (step, means of the objectives) after each step.
        turn: further fields of `limbeck.Turn`: optimiser={"lr": 1e-2}, micro=2, only=("head.*",), ...

    Raises:
        Refused: an objective that needs what the modules do not say; a misspelt field.
        Failed: a loss that is not finite.
    """
    objectives = objective if isinstance(objective, (list, tuple)) else [objective]
    stage = validate(Stage, {"steps": steps, "turn": [{"objective": list(objectives), **turn}]}, "distill")
    if not isinstance(loader, Iterable):
        raise Refused("data", "loader", "an iterable of batches", type(loader).__name__, "give a DataLoader or a list")
    modes = [(module, module.training) for module in teacher.modules()] if isinstance(teacher, nn.Module) else []
    roles = {"student": student} if teacher is None else {"student": student, "teacher": teacher}
    models = Models({name: given(module, says=says, takes=(takes,)) for name, module in roles.items()})
    flags = [(p, p.requires_grad) for role in models.values() for p in role.parameters()]
    loop = Loop(stage, World(models, steps=(Given(batches=loader, takes=takes),), streams=Streams(seed)))

    def watch(loop: Loop, records: list[dict[str, Any]]) -> None:
        if observe is not None:
            observe(loop.step - 1, {r["name"]: r["sum"] / max(r["count"], 1) for r in records})

    try:
        loop.run(watch)
    except NotFinite as error:
        raise Failed(
            "nan",
            f"distill  step {error.step}  {', '.join(error.objectives) or 'gradient'}",
            "a finite loss",
            "not finite",
            "lower optimiser.lr, or look at this batch; the student is as it was before the step",
            code=5,
        ) from None
    finally:
        for p, flag in flags:
            p.requires_grad_(flag)
        for module, mode in modes:
            module.training = mode
    return student.eval() if isinstance(student, nn.Module) else student
