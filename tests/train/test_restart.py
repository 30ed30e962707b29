"""Roles that begin a stage as they were before any training."""

from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.errors import Refused
from limbeck.recipe import load
from limbeck.start import run
from limbeck.store import load_state
from toy import after, at_home, metrics, same  # noqa: F401

MODELS = Path(__file__).parents[2] / "src/limbeck/recipes/models"
STILL = {"groups": [{"match": ["*"], "rate": 0.0}]}


def recipe(restart: list[str], still: bool = True) -> dict[str, Any]:
    """A critic that learns in two stages, in the second of them at a rate of 0, or not."""
    rollout = {"kind": "rollout", "rungs": 2}
    critic = {"trains": "critic", "forward": rollout, "batch": 4, "objective": [{"kind": "denoising", "seats": {"student": "critic"}}]}
    student = {"forward": rollout, "batch": 4, "objective": ["distribution_matching"]}
    turns = [student, critic], [student, {**critic, "optimiser": STILL} if still else critic]
    stages = [{"name": str(i), "steps": 3, "turn": turn, "restart": restart if i else [], "checkpoint": {"every": 1}} for i, turn in enumerate(turns)]
    return {
        "data": [{"kind": "gaussian_mixture", "num": 64}],
        "teacher": f"config:{MODELS / 'point_denoiser.json'}",
        "role": {"critic": {"start": "teacher"}},
        "threads": 1,
        "train": stages,
    }


def roles(folder: Path, node: str) -> dict[str, Any]:
    return load_state(folder / "results/student" / node, "state")["roles"]


@pytest.mark.parametrize("restart", [[], ["critic"]])
def test_a_critic_begins_anew_where_that_is_asked_and_the_student_goes_on(tmp_path: Path, restart: list[str]) -> None:
    run(recipe(restart), name="r", runs=tmp_path)
    begun, first, second = (roles(tmp_path / "r", node) for node in ("student", "0", "1"))
    assert not same(begun["critic"], first["critic"]) and not same(begun["student"], first["student"])
    assert same(second["critic"], begun["critic"] if restart else first["critic"])
    assert same(first["student"], second["student"]) == bool(restart)  # a critic that is the teacher still moves nothing; another does


def test_a_stage_that_was_stopped_goes_on_and_does_not_begin_its_roles_again(tmp_path: Path) -> None:
    run(recipe(["critic"], still=False), name="whole", runs=tmp_path)
    run(recipe(["critic"], still=False), name="parts", runs=tmp_path, stop=after(4))  # three steps of the first stage, one of the second
    assert (tmp_path / "parts/checkpoints/student/1").is_dir()
    run(recipe(["critic"], still=False), name="parts", runs=tmp_path)
    whole, parts = (roles(tmp_path / name, "1") for name in ("whole", "parts"))
    assert same(whole["critic"], parts["critic"]) and same(whole["student"], parts["student"])
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "parts")
    assert all(torch.isfinite(x).all() for x in whole["critic"].values())


@pytest.mark.parametrize("restart, do", [(["student"], "start: student"), (["teacher"], "teacher is as it was"), (["judge"], "judge is as it was")])
def test_a_role_that_nobody_trains_cannot_begin_anew(restart: list[str], do: str) -> None:
    with pytest.raises(Refused, match=do) as told:
        load(recipe(restart))
    assert "train.1.restart" in str(told.value)
