"""Merges as nodes of a run's graph."""

from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.errors import Failed
from limbeck.merge.arcee_fusion import ArceeFusion
from limbeck.start import run
from toy import at_home, stages, state, toy  # noqa: F401

BRANCHES = [{"name": "a", "start": "student"}, {"name": "b", "start": "student", "objective": ["reverse_kl"]}]


def test_changes_are_taken_from_the_start_and_fusions_stand_one_on_the_other(tmp_path: Path) -> None:
    three = stages(*BRANCHES, {"name": "c", "start": "student", "objective": ["jsd"]})
    merges = [
        {"kind": "task_arithmetic", "name": "sum", "of": ["a", "b"], "scale": 0.5},
        {"kind": "arcee_fusion", "name": "once", "of": ["a", "b"]},
        {"kind": "arcee_fusion", "name": "twice", "of": ["c", "once"]},
        {"kind": "arcee_fusion", "name": "together", "of": ["c", "a", "b"]},
    ]
    folder = run(toy(tmp_path, train=three, merge=merges, result="twice", student={"start": "teacher"})).path
    start, a, b, c = (state(folder, name) for name in ("student", "a", "b", "c"))
    for name, x in state(folder, "sum").items():
        torch.testing.assert_close(x, ((a[name].double() + b[name].double()) / 2).float(), rtol=1e-6, atol=1e-7)
    once, twice, together = (state(folder, name) for name in ("once", "twice", "together"))
    for name in start:
        assert torch.equal(once[name], ArceeFusion()(name, [a[name], b[name]], None))
        assert torch.equal(twice[name], together[name])
    assert any(not torch.equal(once[name], a[name]) for name in a) and any(not torch.equal(twice[name], c[name]) for name in c)


SURGERY = {"surgery": [{"kind": "drop_blocks", "drop": 1, "choose": "uniform"}]}


@pytest.mark.parametrize(
    "surgery, kind, words",
    [
        ((SURGERY, {}), "average", "in b"),
        ((SURGERY, SURGERY), "ties", "in the base"),
    ],
)
def test_students_of_different_builds_are_refused_with_the_first_tensor(tmp_path: Path, surgery: Any, kind: str, words: str) -> None:
    train = stages({"name": "a", "start": "student", **surgery[0]}, {"name": "b", "start": "student", **surgery[1]})
    with pytest.raises(Failed) as caught:
        run(toy(tmp_path, train=train, merge=[{"kind": kind, "of": ["a", "b"]}], student={"start": "teacher"}))
    assert caught.value.slug == "merge" and caught.value.where == "merge.0" and "weight" in caught.value.expected and words in caught.value.got


@pytest.mark.slow
def test_the_recipe_of_three_branches_runs_as_a_toy(tmp_path: Path) -> None:
    folder = run("branch_merge", toy=True).path
    states = {name: state(folder, name) for name in ("science", "math", "code", "mean", "reasoning", "merged")}
    for name, x in states["merged"].items():
        assert torch.equal(x, ArceeFusion()(name, [states[n][name] for n in ("code", "science", "math")], None))


def test_a_star_on_the_way_to_a_change_stands_for_every_stage() -> None:
    from limbeck.recipe import load

    recipe = load("branch_merge", ["train.*.optimiser.lr=0.5", "train.1.steps=7"], toy=True)
    assert [stage.turn[0].optimiser.lr for stage in recipe.train] == [0.5] * 3
    assert [stage.steps for stage in recipe.train] == [3, 7, 3] and [stage.turn[0].batch for stage in recipe.train] == [4] * 3
