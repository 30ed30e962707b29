"""Calibration of the first choice."""

from dataclasses import replace

import pytest
import torch

from limbeck.evaluate.base import Table
from limbeck.evaluate.calibration import Calibration
from limbeck.signals import Row

ROWS = [Row("0", {})]


def table(stated: torch.Tensor, right: torch.Tensor) -> Table:
    zeros = torch.zeros(len(stated), dtype=torch.long)
    return Table(row=zeros, best=1 - right.long(), best_prob=stated, label=zeros)


def test_the_error_is_the_one_worked_out_by_hand(examine):
    # bin 0.6: stated 0.6 and 0.68, one right: 0.5 - 0.64 = -0.14 on half of the targets; bin 0.9: 0.9 and 1, both right: 0.05 on half
    student = table(torch.tensor([0.6, 0.68, 0.9, 1.0]), torch.tensor([1, 0, 1, 1]))
    teacher = table(torch.tensor([0.2]), torch.tensor([0]))
    found = Calibration()(examine(ROWS, tables={"teacher": teacher, "student": student}))
    assert found["student"]["calibration_error"] == pytest.approx(0.5 * 0.14 + 0.5 * 0.05, abs=1e-6)
    assert found["calibration"] == [
        {"stated": 0.25, "teacher": pytest.approx(-0.2)},
        {"stated": 0.65, "student": pytest.approx(-0.14, abs=1e-6)},
        {"stated": 0.95, "student": pytest.approx(0.05, abs=1e-6)},
    ]


def test_the_error_is_that_of_a_plain_loop(examine):
    generator = torch.Generator().manual_seed(0)
    stated, right = torch.rand(500, generator=generator), (torch.rand(500, generator=generator) < 0.4).long()
    error = 0.0
    for i in range(10):
        inside = [(p, r) for p, r in zip(stated.tolist(), right.tolist(), strict=True) if i / 10 <= p < (i + 1) / 10]
        error += len(inside) / 500 * abs(sum(r for _, r in inside) / len(inside) - sum(p for p, _ in inside) / len(inside))
    found = Calibration()(examine(ROWS, tables={"student": table(stated, right)}))
    assert found["student"]["calibration_error"] == pytest.approx(error, abs=1e-6)


def test_a_subject_that_is_right_as_often_as_it_says_has_no_error(examine):
    found = Calibration()(examine(ROWS, tables={"student": table(torch.full((4,), 0.75), torch.tensor([1, 1, 1, 0]))}))
    assert found["student"]["calibration_error"] == 0.0


def test_without_labels_there_is_nothing(examine):
    one = replace(table(torch.tensor([0.5]), torch.tensor([1])), label=None)
    assert Calibration()(examine(ROWS, tables={"student": one})) == {}
