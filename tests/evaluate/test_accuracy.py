"""Accuracy of classifiers, and what the others measure of them."""

import math

import pytest
import torch
from sklearn.metrics import top_k_accuracy_score

from limbeck.check.evaluate import exam
from limbeck.check.models import classifier, pictures
from limbeck.evaluate._scoring import score
from limbeck.evaluate.accuracy import Accuracy
from limbeck.evaluate.agreement import Agreement
from limbeck.evaluate.base import Table
from limbeck.evaluate.calibration import Calibration
from limbeck.evaluate.perplexity import Perplexity
from limbeck.evaluate.speed import Speed
from limbeck.model.base import Role
from limbeck.numerics import log_probs
from limbeck.signals import Row, dense

ROWS = list(pictures(split="held_out"))


def logits(role: Role) -> torch.Tensor:
    with torch.no_grad():
        return dense(role.says(role.view(ROWS), ("logits",), {})["logits"])


def test_the_best_and_the_five_best_are_counted_as_scikit_learn_does_it() -> None:
    given = exam(says="label")
    found = Accuracy()(given)
    labels = [row.content["label"] for row in given.rows]
    for name in ("teacher", "student"):
        with given.open(name) as role:
            scores = logits(role).numpy()
        assert found[name]["accuracy"] == pytest.approx(top_k_accuracy_score(labels, scores, k=1, labels=range(10)))
        assert found[name]["top5_accuracy"] == pytest.approx(top_k_accuracy_score(labels, scores, k=5, labels=range(10)))


def table(right: list[bool], label: list[int]) -> Table:
    truth = torch.tensor(label)
    best = torch.where(torch.tensor(right), truth, truth + 1)
    return Table(torch.arange(len(label)), best, torch.ones(len(label)), truth, label_rank=(best != truth).long())


def rows(label: list[int]) -> list[Row]:
    return [Row(str(i), {"label": y}, f"class {y}", source=str(i)) for i, y in enumerate(label)]


def test_the_error_is_the_standard_error_of_a_share_and_that_of_a_gap_is_paired(examine) -> None:
    label = [0] * 20
    one, other = [True] * 15 + [False] * 5, [True] * 12 + [False] * 8
    found = Accuracy()(examine(rows(label), tables={"start": table(other, label), "student": table(one, label)}))
    assert found["student"]["accuracy"] == 0.75 and "top5_accuracy" not in found["student"]  # one class: five best say nothing
    assert found["student"]["accuracy_error"] == pytest.approx(math.sqrt(0.75 * 0.25 / 19))  # by hand: p (1 - p) / (n - 1)
    gap = found["accuracy_gaps"]["start"]
    assert gap["accuracy"] == pytest.approx(0.15) and gap["accuracy_error"] == pytest.approx(math.sqrt(0.15 * 0.85 / 19))


def test_the_weakest_class_comes_first_by_its_name_and_small_classes_are_left_out(examine) -> None:
    label = [0] * 10 + [1] * 10 + [2] * 3
    found = Accuracy()(examine(rows(label), tables={"student": table([True] * 10 + [True] * 6 + [False] * 7, label)}))
    assert [(one["name"], one["student"]) for one in found["classes"]] == [("class 1", 0.6), ("class 0", 1.0)]


def test_of_text_it_measures_nothing() -> None:
    assert Accuracy()(exam()) == {}


def test_agreement_calibration_and_speed_work_for_classifiers() -> None:
    given = exam(says="label")
    found = Agreement(worst=5)(given)
    with given.open("teacher") as teacher, given.open("student") as student:
        p, q = (log_probs(logits(role)).double() for role in (teacher, student))
    assert found["student"]["kl"] == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-4)
    assert found["student"]["top1"] == pytest.approx(float((p.argmax(-1) == q.argmax(-1)).double().mean())) and found["worst_tokens"] == []
    assert 0 <= Calibration()(given)["student"]["calibration_error"] <= 1
    figures = Speed(repeats=2)(given)
    assert figures["student"]["forward_rows_per_second"] > 0 and figures["decode_by_context"] == []
    assert Perplexity()(given)["student"]["perplexity"] > 1


def test_rows_without_a_class_have_no_accuracy() -> None:
    bare = [Row(row.key, {"pixels": row.content["pixels"]}) for row in ROWS[:4]]
    found = score(classifier(), bare, None)
    assert found.label is None and found.label_rank is None
