"""A schedule that follows the loss: once an optimiser step, the same however the window is cut, and on after a stop."""

from pathlib import Path
from typing import Any

import pytest

from limbeck.errors import Refused
from limbeck.schedule.adaptive import Adaptive
from limbeck.start import run
from toy import after, at_home, metrics, toy

__all__ = ["at_home"]
MOVING = {"kind": "moving_target", "share": {"kind": "adaptive", "start": 0.1, "steps": 400, "rate": 0.5, "momentum": 0.5}}


def shares(folder: Path) -> list[float]:
    return [r["sum"] for r in metrics(folder) if r["name"] == "moving_target.share"]


def recipe(folder: Path, **stage: Any) -> dict[str, Any]:
    return toy(folder, {"objective": [MOVING], **stage})


def test_it_hears_each_step_once_however_the_window_is_cut(tmp_path: Path) -> None:
    run(recipe(tmp_path), name="whole", runs=tmp_path)
    run(recipe(tmp_path, micro=2), name="cut", runs=tmp_path)
    whole = shares(tmp_path / "whole")
    assert len(whole) == 4 and whole == sorted(whole) and whole[-1] > 0.3
    assert shares(tmp_path / "cut") == pytest.approx(whole, rel=1e-6)
    losses = [(r["sum"], r["count"]) for r in metrics(tmp_path / "whole") if r["name"] == "moving_target"]
    assert len({count for _, count in losses}) > 1, "windows of one size would not tell a mean from a sum"
    assert whole == pytest.approx(heard([total / count for total, count in losses]), rel=1e-12)
    assert whole != pytest.approx(heard([total for total, _ in losses]), rel=1e-6)


def heard(losses: list[float]) -> list[float]:
    """The share after each step, by the recurrence itself."""
    schedule, out = Adaptive(**{name: value for name, value in MOVING["share"].items() if name != "kind"}), []
    memory = schedule.begin()
    for step, loss in enumerate(losses):
        schedule.follow(memory, step, loss)
        out.append(schedule.value(step + 1, memory))
    return out


def test_looking_at_held_out_text_moves_nothing(tmp_path: Path) -> None:
    """The published code also takes the losses of its validation for progress."""
    run(recipe(tmp_path), name="blind", runs=tmp_path)
    run(recipe(tmp_path, select={"every": 1, "metric": "kl"}), name="looks", runs=tmp_path)
    looks = [r for r in metrics(tmp_path / "looks") if r["name"] == "held_out.kl"]
    assert len(looks) == 4 and shares(tmp_path / "looks") == shares(tmp_path / "blind")


def test_it_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    run(recipe(tmp_path), name="whole", runs=tmp_path)
    run(recipe(tmp_path), name="stopped", runs=tmp_path, stop=after(2))
    assert len(shares(tmp_path / "stopped")) == 2
    run(recipe(tmp_path), name="stopped", runs=tmp_path)
    assert metrics(tmp_path / "stopped") == metrics(tmp_path / "whole")


def test_as_a_learning_rate_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="follows a loss belongs to an objective"):
        run(recipe(tmp_path, optimiser={"lr": {"kind": "adaptive"}}), name="no", runs=tmp_path)


def test_a_gap_that_was_noted_in_the_first_window_is_there_after_a_stop_and_however_the_window_is_cut(tmp_path: Path) -> None:
    def skewed(**stage: Any) -> dict[str, Any]:
        objective = {"kind": "skew_reverse_kl", "alpha": 0.9, "adaptive": True, "per": "row", **stage.pop("objective", {})}
        rate = {"optimiser": {"lr": 0.02}}
        ahead = {"objective": ["cross_entropy"], "steps": 4, "batch": 4, **rate}  # it finds the text likelier than the teacher does
        return toy(tmp_path, train=[ahead, {"objective": [objective], "steps": 6, "batch": 4, "checkpoint": {"every": 1}, **rate, **stage}])

    run(skewed(), name="whole", runs=tmp_path)
    run(skewed(), name="stopped", runs=tmp_path, stop=after(7))
    run(skewed(), name="stopped", runs=tmp_path)
    run(skewed(micro=2), name="cut", runs=tmp_path)
    run(skewed(objective={"adaptive": False}), name="fixed", runs=tmp_path)
    whole, cut, fixed = ([r["sum"] for r in metrics(tmp_path / name) if r["name"] == "skew_reverse_kl"] for name in ("whole", "cut", "fixed"))
    assert metrics(tmp_path / "stopped") == metrics(tmp_path / "whole")
    assert cut == pytest.approx(whole, rel=1e-3)
    assert fixed[0] == pytest.approx(whole[0], rel=1e-3) and fixed[-1] < 0.9 * whole[-1]  # as the gap closes, the mixture holds less of the student
