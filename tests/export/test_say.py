"""Tables of what models answer: titles by rule, who is shown, what judges were worth, and hostile names."""

from typing import Any

import pytest

from limbeck.export._figures_say import alike, judges, named, preference
from limbeck.export.report import render, table


def figure(value: float | None, low: float | None = None, high: float | None = None) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high}


def summary(closer: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """Every number is invented."""
    of = {"teacher": figure(1, 1, 1), "start": figure(0.2, 0.1, 0.3), "student": figure(0.456, 0.4, 0.5), "baseline": figure(0.3, 0.25, 0.35)}
    measures = [{"name": name, **of, **({"closer": closer} if closer else {})} for name in ("ngram_jaccard", "rouge_l")]
    rates = {"loose": figure(0.1, 0.05, 0.2), "strict": figure(0.085, 0.05, 0.13), "hard": figure(0.0, 0.0, 0.02), "judged": 190, "reasons": {}}
    return {
        **{arm: {"top1": 0.5, "rouge_l": x["value"], "identity_strict": 0.085} for arm, x in of.items()},
        "similarity": {"reference": "teacher", "control": "text_only", "student": "student", "prompts": 64, "measures": measures, **more},
        "identity": {"prompts": 200, "cues": 80, "judge": None, "student": rates, "baseline": rates},
    }


@pytest.mark.parametrize(
    "closer, title",
    [
        (figure(0.15, 0.1, 0.2), "The answers of the student are closer to the teacher's than those of the student without the teacher"),
        (figure(0.05, -0.1, 0.2), "The answers of the student are no closer to the teacher's than those of the student without the teacher"),
        (figure(-0.15, -0.2, -0.1), "The answers of the student are further from the teacher's than those of the student without the teacher"),
        (None, "Answers beside the teacher's"),
    ],
)
def test_the_title_is_what_the_difference_to_the_control_says(closer: Any, title: str) -> None:
    found = alike(summary(closer))
    assert found is not None and found.title.startswith(title)


def test_the_control_stands_beside_every_figure() -> None:
    found = alike(summary(figure(0.15, 0.1, 0.2)))
    assert found is not None and found.head == ["", "teacher", "before", "text only", "student", "student closer than text only"]
    assert found.rows[0][0] == "shared words in the same order (ROUGE-L)"
    assert found.rows[0][1:] == ["100 %", "20.0 %", "30.0 %", "45.6 % (40.0 to 50.0)", "15.0 % (10.0 to 20.0)"]
    assert "only the last column tells" in found.note and "no model that was not distilled" in alike(summary(control=None)).note  # type: ignore[union-attr]


def test_other_models_get_columns_and_a_second_reference_a_table() -> None:
    told = summary(preference=[{"name": "rouge_l", "reference": "rival", "student": figure(0.2, 0.1, 0.3), "far": figure(-0.1, -0.2, 0.0)}])
    found = preference(told)
    assert found is not None and found.rows[0][0] == "shared words in the same order (ROUGE-L)"
    assert [row[1:] for row in found.rows] == [["rival", "20.0 % (10.0 to 30.0)", "-10.0 % (-20.0 to 0)"]]
    assert found.head == ["", "than to", "student", "far"] and preference(summary()) is None


def test_whom_a_model_says_it_is() -> None:
    found = named(summary())
    assert found is not None and found.title == "Says that it is another model: 8.5 % of the answers"
    assert found.rows[1] == ["claims another maker or its models", "8.5 %", "8.5 % (5.0 to 13.0)"] and found.rows[-1][1:] == ["190", "190"]
    assert found.note.startswith("200 questions, of which 80 name another model; judged by rules")
    assert named({"identity": {"prompts": 5, "judge": {"model": "j", "followed": 1}}}) is None


def test_what_a_judge_is_worth_is_told() -> None:
    judge = {"model": "j", "traps": 3, "followed": 0, "asked": 64, "no_verdict": 5, "order_gap": 0.31}
    judge["reasons"] = {"cut off": 3, "in another form": 2}
    assert judges(summary(judge=judge)) == [
        "j was asked about 64 pairs in both orders; 5 without a verdict count nowhere (3 cut off, 2 in another form)."
        " The other order moves a mark by 0.31."
    ]
    (line,) = judges(summary(judge={**judge, "followed": 2}))
    assert line == "The judge j did what the text in front of it asked for in 2 of 3 traps: nothing that it says is told."
    assert judges({}) == judges(summary()) == []


def test_page_and_table_show_them_in_words() -> None:
    page = render(summary(figure(0.15, 0.1, 0.2)))
    assert "claims another maker or its models" in page and "student closer than text only" in page
    rows = {row.name: row.student for row in table(summary())}
    assert rows["Answers like those of teacher, ROUGE-L, %"] == "45.6" and rows["Says that it is another model, %"] == "8.5"


BROKEN: list[Any] = [7, [], {}, {"measures": 3}, {"measures": [{"name": "rouge_l"}]}, {"measures": [{"name": ["x"]}]}, {"student": {"strict": 1}}]


@pytest.mark.parametrize("broken", BROKEN)
def test_broken_parts_leave_a_page(broken: Any) -> None:
    assert "What does it say?" in render({**summary(), "similarity": broken, "identity": broken})


def test_hostile_names_are_text() -> None:
    told = summary(reference="<script>alert(1)</script>", judge={"model": "<b>\u202e`rm`", "traps": 2, "followed": 1})
    told["similarity"]["measures"][0]["<img src=x>"] = figure(0.1)
    page = render(told)
    assert "<script>" not in page and "<img" not in page and "<b>\u202e" not in page
