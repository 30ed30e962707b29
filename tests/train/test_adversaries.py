"""Runs in which roles learn against each other notice that they have failed: the alarms of a shipped recipe, on points."""

from pathlib import Path
from typing import Any

import pytest

from limbeck.errors import Failed
from limbeck.recipe import load
from limbeck.start import run
from toy import at_home, metrics  # noqa: F401

MODELS = Path(__file__).parents[2] / "src/limbeck/recipes/models"
PLAIN = {"forward": {"kind": "rollout", "rungs": 2}}
"""Without guidance, and to the end."""
STILL = {"groups": [{"match": ["*"], "rate": 0.0}]}


def recipe(student: dict[str, Any], critic: dict[str, Any], steps: int, checkpoint: int, metric: str = "") -> dict[str, Any]:
    """The first phase of the recipe, with its alarms (or that of a metric), on a small network; `student` and `critic` change the turns."""
    stage = load("phased_dmd", toy=True).train[0].model_dump(mode="json")
    heard, taught = stage["turn"]
    turns = [{**heard, **critic}, {**taught, "only": [], "every": 1, **student}]
    stage |= {"steps": steps, "checkpoint": {"every": checkpoint, "keep": 1}, "turn": turns}
    stage["alarm"] = [alarm for alarm in stage["alarm"] if metric in alarm["metric"]]
    return {
        "data": [{"kind": "gaussian_mixture", "num": 64}],
        "teacher": f"config:{MODELS / 'point_denoiser.json'}",
        "student": {"start": "teacher"},
        "role": {"critic": {"start": "teacher"}},
        "threads": 1,
        "train": [stage],
    }


def stopped(folder: Path, *changes: Any) -> tuple[Failed, list[float], str]:
    """What a run ends with, the figures of the metric that it names, and the checkpoint that is left."""
    with pytest.raises(Failed) as told:
        run(recipe(*changes), name="r", runs=folder)
    assert told.value.slug == "alarm" and told.value.code == 5
    name = told.value.where.split()[-1]
    figures = [r["sum"] / r["count"] for r in metrics(folder / "r") if r["name"] == name]
    left = [path.name for path in (folder / "r").rglob("step-*")]
    return told.value, figures, left[0] if left else ""


def test_samples_that_become_alike_end_the_run_with_a_checkpoint_from_before(tmp_path: Path) -> None:
    together = {"objective": [{"kind": "spread", "weight": 1.0}], "optimiser": {"lr": 3.0e-2}}
    told, figures, left = stopped(tmp_path, {**together, **PLAIN}, PLAIN, 60, 1)
    start = sum(figures[:10]) / 10
    beyond = [step for step, value in enumerate(figures[10:], 10) if value < start / 4]
    assert "1.spread" in told.where and beyond[-10:] == list(range(len(figures) - 10, len(figures)))
    assert left == f"step-{len(figures) - 10:08d}" and f"{left} is from before" in told.do


def test_a_critic_that_never_learns_ends_the_run(tmp_path: Path) -> None:
    """Nothing holds the student back then: it leaves what the critic knows, whose error grows without end."""
    told, figures, left = stopped(tmp_path, {"optimiser": {"lr": 3.0e-3}}, {"optimiser": STILL}, 60, 100, "0.denoising")
    start = sum(figures[:20]) / 20
    assert "0.denoising" in told.where and min(figures[-20:]) > 4 * start and len(figures) < 60
    assert not left and "lower checkpoint.every" in told.do


def test_a_student_that_runs_away_at_once_ends_the_run(tmp_path: Path) -> None:
    """Samples that are scaled to a variance of about 1 cannot have one of 4, whatever it was at the start."""
    told, figures, _ = stopped(tmp_path, {"optimiser": {"lr": 3.0e-2}}, {}, 60, 100)
    assert "1.spread" in told.where and told.expected == "at most 4" and min(figures[-10:]) > 4


def test_a_critic_that_is_the_teacher_still_gives_no_gradient_which_ends_the_run(tmp_path: Path) -> None:
    told, figures, _ = stopped(tmp_path, PLAIN, {"optimiser": STILL, **PLAIN}, 20, 100)
    assert "1.gradient_norm" in told.where and figures == [0.0] * 10


def test_a_healthy_phase_is_let_run(tmp_path: Path) -> None:
    run(recipe({}, {}, 25, 100), name="r", runs=tmp_path)
    assert len([r for r in metrics(tmp_path / "r") if r["name"] == "1.spread"]) == 25
