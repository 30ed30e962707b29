"""Contracts of alignments: what they settle, and what they lay side by side."""

import torch
import yaml

from limbeck.align.base import Align, Aligned
from limbeck.check.contract import close, contract
from limbeck.check.models import pair
from limbeck.check.window import accumulation, packing, padding, ranks, trial_of
from limbeck.model.base import Models
from limbeck.signals import dense
from limbeck.text import document
from limbeck.train.settle import settle
from limbeck.train.window import indexed

CONTRACTS = (accumulation, packing, padding, ranks)
"""Those that it shares with objectives."""


def exercise(align: Align) -> None:
    """One ordinary use."""
    trial_of(align, 0).whole  # noqa: B018


@contract
def settles(align: Align, seed: int = 0) -> None:
    """Settled against the same models it is the same, also when settled again, and survives YAML: the run keeps that form."""
    models = pair(seed)
    settled = align.settle(models)
    assert settled == align.settle(models), "settling twice gives two alignments"
    assert settled.settle(models) == settled, "a settled alignment changes when it is settled again"
    again = type(settled).model_validate(document.load(yaml.safe_dump(settled.model_dump(mode="json")))[0])
    assert again == settled, f"settled and read back from YAML it differs: {again!r}, was {settled!r}"


@contract
def same_model(align: Align, seed: int = 0) -> None:
    """Between a model and itself, both sides say the same, unit by unit."""
    trial = trial_of(align, seed)
    student = trial.models["student"]
    models = Models({"student": student, "teacher": student})
    settled = settle(trial.running.turn, (), models, "check")
    batch = indexed(models.batch(trial.world.rows.train), models, settled.align, settled.needs)
    listen = Aligned(models, settled.align)
    with torch.no_grad():
        ours, theirs = (listen.says(role, batch, settled.needs[role]) for role in ("student", "teacher"))
    for name in settled.needs["teacher"]:
        close(dense(ours[name]), dense(theirs[name]), (0.0, 0.0), f"{name} of a model beside itself")


@contract
def keeps_rows(align: Align, seed: int = 0) -> None:
    """Indexing keeps rows, keys, tags and groups, and what was there to be seen."""
    trial = trial_of(align, seed)
    before = trial.models.batch(trial.world.rows.train)
    after = indexed(before, trial.models, (align.settle(trial.models),), {})
    assert (after.keys, after.tags) == (before.keys, before.tags) and torch.equal(after.group, before.group), "rows, tags or groups changed"
    for role, view in before.views.items():
        for name, x in view.inputs.items():
            assert torch.equal(after.view(role).inputs[name], x), f"{name} of {role} changed"
