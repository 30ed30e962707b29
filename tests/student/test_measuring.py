"""Surgeries that measure: how often is foretold, each measurement is told, and a stop is heard between two of them."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from limbeck.block.gated_delta_net import GatedDeltaNet
from limbeck.check.models import fresh
from limbeck.errors import Refused
from limbeck.model.base import Role
from limbeck.planning import plan
from limbeck.start import resume, run
from limbeck.store import read_json
from limbeck.student.base import Surgery
from limbeck.student.drop_blocks import DropBlocks
from limbeck.student.keep_width import KeepWidth
from limbeck.student.linearize import Linearize
from limbeck.student.quantize import Quantize
from limbeck.student.restore_attention import RestoreAttention
from limbeck.terminal import Progress
from toy import after, at_home, same, state, toy  # noqa: F401


class Heard:
    """Keeps what a run tells of measuring, and asks for a stop once so many students were measured."""

    def __init__(self, until: int = 1 << 30):
        self.bars: list[tuple[int, int, str]] = []
        self.until = until

    def done(self, step: str, text: str, seconds: float) -> None: ...

    def bar(self, step: str, done: int, total: int, text: str) -> None:
        if step == "measure":
            self.bars.append((done, total, text))

    def stop(self) -> bool:
        return bool(self.bars) and self.bars[-1][0] >= self.until


class Counting:
    """A score, each worse than the one before, that candidates may learn for."""

    measured = 0

    def __call__(self, role: Role) -> float:
        self.measured += 1
        return float(self.measured)

    def learn(self, role: Role, steps: int) -> None: ...


@pytest.mark.parametrize(
    "surgery, by_hand",
    [
        (DropBlocks(drop=2), 0),
        (DropBlocks(keep=(0, 1)), 0),
        (DropBlocks(drop=2, choose="influence"), 4),
        (DropBlocks(drop=2, choose="greedy"), 4 + 3),
        (DropBlocks(drop=3, choose="greedy"), 4 + 3 + 2),
        (DropBlocks(drop=2, choose="contiguous"), 3),
        (RestoreAttention(num=2, choose="restore_one"), 4),
        (RestoreAttention(num=2, choose="greedy"), 4 + 3),
        (RestoreAttention(num=2, choose="supervised", steps=3), 4),
        (RestoreAttention(num=2, choose="uniform"), 0),
        (RestoreAttention(num=2, choose="random"), 0),
        (KeepWidth(heads=2), 0),
        (KeepWidth(heads=2, choose="influence"), 4 * 4),
        (KeepWidth(kv_heads=1, choose="influence"), 4 * 4),
        (KeepWidth(mlp=0.5, choose="influence"), 4 * 16),
        (KeepWidth(choose="influence"), 4 * 16),
        (KeepWidth(heads=2, mlp=0.5, width=0.5, choose="influence"), 4 * 4 + 4 * 16),
        (Quantize(), 0),
        (Quantize(weights="nvfp4", activations="nvfp4"), 1),
    ],
    ids=lambda value: str(value),
)
def test_as_many_students_are_measured_as_was_foretold(surgery: Surgery, by_hand: int) -> None:
    begun, role = fresh(), fresh()
    if isinstance(surgery, RestoreAttention):
        role = Linearize(mixer=GatedDeltaNet())(role)
    assert (role.num_layers, role.module.config.num_attention_heads) == (4, 4)
    surgery.settle(role, score := Counting())
    assert score.measured == surgery.measures(begun) == by_hand


def test_more_blocks_than_there_are_cannot_be_counted() -> None:
    for surgery in (DropBlocks(drop=4, choose="greedy"), DropBlocks(drop=6, choose="contiguous"), RestoreAttention(num=5)):
        with pytest.raises(Refused):
            surgery.measures(fresh())


SURGERY = {"student": {"start": "teacher", "surgery": [{"kind": "drop_blocks", "drop": 2, "choose": "greedy"}]}}
STAGE = {"name": "main", "steps": 2, "batch": 2, "objective": ["forward_kl"]}
OF_A_STAGE = {"student": {"start": "teacher"}, "train": [{**STAGE, "surgery": SURGERY["student"]["surgery"]}]}


@pytest.mark.parametrize("how", [SURGERY, OF_A_STAGE], ids=["student", "stage"])
def test_a_run_tells_each_measurement_and_a_stop_between_two_ends_the_same(how: dict[str, Any], tmp_path: Path) -> None:
    recipe = toy(tmp_path, **how)
    told = Heard()
    undisturbed = run(recipe, runs=tmp_path / "one", tell=told)
    assert [num for num, _, _ in told.bars] == list(range(7)), "told before each of 4 + 3"
    assert {total for _, total, _ in told.bars} == {0}
    assert [text.startswith("students; the last: KL ") for _, _, text in told.bars] == [False] + [True] * 6
    stopped = run(recipe, runs=tmp_path / "two", tell=(early := Heard(until=3)), stop=early.stop)
    assert not stopped.finished and early.bars[-1][0] == 3, "it was not measured to the end"
    done = resume(stopped.path)
    assert same(state(done.path), state(undisturbed.path))


@pytest.mark.parametrize("damaged", [False, True])
def test_what_a_stage_has_measured_is_kept_while_it_is_stopped(damaged: bool, tmp_path: Path) -> None:
    recipe = toy(tmp_path, student={"start": "teacher"}, train=[{**OF_A_STAGE["train"][0], "checkpoint": {"every": 1}}])
    undisturbed = run(recipe, runs=tmp_path / "one")
    stopped = run(recipe, runs=tmp_path / "two", tell=(first := Heard()), stop=after(1))
    assert not stopped.finished and len(first.bars) == 7
    again = Heard()
    if damaged:
        (kept,) = stopped.path.rglob("settled/surgery.json")
        kept.write_bytes(kept.read_bytes()[:-9])
    done = resume(stopped.path, tell=again)
    assert len(again.bars) == (7 if damaged else 0) and done.finished
    assert same(state(done.path), state(undisturbed.path))


def test_each_surgery_of_a_stage_measures_what_the_one_before_has_left(tmp_path: Path) -> None:
    one = {"kind": "drop_blocks", "drop": 1, "choose": "influence"}
    both = run(toy(tmp_path, student={"start": "teacher"}, train=[{**STAGE, "surgery": [one, one]}]), runs=tmp_path / "both", tell=(told := Heard()))
    first, second = read_json(both.path / "results" / "student" / "main" / "surgery.json")
    assert len(first["keep"]) == 3 and len(second["keep"]) == 2 and len(told.bars) == 4 + 3
    of_the_start = run(toy(tmp_path, student={"start": "teacher", "surgery": [one, one]}), runs=tmp_path / "start")
    assert [s["keep"] for s in read_json(of_the_start.path / "steps" / "student.json")["student"]] == [first["keep"], second["keep"]]


def test_a_search_tells_its_own_progress_alone(tmp_path: Path) -> None:
    words = ["train.0.steps=1", "baseline=[]", "evaluate=[agreement]", "export=[]", "search.steps=0"]
    assert run("puzzle", *words, toy=True, runs=tmp_path, tell=(told := Heard())).finished
    assert told.bars == []


def test_steps_that_fit_into_minutes_leave_room_for_what_stages_measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limbeck.job.time", SimpleNamespace(time=lambda: 0.0, perf_counter=lambda: 0.0))  # all but looks takes no time
    monkeypatch.setattr("limbeck.examine.Examiner.seconds_a_target", lambda self, subject: 1.0)
    left: list[float] = []
    monkeypatch.setattr("limbeck.job.affordable", lambda seconds, a_step: left.append(seconds) or 8)
    auto = {"minutes": 600, "student": {"start": "teacher"}, "evaluate": ["agreement"]}
    runs = [
        run(toy(tmp_path, **auto, train=[{**STAGE, "steps": "auto", "surgery": how}]), runs=tmp_path / f"{i}")
        for i, how in enumerate(([], OF_A_STAGE["train"][0]["surgery"]))
    ]
    (rows,) = {int(num) for one in runs for num in re.findall(r"([\d,]+) held out", (one.path / "plan.txt").read_text())}
    assert left[0] - left[1] == pytest.approx((4 + 3) * 16 * runs[0].summary["held_out_targets"] / rows)


def test_a_plan_counts_what_surgeries_of_the_student_and_of_stages_measure(tmp_path: Path) -> None:
    twice = {**SURGERY, "train": [{**STAGE, "repeat": 2, "surgery": [{"kind": "drop_blocks", "choose": "contiguous"}]}]}
    lines = {line.step: line for line in plan(toy(tmp_path, **twice), probe=False).steps}
    assert lines["measure"].what == "at most 15 x 16 rows"  # 4 + 3, and twice 4 - 1 + 1, as if no block had gone before
    assert lines["measure"].seconds > 0
    assert "measure" not in {line.step for line in plan(toy(tmp_path), probe=False).steps}


def test_without_a_total_neither_a_bar_nor_a_time_left_is_shown(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr("limbeck.terminal.PLAIN_SECONDS", 0.0)
    progress = Progress()
    for num in range(5):
        progress.bar("measure", num, 0, "students")
    shown = capfd.readouterr().err
    assert "measure    4 students" in shown and "left" not in shown and "/" not in shown
    monkeypatch.setenv("FORCE_COLOR", "1")
    progress = Progress()
    assert progress.live
    progress.bar("measure", 7, 0, "students")
    progress.bar("train", 7, 14, "kl 1")
    shown = capfd.readouterr().err.split("\x1b[2K")
    assert "7 students" in shown[1] and "━" not in shown[1]
    assert shown[2].count("━") == shown[2].count("─") == 12
