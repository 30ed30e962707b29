"""Contracts of objectives over models: how a window is cut, laid out or shared out changes no gradient."""

from typing import Any

import torch
from torch import Tensor

from limbeck.check.contract import NotClaimed, close, contract
from limbeck.check.models import ALONE, GROUPS, SIZES, WIDE, Trial, heard
from limbeck.component import Component, canonical_json
from limbeck.model.base import Models
from limbeck.model.denoiser import MADE, PREDICTIONS
from limbeck.signals import Loss
from limbeck.train.window import count, window

SAME = (1e-6, 1e-9)
"""Relative to the size of the whole gradient. Models of transformers compute norms in float32, whatever they are given."""
LAST: dict[tuple[type, str, int], Trial] = {}
"""The turn that was tried last: contracts of one component follow each other."""


def trial_of(component: Component, seed: int) -> Trial:
    """A turn that uses the component."""
    key = type(component), canonical_json(component), seed
    if key not in LAST:
        LAST.clear()
        LAST[key] = Trial(seed, **uses(component))
    return LAST[key]


def uses(component: Component) -> dict[str, Any]:
    """Fields of a turn in which the component does what it is for."""
    from limbeck.forward.noised import Noised
    from limbeck.forward.rollout import Rollout
    from limbeck.objective.chunk_likelihood import ChunkLikelihood
    from limbeck.objective.denoising import Denoising
    from limbeck.objective.forward_kl import ForwardKL
    from limbeck.objective.hidden_mse import HiddenMSE
    from limbeck.objective.hybrid_l1 import HybridL1
    from limbeck.objective.masked_elbo import MaskedElbo
    from limbeck.objective.sorted_l1 import SortedL1

    if component.room == "objective":
        asked = {name for names in component.needs.values() for name in names}  # type: ignore[attr-defined]
        forward = {"forward": Rollout(rungs=2)} if asked & set(MADE) else {"forward": Noised()} if asked & set(PREDICTIONS) else {}
        return {"objective": (component,), **forward}
    if component.room == "forward" and component.noisy:  # type: ignore[attr-defined]
        return {"forward": component, "objective": (Denoising(signal="denoised", against="teacher"),)}  # type: ignore[call-arg]
    if component.room == "forward":
        objectives = ForwardKL(), HiddenMSE(layers=(1, 2))  # type: ignore[call-arg]
        if "target_weight" in component.requires({"student": ()})["student"]:  # type: ignore[attr-defined]
            objectives = *objectives, MaskedElbo()
        return {"forward": component, "objective": objectives, "width": SIZES["width"]}  # of one width: blocks may hear each other's input
    states = HiddenMSE(signal="chunk_hidden")  # type: ignore[call-arg]
    chunks = ChunkLikelihood(), SortedL1(), HybridL1(), ForwardKL(per="chunk"), states  # type: ignore[call-arg]
    made = [o for o in chunks if not set(component.requires("student", o.needs["student"])) & set(o.needs["student"])]  # type: ignore[attr-defined]
    return {"align": (component,), "objective": (ForwardKL(), HiddenMSE(layers=(0, 1)), *made)}  # type: ignore[call-arg]


def models_of(component: Component, seed: int) -> Models:
    """The models of such a turn."""
    use = uses(component)
    return heard(use["objective"], seed, use.get("width", WIDE))[0]


def same(got: tuple[Tensor, list[Loss]], expected: tuple[Tensor, list[Loss]], what: str) -> None:
    """Equal counts, sums and gradients."""
    counts = [[x.count for x in losses] for _, losses in (got, expected)]
    assert counts[0] == counts[1], f"{what}: counts {counts[0]}, expected {counts[1]}"
    for a, b in zip(got[1], expected[1], strict=True):
        close(a.total, b.total, SAME, f"{what}: the sum")
    close(got[0], expected[0], SAME, f"{what}: the gradient")


def apart(component: Component) -> None:
    """Goes on where the rows of a window can be shared out."""
    if getattr(component, "whole", False):
        raise NotClaimed("it compares rows of the whole window, which must be on one rank")


@contract
def accumulation(component: Component, seed: int = 0) -> None:
    """Cut into 2, 3 and more micro-batches than there are groups, the window gives the gradient it gives in one."""
    trial = trial_of(component, seed)
    for micro in (2, 3, ALONE):
        same(trial.gradients(micro=micro), trial.whole, f"{micro} micro-batches against one")


@contract
def packing(component: Component, seed: int = 0) -> None:
    """Rows padded to one length give the gradient of rows packed end to end, and so does the layout that the role chooses."""
    trial = trial_of(component, seed)
    for layout in ("padded", "auto"):
        same(trial.gradients(layout=layout), trial.whole, f"{layout} against packed")


@contract
def padding(component: Component, seed: int = 0) -> None:
    """How much padding there is does not matter: each group is padded by itself, or all together."""
    apart(component)
    trial = trial_of(component, seed)
    same(trial.gradients(shares=GROUPS, layout="padded"), trial.gradients(layout="padded"), "groups padded by themselves against all together")


@contract
def ranks(component: Component, seed: int = 0) -> None:
    """Shared out to three ranks that know the common counts, the gradients add up to that of one."""
    apart(component)
    trial = trial_of(component, seed)
    same(trial.gradients(shares=3), trial.whole, "three ranks against one")


def tried(component: Component, seed: int) -> tuple[Trial, list[str], dict[str, Tensor]]:
    """A turn whose window was run: names of the parameters that have a gradient, and the state of all roles before."""
    before = {name: x.clone() for name, x in models_of(component, seed).state_dict().items()}
    trial = trial_of(component, seed)
    turn, models = trial.running.turn, trial.models
    with models.turn(turn.trains, turn.only, turn.freeze, turn.through):
        window(trial.running, models, trial.batch, 0, count(turn, trial.batch))
    touched = [name for name, p in models.named_parameters() if p.grad is not None]
    for p in models.parameters():
        p.grad = None
    return trial, touched, before


@contract
def teacher_untouched(component: Component, seed: int = 0) -> None:
    """Only the trained role gets gradients; no role changes its weights or is left in training mode."""
    trial, touched, before = tried(component, seed)
    trained, after = f"{trial.running.turn.trains}.", trial.models.state_dict()
    wrong = [name for name in touched if not name.startswith(trained)]
    assert not wrong, f"gradients of {', '.join(wrong[:3])}: this turn trains {trained[:-1]}"
    moved = [name for name, x in before.items() if name in after and not torch.equal(x, after[name])]
    assert not moved, f"the weights {', '.join(moved[:3])} changed without an optimiser"
    assert all(not trial.models[name].training for name in trial.models), "a role is left in training mode"


@contract
def exports_nothing(component: Component, seed: int = 0) -> None:
    """What it learns stays outside of the roles: a role's state is what is exported."""
    trial, _, before = tried(component, seed)
    changed = {name for name in trial.models.state_dict() if name.split(".")[0] in ("student", "teacher")} ^ before.keys()
    assert not changed, f"a role has gained or lost {', '.join(sorted(changed)[:3])}: it would be exported"
