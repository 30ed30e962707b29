"""Contracts of surgeries: what shrinks, what stays, and that the result loads, learns, and is what was planned."""

import copy
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from limbeck.check import role as spoken
from limbeck.check.contract import NotClaimed, close, contract
from limbeck.check.models import TOKENIZER, denoiser, family_of, fresh, lists, move, points, quiet, rows
from limbeck.check.reads import over_choices
from limbeck.component import canonical_json, find
from limbeck.export.base import Parcel
from limbeck.export.safetensors import Safetensors
from limbeck.model.adapters import merged
from limbeck.model.base import Models, Role, clone
from limbeck.model.denoiser import Denoiser
from limbeck.model.opening import open_pretrained
from limbeck.model.text import Text
from limbeck.numerics import Streams, kl, log_probs
from limbeck.objective.forward_kl import ForwardKL
from limbeck.signals import dense
from limbeck.student.base import Score, Surgery
from limbeck.text import document
from limbeck.train.loop import Loop, World
from limbeck.train.optimiser import Optimiser
from limbeck.train.stage import Stage, Turn

LAST: dict[tuple[type, str, int], Any] = {}
"""Students that were made last, of one surgery."""


def logits(role: Role, seed: int = 0) -> Tensor:
    """What a role says about the example rows: its logits, its scores of lists, or the velocity of points in noise."""
    with torch.no_grad():
        return heard(role, seed)


def heard(role: Role, seed: int = 0) -> Tensor:
    """The same, with gradients where they are on."""
    if "score" in role.offers:
        return role.says(role.view(lists(seed).train), ("score",), {})["score"]
    if "velocity" in role.offers:
        view = role.view(points(seed).train)
        num = view.num_rows
        noisy = {"sample": view.inputs["clean"], "time": torch.linspace(0.05, 1, num), "guidance_scale": torch.linspace(0, 2, num)}
        return role.says(replace(view, inputs={**view.inputs, **noisy}), ("velocity",), {})["velocity"]
    return dense(role.says(role.view(rows(seed).train), ("logits",), {})["logits"])


class Measured:
    """The score that settling asks for: mean KL from a role as it was, on some rows; other roles may learn from it before."""

    def __init__(self, role: Role, seed: int = 0):
        self.teacher, self.seed, self.view = clone(role), seed, role.view(rows(seed).train[:4])
        self.log_p = self.log_q(self.teacher)

    def log_q(self, role: Role) -> Tensor:
        with torch.no_grad():
            return log_probs(dense(role.says(self.view, ("logits",), {})["logits"]))

    def __call__(self, role: Role) -> float:
        return float(kl(self.log_p, self.log_q(role)).mean())

    def learn(self, role: Role, steps: int) -> None:
        """No more than a step, so that contracts stay quick."""
        turn = Turn(objective=(ForwardKL(),), batch=4, optimiser=Optimiser(lr=1e-2))
        models = Models({"student": role, "teacher": self.teacher})
        Loop(Stage(steps=min(steps, 1), turn=(turn,)), World(models, rows(self.seed), streams=Streams(self.seed))).run()


def score_of(role: Role, seed: int = 0) -> Score:
    """The score of distances from what a role says now; a denoiser has none."""
    return no_score if "velocity" in role.offers else Measured(role, seed)


def no_score(_: Role) -> float:
    raise AssertionError("a settled surgery measures again")


def beginning(surgery: Surgery, seed: int = 0) -> Any:
    """A small model, after those surgeries that must come before this one."""
    if surgery.family == "denoiser":
        return denoiser(seed, torch.float32)
    role: Role = fresh(seed) if surgery.family == "llama" else family_of(surgery.family, seed, torch.float32, layers=4)
    for kind in surgery.follows:
        role = find(Surgery, kind).example()(role)  # type: ignore[type-abstract, operator]
    assert isinstance(role, Text)
    return role.eval()


def operate(surgery: Surgery, seed: int = 0) -> Any:
    """The student that is made of a small model, by the settled form that the run keeps."""
    role = beginning(surgery, seed)
    after = surgery.settle(role, score_of(role, seed))(beginning(surgery, seed))
    assert isinstance(after, (Text, Denoiser)), f"it returns {type(after).__name__}, expected a role"
    return after.eval()


def operated(surgery: Surgery, seed: int = 0) -> tuple[Any, Any]:
    """A small model, and the student that is made of it, which is remembered while contracts of one surgery follow each other."""
    if any(cls is not type(surgery) for cls, _, _ in LAST):
        LAST.clear()
    key = type(surgery), canonical_json(surgery), seed
    if key not in LAST:
        LAST[key] = operate(surgery, seed)
    return beginning(surgery, seed), copy.deepcopy(LAST[key], {id(TOKENIZER): TOKENIZER})


def shapes(role: Role) -> dict[str, tuple[int, ...]]:
    return {name: tuple(p.shape) for name, p in role.module.named_parameters()}


def exercise(surgery: Surgery) -> None:
    """One ordinary use."""
    operated(surgery)


@contract
@over_choices
def settles(surgery: Surgery, seed: int = 0) -> None:
    """Settled, it is the same each time, needs no score any more, survives YAML, and leaves the model as it was."""
    role = beginning(surgery, seed)
    before, mode = {name: x.clone() for name, x in role.state_dict().items()}, role.training
    first = surgery.settle(role, score_of(role, seed))
    assert surgery.settle(role, score_of(role, seed)) == first, "settling twice gives two surgeries"
    after = role.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(x, after[name]) for name, x in before.items()), "settling changes the model"
    assert role.training == mode and role.num_layers == beginning(surgery, seed).num_layers, "settling leaves the model in another state"
    assert first.settle(role, no_score) == first, "a settled surgery changes when it is settled again"
    again = type(first).model_validate(document.load(yaml.safe_dump(first.model_dump(mode="json")))[0])
    assert again == first, f"settled and read back from YAML it differs: {again!r}, was {first!r}"


@contract
@over_choices
def same_again(surgery: Surgery, seed: int = 0) -> None:
    """On equal models it makes equal students, to the last bit, wherever the stream of the process stands."""
    one = operated(surgery, seed)[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1)
        two = operate(surgery, seed)
    ours, theirs = one.module.state_dict(), two.module.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(x, theirs[name]) for name, x in ours.items()), "two students of one model differ"


@contract
@over_choices
def speaks(surgery: Surgery, seed: int = 0) -> None:
    """The student says what it said before, on the same targets and ids, layer by layer, packed or padded; where claimed, on those of
    its own tokenizer."""
    before, after = operated(surgery, seed)
    now, was = (tuple(logits(role, seed).shape) for role in (after, before))
    if "score" in after.offers:
        was = (len(lists(seed).train),)
    if surgery.retokenizes:
        was = len(after.view(rows(seed).train).targets), after.vocab
        assert after.vocab is not None and after.vocab >= len(after.tokenizer), f"{after.vocab} entries for {len(after.tokenizer)} ids"
    assert now == was, f"logits of shape {now}, expected {was}"
    if isinstance(after, Denoiser):
        return
    blocks = len(after.module.get_submodule(after.anatomy.path("blocks")))  # type: ignore[arg-type]
    assert after.num_layers == blocks == after.anatomy.num_layers(after.module.config), f"{blocks} blocks; the role says {after.num_layers}"
    assert surgery.retokenizes or after.tokenizer is before.tokenizer, "the tokenizer is another one, and retokenizes is not claimed"
    if "score" not in after.offers:
        spoken.packing(after, seed)


@contract
def reduces(surgery: Surgery, seed: int = 0) -> None:
    """Where claimed: fewer parameters, fewer layers, smaller widths."""
    if not surgery.reduces:
        raise NotClaimed("it claims to reduce nothing")
    before, after = operated(surgery, seed)
    unknown = surgery.reduces - {"parameters", "layers", "width"}
    assert not unknown, f"it claims to reduce {', '.join(sorted(unknown))}; known are parameters, layers, width"
    was, now = shapes(before), shapes(after)
    size = {role: sum(p.numel() for p in role.module.parameters()) for role in (before, after)}
    if "parameters" in surgery.reduces:
        assert size[after] < size[before], f"claimed; but {size[after]:,} parameters, before {size[before]:,}"
    if "layers" in surgery.reduces:
        assert after.num_layers < before.num_layers, f"claimed; but {after.num_layers} layers, before {before.num_layers}"
    if "width" in surgery.reduces:
        assert any(name in was and now[name] < was[name] for name in now), "claimed; but no matrix is narrower"


@contract
def keeps_function(surgery: Surgery, seed: int = 0) -> None:
    """Where claimed: the student says at once what the model said."""
    if not surgery.keeps_function:
        raise NotClaimed("keeps_function is not claimed")
    before, after = operated(surgery, seed)
    close(logits(after, seed), logits(before, seed), (1e-5, 1e-5), "claimed; but its logits")


@contract
@over_choices
def reloads(surgery: Surgery, seed: int = 0) -> None:
    """Where its class still fits: saved and loaded by stock transformers, the trained student says the same."""
    if surgery.policy != "stock":
        raise NotClaimed(f"the result is exported as {surgery.policy}")
    after = operated(surgery, seed)[1]
    move(after, seed)
    stock = merged(after)
    close(logits(stock, seed), logits(after, seed), (1e-5, 1e-5), "in a stock class against as it was trained, logits")
    module: Any = stock.module
    with quiet(), tempfile.TemporaryDirectory() as folder:
        module.save_pretrained(folder)
        again, info = type(module).from_pretrained(folder, output_loading_info=True, attn_implementation="eager")
    wrong = {what: sorted(names)[:3] for what, names in info.items() if names and what in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    assert not wrong, f"the config does not fit the weights: {wrong}"
    close(logits(type(after)(again.eval(), after.tokenizer, after.anatomy), seed), logits(stock, seed), (0.0, 0.0), "loaded against in memory")


@contract
@over_choices
def carries(surgery: Surgery, seed: int = 0) -> None:
    """Where code must be carried along: the trained student is written with it, opened by limbeck without running that code, and says the
    same; and each weight is the model's own, or the role says where it comes from."""
    if surgery.policy != "carried":
        raise NotClaimed(f"the result is exported as {surgery.policy}")
    before, after = operated(surgery, seed)
    was, now = before.module.state_dict(), dict(after.module.named_parameters())
    told = [name for name in after.origins if name not in now]
    untold = [name for name, p in now.items() if name not in after.origins and not (name in was and torch.equal(p, was[name]))]
    assert not told, f"the role tells of weights that are not there: {', '.join(told[:3])}"
    assert surgery.follows or not untold, f"nobody says where these come from: {', '.join(untold[:3])}"
    move(after, seed)
    with quiet(), tempfile.TemporaryDirectory() as folder:
        Safetensors()(Parcel(after, Path(folder), {}, ()))
        assert any(Path(folder).glob("*.py")), "no code lies beside the weights"
        again = open_pretrained(f"path:{folder}").module
    assert type(again).__module__.startswith("limbeck."), "the code beside the weights was run"
    close(logits(Text(again.eval(), after.tokenizer, after.anatomy), seed), logits(after, seed), (1e-6, 1e-6), "opened again, logits")


@contract
@over_choices
def learns(surgery: Surgery, seed: int = 0) -> None:
    """Every weight that may learn gets a gradient that is finite and, on the way, not zero; no other one gets any."""
    after = operated(surgery, seed)[1]
    models = Models({"student": after})
    learning = dict(models.trainable("student"))
    for step in range(2):
        with models.turn("student"):
            learning_from(after.eval(), seed).backward()
        if not step:  # what is multiplied by zero at the start, as adapters are, gets a gradient only now
            move(after, seed)
    for name, p in after.module.named_parameters():
        if name not in learning:
            assert p.grad is None, f"{name} gets a gradient, and is not to learn"
            continue
        assert p.grad is not None and p.grad.isfinite().all(), f"{name} gets no finite gradient"
        assert p.grad.any() or name.endswith("bias"), f"the gradient of {name} is zero"


def learning_from(role: Role, seed: int) -> Tensor:
    """A loss on the example rows."""
    if {"score", "velocity"} & role.offers:
        return heard(role, seed).square().sum()
    said = role.says(role.view(rows(seed).train), ("logits", "label"), {})
    return (-log_probs(dense(said["logits"])).gather(-1, said["label"][:, None])).sum()


@contract
@over_choices
def keeps_weights(surgery: Surgery, seed: int = 0) -> None:
    """Where claimed: every weight that was there is there still, the same tensor with the same numbers, and may not learn."""
    if not surgery.keeps_weights:
        raise NotClaimed("keeps_weights is not claimed")
    role = beginning(surgery, seed)
    before = {name: (p, p.clone()) for name, p in role.module.named_parameters()}
    after = surgery(role)
    there, learning = ({id(p) for _, p in named} for named in (after.module.named_parameters(), Models({"student": after}).trainable("student")))
    for name, (p, numbers) in before.items():
        assert id(p) in there and torch.equal(p, numbers), f"claimed; but {name} is gone, or another tensor, or has other numbers"
        assert id(p) not in learning, f"claimed; but {name} may learn"


@contract
@over_choices
def as_planned(surgery: Surgery, seed: int = 0) -> None:
    """On a model without weights its planned form gives the shapes of the real student: plans count these."""
    after = operated(surgery, seed)[1]
    planned = surgery.shape()(copy.deepcopy(beginning(surgery, seed)).to("meta"))
    assert all(p.is_meta for p in planned.module.parameters()), "the planned form makes real weights"
    sizes = [sum(p.numel() for p in role.module.parameters()) for role in (planned, after)]
    assert shapes(planned) == shapes(after), f"planned {sizes[0]:,} parameters, got {sizes[1]:,}; or of other shapes"
