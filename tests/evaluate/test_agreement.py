"""Agreement: figures, where subjects differ, and what they say there."""

import math

import pytest
import torch
from pydantic import ValidationError

from limbeck.evaluate.agreement import Agreement
from limbeck.evaluate.base import Table
from limbeck.signals import Row


def table(agrees: list[int], row: list[int], certain: list[float] | None = None, kl: list[float] | None = None) -> Table:
    num = len(agrees)
    return Table(
        row=torch.tensor(row),
        best=1 - torch.tensor(agrees),
        best_prob=torch.full((num,), 0.5),
        label=torch.zeros(num, dtype=torch.long),
        label_logprob=torch.zeros(num),
        teacher_best=torch.zeros(num, dtype=torch.long),
        teacher_best_prob=torch.tensor(certain or [0.5] * num),
        kl=torch.tensor(kl or [0.0] * num),
    )


def test_figures_are_means_over_targets_with_errors_over_documents(examine):
    rows = [Row("0", {}, source="a"), Row("1", {}, source="b")]
    exam = examine(rows, tables={"student": table([1, 0, 1, 1], [0, 0, 1, 1], kl=[1.0, 3.0, 0.0, 0.0])})
    found = Agreement()(exam)["student"]
    # agreement: sums 1 and 2 of 2 targets each, R = 3/4, residuals -1/2 and 1/2: sqrt(2 * 1/2) / 4. KL: 4 and 0, R = 1, residuals 2 and -2
    assert found == {"kl": 1.0, "kl_error": pytest.approx(math.sqrt(2 * 8) / 4), "top1": 0.75, "top1_error": pytest.approx(0.25)}


def test_agreement_is_shown_by_the_teachers_certainty(examine):
    certain = [0.05, 0.55, 0.52, 1.0]
    agrees = {"teacher": [1, 1, 1, 1], "student": [0, 1, 0, 1], "text_only": [0, 0, 0, 1]}
    tables = {name: table(each, [0] * 4, certain) for name, each in agrees.items()}
    found = Agreement()(examine([Row("0", {})], tables=tables))
    assert found["by_certainty"] == [
        {"low": 0.0, "high": 0.1, "share": 0.25, "student": 0.0, "text_only": 0.0},
        {"low": 0.5, "high": 0.6, "share": 0.5, "student": 0.5, "text_only": 0.0},
        {"low": 0.9, "high": 1.0, "share": 0.25, "student": 1.0, "text_only": 1.0},
    ]


def sliced() -> tuple[list[Row], Table]:
    """60 targets of prose in two documents, half of them agreed; 60 of code, a third; 49 of verse, none; one of a fourth kind."""
    rows = [
        Row("0", {}, tag="prose", source="a"),
        Row("1", {}, tag="prose", source="b"),
        Row("2", {}, tag="code", source="c"),
        Row("3", {}, tag="verse", source="d"),
        Row("4", {}, tag="rare", source="e"),
    ]
    agrees = [1] * 20 + [0] * 10 + [1] * 10 + [0] * 20 + [1] * 20 + [0] * 40 + [0] * 49 + [0]
    return rows, table(agrees, [0] * 30 + [1] * 30 + [2] * 60 + [3] * 49 + [4])


def test_agreement_is_shown_by_kind_of_text(examine):
    rows, one = sliced()
    found = Agreement()(examine(rows, tables={"student": one, "text_only": one}))
    prose, code = found["slices"]
    # prose: sums 20 and 10 of 30 each: R = 1/2, residuals 5 and -5: sqrt(2 * 50) / 60
    error = math.sqrt(2 * 50) / 60
    assert prose == {
        "name": "prose",
        "share": 60 / 170,
        "student": 0.5,
        "text_only": 0.5,
        "error": pytest.approx(error),
        "half_width": pytest.approx(1.96 * error),
    }
    assert code["name"] == "code" and code["student"] == pytest.approx(1 / 3) and code["error"] is None  # one document


def test_the_weakest_slice_has_enough_targets_to_say_so(examine):
    rows, one = sliced()
    found = Agreement()(examine(rows, tables={"student": one}))
    assert found["weakest"]["name"] == "code"  # not verse, none of whose 49 targets is agreed
    assert "weakest" not in Agreement(slices=0)(examine(rows, tables={"student": one}))


def test_a_slice_below_one_percent_is_not_shown(examine):
    rows = [Row("0", {}, tag="many"), Row("1", {}, tag="few")]
    shown = {
        num: [x["name"] for x in Agreement()(examine(rows, tables={"student": table([1] * (6000 + num), [0] * 6000 + [1] * num)}))["slices"]]
        for num in (60, 61)
    }
    assert shown == {60: ["many"], 61: ["many", "few"]}


def test_the_most_frequent_slices_are_shown(examine):
    rows, one = sliced()
    assert [x["name"] for x in Agreement(slices=1)(examine(rows, tables={"student": one}))["slices"]] == ["prose"]


def test_without_tags_the_kind_of_text_is_found(examine, speaker):
    rows = [
        Row("0", {"text": "It was the best of times, it was the worst of times, it was the age of wisdom."}),
        Row("1", {"text": "def f(x):\n    return x ** 2\n\nprint(f(3))\nfor i in y:\n    print(i)"}),
    ]
    found = Agreement()(examine(rows, {"teacher": speaker(0), "student": speaker(1)}))
    assert [x["name"] for x in found["slices"]] == ["prose", "code"]


def test_a_teacher_is_perfect_against_itself(examine, speaker, rows):
    found = Agreement()(examine(rows, {"teacher": speaker(0, 2), "student": speaker(1)}))
    assert {name: found["teacher"][name] for name in Agreement.perfect} == Agreement.perfect
    assert 0 < found["student"]["kl"] and found["student"]["top1"] < 1


def test_the_worst_tokens_are_shown_in_their_text(examine, speaker, rows):
    roles = {"teacher": speaker(0, 2), "student": speaker(1)}
    exam = examine(rows, roles)
    found, one = Agreement(worst=5)(exam)["worst_tokens"], exam.table("student")
    assert [x["kl"] for x in found] == sorted(one.kl.tolist(), reverse=True)[:5]
    i = int(one.kl.argmax())
    row, pos = rows[int(one.row[i])].content["text"], int(one.pos[i]) - 1  # one begin mark in front
    decode = roles["teacher"].tokenizer.decode
    before = ("<s>" if pos < 40 else "") + row[max(pos - 40, 0) : pos]
    teacher, student = decode([int(one.teacher_best[i])]), decode([int(one.best[i])])
    assert found[0] == {"before": before, "token": row[pos], "teacher": teacher, "student": student, "kl": float(one.kl[i])}


def test_no_text_is_shown_unless_it_is_asked_for(examine, speaker, rows):
    assert Agreement(worst=0)(examine(rows, {"teacher": speaker(0), "student": speaker(1)}))["worst_tokens"] == []


def test_without_a_teacher_there_is_no_agreement(examine, speaker, rows):
    assert Agreement()(examine(rows, {"student": speaker(1)})) == {}


def test_negative_counts_are_refused():
    with pytest.raises(ValidationError):
        Agreement(worst=-1)


def test_the_gap_of_two_subjects_is_paired_over_documents():
    from limbeck.evaluate._scoring import by_document
    from limbeck.evaluate.base import Exam, Table
    from limbeck.signals import Row

    rows = [Row(str(i), {"text": "x"}, source=str(i)) for i in range(4)]
    row = torch.arange(4).repeat_interleave(5)
    best = torch.arange(20) % 3

    def table(own, kl):
        return Table(
            row=row,
            label=best,
            label_logprob=torch.zeros(20),
            best=own,
            best_prob=torch.ones(20),
            teacher_best=best,
            teacher_best_prob=torch.ones(20),
            kl=kl,
        )

    noise = torch.tensor([0.0, 1.0, 2.0, 3.0]).repeat_interleave(5)  # documents differ much, the subjects by 0.5 everywhere
    student, other = table(best, noise), table(best, noise + 0.5)
    exam = Exam(rows, ("teacher", "student", "other"), open=None, table={"student": student, "other": other}.get)
    found = Agreement().gap(student, other, exam)
    assert found["kl"] == pytest.approx(-0.5) and found["kl_error"] == pytest.approx(0, abs=1e-9) and found["top1"] == 0
    assert by_document(student.kl, student, rows)[1] > 0.5
