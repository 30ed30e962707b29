"""A schedule that follows the loss: once an optimiser step, the same however the window is cut, and on after a stop."""

from pathlib import Path
from typing import Any

import pytest

from limbeck.errors import Refused
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


def test_it_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    run(recipe(tmp_path), name="whole", runs=tmp_path)
    run(recipe(tmp_path), name="stopped", runs=tmp_path, stop=after(2))
    assert len(shares(tmp_path / "stopped")) == 2
    run(recipe(tmp_path), name="stopped", runs=tmp_path)
    assert metrics(tmp_path / "stopped") == metrics(tmp_path / "whole")


def test_as_a_learning_rate_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="follows a loss belongs to an objective"):
        run(recipe(tmp_path, optimiser={"lr": {"kind": "adaptive"}}), name="no", runs=tmp_path)
