"""A run that has failed is stopped by its own figures, and what is kept is from before."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from limbeck.errors import Failed
from limbeck.start import run
from limbeck.train.alarm import Alarm, Alarmed, Watch
from limbeck.train.stage import Stage
from toy import after, at_home, metrics, toy

__all__ = ["at_home"]


def heard(watch: Watch, values: list[float], start: int = 0) -> int | None:
    """The step at which it sounds."""
    for step, value in enumerate(values, start):
        try:
            watch.hear(step, [{"name": "spread", "sum": value * 3, "count": 3}], "train.0")
        except Alarmed as alarmed:
            return alarmed.step
    return None


@pytest.mark.parametrize(
    "alarm, values, step",
    [
        ({"below": 0.5, "patience": 2}, [1, 0.4, 0.6, 0.4, 0.3, 0.9], 4),  # one figure alone is chance: two in a row
        ({"below": 0.5, "patience": 2}, [1, 0.4, 0.6, 0.4, 0.5, 0.4], None),  # the bound itself is allowed
        ({"above": 2.0, "patience": 1}, [1, 2, 2.1], 2),
        ({"below": 0.5, "of": "start", "patience": 2}, [4, 6, 2.6, 2.4, 2.4], 4),  # the mean of the first two is 5: the bound 2.5
        ({"above": 0.9, "of": "start", "patience": 2}, [4, 6, 4.6, 4.4, 4.6, 4.7], 5),  # it never falls to 4.5 for good
        ({"above": 0.9, "of": "start", "patience": 2, "after": 5}, [4, 6, 4.6, 4.6, 4.6, 4.6, 4.6], 6),
    ],
)
def test_it_sounds_after_so_many_figures_in_a_row_beyond_the_bound(alarm: dict[str, Any], values: list[float], step: int | None) -> None:
    assert heard(Watch(Alarm(metric="spread", **alarm)), values) == step


def test_it_goes_on_from_its_state() -> None:
    alarm = Alarm(metric="spread", below=0.5, of="start", patience=3)
    first, second = Watch(alarm), Watch(alarm)
    assert heard(first, [1, 1, 1, 0.4, 0.4]) is None
    second.load(first.state())
    assert heard(second, [0.4], 5) == 5


def test_a_turn_that_is_not_due_says_nothing_and_a_misspelt_figure_is_named() -> None:
    watch = Watch(Alarm(metric="spread", below=0.5, patience=1))
    watch.hear(3, [{"name": "loss", "sum": 1.0, "count": 1}], "train.0")
    with pytest.raises(Failed, match="one of loss, gradient_norm") as told:
        watch.hear(0, [{"name": "loss", "sum": 1.0, "count": 1}, {"name": "gradient_norm", "sum": 1.0, "count": 1}], "train.0")
    assert told.value.slug == "metric" and told.value.where == "train.0.alarm.metric"


def test_one_bound_is_asked_for() -> None:
    for bounds in ({}, {"below": 1.0, "above": 2.0}):
        with pytest.raises(ValidationError, match="below, or above"):
            Alarm(metric="spread", **bounds)


def fading(folder: Path, stage: dict[str, Any] | None = None, **alarm: Any) -> dict[str, Any]:
    """A figure that falls by itself: the learning rate."""
    watched = {"metric": "learning_rate", "below": 5e-4, "patience": 2, **alarm}
    rate = {"lr": 1e-3, "decay": "linear"}
    return toy(folder, {"steps": 8, "alarm": [watched], "optimiser": rate, "checkpoint": {"every": 1, "keep": 2}, **(stage or {})})


def test_the_run_ends_in_a_sentence_and_the_last_checkpoint_is_from_before(tmp_path: Path) -> None:
    """A rate that falls by an eighth of 1e-3 a step: at 5e-4 in step 4, below it from step 5 on."""
    with pytest.raises(Failed) as told:
        run(fading(tmp_path), name="r", runs=tmp_path)
    assert told.value.slug == "alarm" and told.value.code == 5 and "learning_rate" in told.value.where
    assert told.value.expected == "at least 0.0005" and told.value.got == "0.00025 at step 6, beyond it for 2 figures"
    kept = sorted(path.name for path in (tmp_path / "r").rglob("step-*"))
    assert kept == ["step-00000004", "step-00000005"] and "step-00000005 is from before" in told.value.do  # after step 4, and no later one
    assert max(r["step"] for r in metrics(tmp_path / "r")) == 6  # what it sounded for is in the log


def test_a_stopped_run_remembers_what_its_alarm_has_heard(tmp_path: Path) -> None:
    run(fading(tmp_path), name="r", runs=tmp_path, stop=after(6))  # one figure beyond the bound
    with pytest.raises(Failed, match="at step 6"):
        run(fading(tmp_path), name="r", runs=tmp_path)


def test_without_a_checkpoint_before_it_the_message_says_what_to_change(tmp_path: Path) -> None:
    with pytest.raises(Failed) as told:
        run(fading(tmp_path, {"checkpoint": {"every": 100}}), name="r", runs=tmp_path)
    assert "lower checkpoint.every" in told.value.do


def test_an_alarm_that_does_not_sound_changes_nothing(tmp_path: Path) -> None:
    run(toy(tmp_path), name="without", runs=tmp_path)
    run(toy(tmp_path, {"alarm": [{"metric": "gradient_norm", "below": 0.0}]}), name="with", runs=tmp_path)
    assert metrics(tmp_path / "with") == metrics(tmp_path / "without")


def test_a_held_out_figure_that_nobody_measures_is_refused() -> None:
    stage = {"steps": 2, "objective": ["forward_kl"], "alarm": [{"metric": "held_out.kl", "above": 2.0}]}
    with pytest.raises(ValidationError, match="select says how often"):
        Stage.model_validate(stage)
    Stage.model_validate({**stage, "select": {"every": 1}})
