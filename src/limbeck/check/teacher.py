"""Contracts of teachers: they open what they name, give no gradient, and say from memory what they said live."""

import copy
from typing import Any

import torch

from limbeck.check.contract import NotClaimed, close, contract
from limbeck.check.models import TOKENIZER, Trial, move, pair, rows
from limbeck.check.reads import over_choices
from limbeck.check.serving import served_by
from limbeck.check.window import same
from limbeck.component import changed
from limbeck.model.base import Models, Role, clone
from limbeck.numerics import RULED_OUT
from limbeck.objective.forward_kl import ForwardKL
from limbeck.signals import Signals, TopK
from limbeck.teacher._packing import unpack
from limbeck.teacher._remembering import AbstractRemembering
from limbeck.teacher.base import Teacher


def opened(teacher: Teacher, seed: int = 0) -> tuple[Role, list[str]]:
    """The teacher's role, and the references that were opened for it."""
    asked: list[str] = []

    def opener(reference: str, reads: str = "") -> Role:
        asked.append(reference)
        role = copy.copy(pair(seed)["teacher"])
        return served_by(role, *reference.removeprefix("endpoint:").split("#")) if reads else role  # type: ignore[arg-type]

    return teacher.open(opener), asked


def whole(teacher: Teacher) -> Teacher:
    """The same teacher, but for what it leaves out: all entries but one are kept, as they are."""
    everything = {"k": len(TOKENIZER) - 1, "bits": 32}
    return changed(teacher, **{name: value for name, value in everything.items() if name in type(teacher).model_fields})


def kept_of(teacher: Teacher, seed: int = 0) -> dict[str, Any]:
    """What comes back of a capture, packed as it is written; nothing for a teacher that remembers nothing."""
    if not isinstance(teacher, AbstractRemembering):
        return {}
    said = teacher.capture(rows(seed).train, opened(teacher, seed)[0])
    other = stacked(teacher.capture(rows(seed + 1).train, opened(teacher, seed)[0]))
    tensors, of_all = teacher.pack(stacked(said), other)
    places = {name: torch.tensor([len(one[name.partition("/")[0]]) for one in said.values()]) for name in tensors}
    pieces = {name: x.split(places[name].tolist()) for name, x in tensors.items()}
    return {key: unpack({**{name: some[i] for name, some in pieces.items()}, **of_all}) for i, key in enumerate(said)}


def stacked(said: dict[str, dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """What was said of all rows, one after the other."""
    return {name: torch.cat([one[name] for one in said.values()]) for name in next(iter(said.values()))}


def attached(teacher: Teacher, seed: int = 0) -> Signals | None:
    """What it has said about the example rows already."""
    models = pair(seed)
    return teacher.attach(models.batch(rows(seed).train), models, kept_of(teacher, seed)).said.get("teacher")


def beside(teacher: Teacher, seed: int = 0) -> Models:
    """The roles of a run with this teacher; where it is the student in another form, of a student with adapters that has moved since."""
    role = opened(teacher, seed)[0]
    models = Models({**pair(seed), "teacher": role})
    if not teacher.of_student:
        return Models({**models, "teacher": teacher.beside(role, models)})
    from limbeck.student.lora import Lora

    models["student"] = Lora(rank=2)(clone(role))
    spoken = teacher.beside(role, models)
    move(models["student"], seed)
    return Models({**models, "teacher": spoken})


def exercise(teacher: Teacher) -> None:
    """One ordinary use."""
    attached(teacher)
    teacher.at(0).follow(beside(teacher))  # type: ignore[attr-defined]


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
        models = beside(teacher, seed)
        names = ("logits", "hidden.1")[: 1 + ("hidden" in models["teacher"].offers)]
        with models.turn("student"):
            said = models.says("teacher", models.batch(rows(seed).train), names)
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
    if not (kept := kept_of(teacher, seed)):
        ours = beside(teacher, seed)
        live = Models({**ours, "teacher": pair(seed)["teacher"]})
        same(Trial(seed, teacher, models=ours, **turn).whole, Trial(seed, models=live, **turn).whole, "against the live model")
        return
    models = Models({**pair(seed), "teacher": opened(teacher, seed)[0]})
    if "sampled_logits" in models["teacher"].offers:
        raise NotClaimed("draws are right on average only")
    live = Trial(seed, **turn)
    found = Trial(seed, teacher, kept, models=models, **turn).whole
    assert found[1][0].count == live.whole[1][0].count, "the counts differ"
    close(found[0], live.whole[0], (1e-5, 1e-9), "gradient against the live teacher")


@contract
@over_choices
def moves(teacher: Teacher, seed: int = 0) -> None:
    """After a step its weights have moved towards the student's if it says that they move, else not at all; the student stays."""
    models = beside(teacher, seed)
    student, mean = (models[name].module for name in ("student", "teacher"))
    theirs, before = ({name: x.clone() for name, x in module.state_dict().items()} for module in (student, mean))
    step: Any = teacher.at(0)
    step.follow(models)
    after = {name: x.clone() for name, x in mean.state_dict().items()}
    assert all(torch.equal(x, theirs[name]) for name, x in student.state_dict().items()), "the student moved"
    gone = [name for name, x in before.items() if not torch.equal(x, after[name])]
    if not teacher.moves:
        assert not gone, f"its weights {', '.join(gone[:3])} moved; it does not say so, and no checkpoint holds them"
        return
    assert gone, "it says that it moves, and did not"
    for name in gone:
        near, far = ((x[name] - theirs[name]).norm() for x in (after, before))
        assert near < far, f"{name} moved away from the student's"
    mean.load_state_dict(before)
    step.follow(models)
    assert all(torch.equal(x, after[name]) for name, x in mean.state_dict().items()), "from the same state it moves elsewhere"


@contract
@over_choices
def tail_is_exact(teacher: Teacher, seed: int = 0) -> None:
    """A truncated teacher states the mass of what is left out: with its entries it makes one. Draws stand for all of it, and make one."""
    said = attached(teacher, seed)
    name = "top_logits|sampled_logits"
    if said is None or not said.values.keys() & set(name.split("|")):
        raise NotClaimed("it leaves out nothing")
    top = said[name]
    close(top.log_probs.exp().sum(-1) + top.tail.exp(), torch.ones(len(top)), (1e-6, 1e-6), "mass of the entries and the tail")
    if "sampled_logits" in said.values:
        assert (top.tail <= RULED_OUT).all(), "draws stand for the whole distribution: there is no other mass"
        return
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
