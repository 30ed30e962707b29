"""Contracts of teachers: they open what they name, give no gradient, and say from memory what they said live."""

import copy
from typing import Any

import torch

from limbeck.check.contract import NotClaimed, close, contract
from limbeck.check.models import TOKENIZER, Trial, pair, rows
from limbeck.check.reads import over_choices
from limbeck.check.window import same
from limbeck.component import changed
from limbeck.model.base import Role
from limbeck.objective.forward_kl import ForwardKL
from limbeck.signals import Signals, TopK
from limbeck.teacher.base import Teacher


def opened(teacher: Teacher, seed: int = 0) -> tuple[Role, list[str]]:
    """The teacher's role, and the references that were opened for it."""
    asked: list[str] = []

    def opener(reference: str) -> Role:
        asked.append(reference)
        return copy.copy(pair(seed)["teacher"])

    return teacher.open(opener), asked


def whole(teacher: Teacher) -> Teacher:
    """The same teacher, but for what it leaves out: all entries but one are kept."""
    return changed(teacher, k=len(TOKENIZER) - 1) if "k" in type(teacher).model_fields else teacher


def kept_of(teacher: Teacher, seed: int = 0) -> dict[str, Any]:
    """What a capture keeps; nothing for a teacher that remembers nothing."""
    return teacher.capture(rows(seed).train, opened(teacher, seed)[0]) if teacher.remembers else {}


def attached(teacher: Teacher, seed: int = 0) -> Signals | None:
    """What it has said about the example rows already."""
    models = pair(seed)
    return teacher.attach(models.batch(rows(seed).train), models, kept_of(teacher, seed)).said.get("teacher")


def exercise(teacher: Teacher) -> None:
    """One ordinary use."""
    opened(teacher)
    attached(teacher)


@contract
@over_choices
def opens(teacher: Teacher) -> None:
    """It opens the reference that it names, and what comes can say something."""
    role, asked = opened(teacher)
    assert asked == list(teacher.references), f"opened {asked}, expected {list(teacher.references)}"
    assert isinstance(role, Role) and role.offers, "the role offers nothing"


@contract
@over_choices
def no_gradient(teacher: Teacher, seed: int = 0) -> None:
    """Nothing that it has said leads a gradient back to it, not even what is computed when asked for."""
    said = attached(teacher, seed)
    if said is None:
        with pair(seed).turn("student"):
            said = pair(seed).says("teacher", pair(seed).batch(rows(seed).train), ("logits", "hidden.1"))
    for name, value in said.values.items():
        for x in (value.log_probs, value.tail) if isinstance(value, TopK) else (getattr(value, "hidden", value),):
            assert not x.requires_grad, f"{name} leads back to the teacher"
        assert not getattr(value, "learns", False), f"{name} would learn when its head is run"


@contract
@over_choices
def equals_live(teacher: Teacher, seed: int = 0) -> None:
    """Where it leaves out nothing, the student's gradient is that with the live teacher, up to what a tail cannot tell."""
    teacher = whole(teacher)
    turn: dict[str, Any] = {"objective": (ForwardKL(),)}  # type: ignore[call-arg]
    live = Trial(seed, **turn)
    if not (kept := kept_of(teacher, seed)):
        same(Trial(seed, teacher, **turn).whole, live.whole, "against the role by itself")
        return
    found = Trial(seed, teacher, kept, **turn).whole
    assert found[1][0].count == live.whole[1][0].count, "the counts differ"
    close(found[0], live.whole[0], (1e-5, 1e-9), "gradient against the live teacher")


@contract
@over_choices
def tail_is_exact(teacher: Teacher, seed: int = 0) -> None:
    """A truncated teacher states the mass of what is left out: with its entries it makes one."""
    said = attached(teacher, seed)
    if said is None or "top_logits" not in said.values:
        raise NotClaimed("it leaves out nothing")
    top = said["top_logits"]
    close(top.log_probs.exp().sum(-1) + top.tail.exp(), torch.ones(len(top)), (1e-6, 1e-6), "mass of the entries and the tail")
    once = all(len(set(ids)) == len(ids) for ids in top.ids.tolist())
    assert once and (top.log_probs.diff(dim=-1) <= 0).all(), "entries are not the best ones, each once"


@contract
@over_choices
def by_key(teacher: Teacher, seed: int = 0) -> None:
    """What it says belongs to the row, by its key: a window of other rows, in another order, gets their answers."""
    kept, models, every = kept_of(teacher, seed), pair(seed), rows(seed).train
    if not kept:
        raise NotClaimed("it keeps nothing")
    whole_window, backwards = (teacher.attach(models.batch(some), models, kept).said["teacher"] for some in (every, every[::-1]))
    for i in range(len(every)):
        a, b = whole_window.at(torch.tensor([i])), backwards.at(torch.tensor([len(every) - 1 - i]))
        for name in a.values:
            pairs = [(x.log_probs, x.tail) if isinstance(x, TopK) else (getattr(x, "hidden", x),) for x in (a[name], b[name])]
            for x, y in zip(*pairs, strict=True):
                assert torch.equal(x, y), f"{name} of row {i} depends on where in the window it stands"
