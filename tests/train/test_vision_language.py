"""Training of vision-language models: what a stage freezes stays, to the bit."""

import copy
import hashlib

import pytest
import torch

from limbeck.check.models import GROUPS, described, sighted
from limbeck.model.base import Models
from limbeck.numerics import Streams
from limbeck.recipe import load
from limbeck.train.loop import Loop, World
from limbeck.train.stage import Stage


def hashes(models: Models) -> dict[str, str]:
    return {f"{role}.{name}": hashlib.sha256(x.numpy().tobytes()).hexdigest() for role in models for name, x in models[role].module.state_dict().items()}


@pytest.mark.parametrize("number", [0, 1, 2], ids=["dpt", "sft", "dft"])
def test_a_stage_of_llava_kd_changes_its_own_parts_and_nothing_else(number: int) -> None:
    stage = load("llava_kd", toy=True).train[number]
    pair = sighted()
    models = Models({name: copy.deepcopy(pair[name]) for name in pair})
    for name in models:
        models[name].tokenizer = pair[name].tokenizer
    before = hashes(models)
    turn = {**dict(stage.turn[0]), "batch": GROUPS, "optimiser": {"lr": 1e-2}}
    Loop(Stage(steps=2, turn=({**turn},)), World(models, described(), (), None, {}, Streams(0))).run()  # type: ignore[arg-type, call-arg]
    changed = {name for name, found in hashes(models).items() if found != before[name]}
    parts = {"model.multi_modal_projector"} | ({"model.language_model", "lm_head"} if number else set())
    assert {name.removeprefix("student.") for name in changed} == {
        name for name, _ in models["student"].module.named_parameters() if any(name.startswith(part) for part in parts)
    }


def test_only_the_second_stage_of_llava_kd_has_no_teacher() -> None:
    recipe = load("llava_kd")
    heard = [{seat for o in stage.turn[0].objective for seat in o.needs} for stage in recipe.train]
    assert heard == [{"student", "teacher"}, {"student"}, {"student", "teacher"}]
    assert torch.tensor([o.weight for o in recipe.train[0].turn[0].objective]).tolist() == [1, 1, 1, 0.5]
