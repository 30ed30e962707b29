"""Accuracy of pitch: by hand, and as mir_eval has it."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mir_eval
import numpy as np
import pytest
import torch

from limbeck.check.models import hearing_model, pitch_tracker
from limbeck.evaluate.base import Exam
from limbeck.evaluate.pitch import Pitch, folded
from limbeck.model.base import Role
from limbeck.model.pitch import Pitch as PitchRole
from limbeck.model.pitch_scale import FIRST
from limbeck.signals import Row, View

DRAW = np.random.default_rng(0)


class Told(PitchRole):
    """Says a pitch that it was told, frame by frame."""

    def __init__(self, bins: dict[str, list[int]], rows: list[Row]):
        super().__init__(pitch_tracker().module)  # type: ignore[arg-type]
        self.bins = {id(row.content["wave"]): bins[row.key] for row in rows}
        self.order: list[int] = []

    def view(self, rows: Any) -> View:
        self.order = [b for row in rows for b in self.bins[id(row.content["wave"])]]
        return super().view(rows)

    def says(self, view: View, names: Any, inject: Any) -> dict[str, Any]:
        logits = torch.full((len(self.order), 360), -40.0, dtype=torch.float64)
        logits[torch.arange(len(self.order)), torch.tensor(self.order)] = 5.0
        return {"logits": logits}


def exam(rows: list[Row], **roles: Role) -> Exam:
    @contextmanager
    def open_(name: str) -> Iterator[Role]:
        yield roles[name]

    return Exam(rows, tuple(roles), open_, lambda _: pytest.fail("no table is needed"))


def clip(key: str, hertz: list[float]) -> Row:
    return Row(key, {"wave": torch.zeros(160 * (len(hertz) - 1) + 1), "rate": 16_000, "pitch": torch.tensor(hertz)}, split="held_out")


def hertz(number: float) -> float:
    return 10 * 2 ** ((FIRST + 20 * number) / 1200)


def test_frames_with_a_pitch_count_within_50_cents_and_up_to_octaves() -> None:
    rows = [clip("a", [hertz(100), hertz(100), hertz(100), 0.0]), clip("b", [hertz(200), hertz(200), hertz(200), hertz(200)])]
    told = {"a": [100, 102, 103, 300], "b": [260, 140, 143, 229]}  # 0, 40 and 60 cents off; octaves above and below, one 60 cents off; half an octave
    found = Pitch()(exam(rows, student=Told(told, rows)))
    assert found["student"]["pitch_accuracy"] == pytest.approx(2 / 7) and found["student"]["chroma_accuracy"] == pytest.approx(4 / 7)
    assert found["student"]["pitch_gap"] == pytest.approx(20, abs=1e-3) and found["pitch"] == {"clips": 2, "frames": 7, "within": 50.0}
    sums = np.array([2 - 3 * 2 / 7, 0 - 4 * 2 / 7])  # errors are over clips, of which one has three such frames and one four
    assert found["student"]["pitch_accuracy_error"] == pytest.approx(math.sqrt(2 / 1 * (sums**2).sum()) / 7)
    assert Pitch(within=70)(exam(rows, student=Told(told, rows)))["student"]["chroma_accuracy"] == pytest.approx(6 / 7)
    assert list(found["student"]["metrics"]) == ["pitches within 50 cents", "pitch classes within 50 cents"]


def test_both_figures_are_those_of_mir_eval() -> None:
    rows, told = [], {}
    for i in range(6):
        true = DRAW.uniform(20, 340, 40)
        off = DRAW.choice([0, 60, -60, 120], 40) + DRAW.normal(0, 3, 40)
        told[str(i)] = np.clip(np.round(true + off), 5, 354).astype(int).tolist()
        rows.append(clip(str(i), [hertz(x) if DRAW.uniform() < 0.8 else 0.0 for x in true]))
    found = Pitch()(exam(rows, student=Told(told, rows)))["student"]
    reference = np.concatenate([row.content["pitch"].double().numpy() for row in rows])
    said = np.array([hertz(x) for row in rows for x in told[row.key]])
    cents = [mir_eval.melody.hz2cents(x) for x in (reference, said)]
    theirs = (reference > 0).astype(float), cents[0], np.ones(len(said)), cents[1]
    assert 0.1 < found["pitch_accuracy"] < found["chroma_accuracy"] < 0.9
    assert found["pitch_accuracy"] == pytest.approx(mir_eval.melody.raw_pitch_accuracy(*theirs))
    assert found["chroma_accuracy"] == pytest.approx(mir_eval.melody.raw_chroma_accuracy(*theirs))


def test_the_student_is_held_against_each_other_subject_clip_by_clip() -> None:
    rows = [clip("a", [hertz(100)] * 2), clip("b", [hertz(200)] * 2)]
    student, teacher = Told({"a": [100, 100], "b": [200, 230]}, rows), Told({"a": [100, 130], "b": [200, 230]}, rows)
    found = Pitch()(exam(rows, teacher=teacher, student=student))
    assert found["gaps"]["teacher"]["pitches within 50 cents"] == pytest.approx(25)
    assert found["gaps"]["teacher"]["pitches within 50 cents_error"] == pytest.approx(100 * math.sqrt(2 * (0.5**2 + 0.5**2)) / 4)


def test_rows_without_a_pitch_and_subjects_that_tell_none_are_left_out() -> None:
    silent = clip("a", [0.0, 0.0])
    assert Pitch()(exam([silent], student=pitch_tracker())) == {}
    rows = [clip("b", [hertz(50)] * 3)]
    found = Pitch()(exam(rows, teacher=hearing_model(), student=pitch_tracker()))
    assert set(found) == {"student", "pitch"}


def test_octaves_are_taken_off_to_the_nearest() -> None:
    assert folded(torch.tensor([0.0, 1200.0, -1200.0, 1190.0, -2380.0, 610.0])).tolist() == [0, 0, 0, -10, 20, -590]
