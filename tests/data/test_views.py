"""Label and rationale as two tasks of one row: what becomes of a row, and what a step learns from it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.check.models import family_of
from limbeck.data.base import Part, Place, Rows
from limbeck.data.digit_sums import DigitSums
from limbeck.data.jsonl import Jsonl
from limbeck.data.views import Views
from limbeck.model.base import Models
from limbeck.numerics import Streams, log_probs
from limbeck.objective.cross_entropy import CrossEntropy
from limbeck.recipe import load
from limbeck.signals import Batch, Row, dense
from limbeck.text.spans import encode
from limbeck.train.settle import settle
from limbeck.train.stage import Turn
from limbeck.train.window import Running, count, window

TASKS = {"predict": {"prefix": "predict: ", "target": "label"}, "explain": {"prefix": "explain: ", "target": "rationale"}}
ONE = Row("one", {"prompt": "1+2=", "answer": "no", "label": "1", "rationale": "1 1", "ids": {"x": [1]}}, "sums", source="d1")
BARE = Row("bare", {"prompt": "3+3=", "label": "0"}, source="d2")


def seen(*rows: Row, held: tuple[Row, ...] = (), **views: Any) -> Rows:
    return Views(views=views or TASKS).rows(Rows((Part(rows, 2.0),), held), Place({}, Streams(0)))  # type: ignore[arg-type]


def gradient(models: Models, batch: Batch, *objectives: CrossEntropy) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Mean loss of each objective, and the gradient of one step."""
    turn = Turn(objective=objectives, batch=2)
    running = Running(turn, (), [None], settle(turn, (), models, "train.0"), [None] * len(objectives))
    with models.turn("student"):
        models["student"].zero_grad()
        losses = window(running, models, batch, 0, count(turn, batch))
        found = {name: p.grad.clone() for name, p in models["student"].module.named_parameters() if p.grad is not None}
    return [loss.total.item() / max(loss.count, 1) for loss in losses], found


def weighted(alpha: float) -> tuple[CrossEntropy, ...]:
    return CrossEntropy(tag="predict", weight=alpha), CrossEntropy(tag="explain", weight=1 - alpha)


@pytest.fixture
def models() -> Models:
    return Models({"student": family_of("llama", 0)})


def test_a_row_becomes_one_row_a_view_drawn_together() -> None:
    rows = seen(ONE, BARE)
    assert [(row.tag, row.group, row.source, dict(row.content)) for row in rows.train] == [
        ("predict", "one", "d1", {"prompt": "predict: 1+2=", "answer": "1"}),
        ("explain", "one", "d1", {"prompt": "explain: 1+2=", "answer": "1 1"}),
        ("predict", "bare", "d2", {"prompt": "predict: 3+3=", "answer": "0"}),
    ]
    assert rows.parts[0].share == 2.0 and len(rows.parts[0].groups) == 2
    assert {len({row.group for row in rows.draw(n, 1, Streams(0))}) for n in range(4)} == {1}
    assert seen(Row("pair", ONE.content, group="both")).train[0].group == "both"


@pytest.mark.parametrize("missing", [{}, {"rationale": ""}, {"rationale": " \n"}, {"rationale": None}, {"rationale": 3}])
def test_a_missing_rationale_is_no_view_and_never_a_blank_answer(missing: dict[str, Any]) -> None:
    rows = seen(ONE, Row("b", {**BARE.content, **missing}))
    assert [row.tag for row in rows.train] == ["predict", "explain", "predict"]
    assert rows.notes == ("views: 1 of 2 rows have no rationale for explain",)


def test_held_out_rows_are_asked_for_the_label_only_with_the_prefix_of_training(models: Models) -> None:
    held = (Row("h", ONE.content, split="held_out"), Row("no", {"prompt": "1+1=", "rationale": "1 0"}, split="held_out"))
    rows = seen(ONE, held=held)
    (row,) = rows.held_out
    assert (row.tag, row.split, dict(row.content)) == ("predict", "held_out", {"prompt": "predict: 1+2=", "answer": "1"})
    assert rows.notes == ("views: 1 held-out rows have no label, and are left out",)
    tokenizer = models["student"].tokenizer
    (ids, asked), trained = encode(row, tokenizer), encode(rows.train[0], tokenizer)
    assert (ids, asked) == trained and sum(asked) == len("1") + 1  # the label and the end: no token of a rationale


def test_a_target_that_no_row_has_is_refused_and_says_which_fields_there_are(refused: Any) -> None:
    error = refused(lambda: seen(BARE))
    assert error[1] == "data views  views.explain.target" and "fields: label, prompt" in error[3]


def test_rows_without_a_prompt_stay_as_they_are() -> None:
    text = Row("t", {"text": "words"}, "prose")
    rows = seen(text, ONE)
    assert rows.train[0] is text and rows.notes == ("views: 1 rows have no prompt, and are as they were",)


def test_loss_and_gradient_are_the_weighted_sum_of_two_means_over_tokens(models: Models) -> None:
    longer = Row("two", {"prompt": "4+5=", "label": "1", "rationale": "0 1 " * 9})
    rows, alpha = seen(ONE, longer).train, 0.3
    batch = models.batch(rows)
    losses, ours = gradient(models, batch, *weighted(alpha))
    student = models["student"]
    means = []
    with models.turn("student"):
        student.zero_grad()
        for tag in TASKS:
            one = models.batch([row for row in rows if row.tag == tag])
            said = models.says("student", one, ("logits", "label"))
            means.append(-log_probs(dense(said["logits"])).gather(-1, said["label"][:, None]).mean())
        (alpha * means[0] + (1 - alpha) * means[1]).backward()
        theirs = {name: p.grad.clone() for name, p in student.module.named_parameters() if p.grad is not None}
    assert losses == pytest.approx([mean.item() for mean in means], rel=1e-9)
    assert ours.keys() == theirs.keys() and all(torch.allclose(ours[name], theirs[name], rtol=1e-7, atol=1e-10) for name in theirs)


def test_all_weight_on_the_label_is_standard_training_bit_for_bit(models: Models) -> None:
    plain = [Row(f"plain{i}", {"prompt": "predict: " + row.content["prompt"], "answer": row.content["label"]}) for i, row in enumerate((ONE, BARE))]
    ours = gradient(models, models.batch(seen(ONE, BARE, predict=TASKS["predict"]).train), CrossEntropy(tag="predict", weight=1.0))
    standard = gradient(models, models.batch(plain), CrossEntropy())
    assert ours[0] == standard[0] and ours[1].keys() == standard[1].keys()
    assert all(torch.equal(ours[1][name], standard[1][name]) for name in standard[1])


def test_a_row_without_a_rationale_adds_to_the_label_loss_only(models: Models) -> None:
    bare = [row for row in seen(ONE, BARE).train if row.group == "bare"]
    losses, ours = gradient(models, models.batch(bare), *weighted(0.5))
    alone, theirs = gradient(models, models.batch(bare), CrossEntropy(weight=0.5))
    assert losses == [alone[0], 0.0] and all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_records_keep_a_rationale_that_is_named_and_may_lack_it(tmp_path: Path) -> None:
    lines = [{"prompt": "a", "answer": "b", "why": "c", "other": 1}, {"prompt": "d", "answer": "e"}, {"prompt": "f", "why": None}]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    rows = Jsonl(path="a.jsonl", split=0, fields=("why",)).rows(Rows(), Place({}, Streams(0), base=str(tmp_path)))  # type: ignore[arg-type]
    assert [dict(row.content) for row in rows.train] == [{"prompt": "a", "answer": "b", "why": "c"}, {"prompt": "d", "answer": "e"}, {"prompt": "f"}]
    with pytest.raises(ValueError, match="further fields, not answer"):
        Jsonl(path="a.jsonl", fields=("answer",))


def sums(seed: int = 0, **fields: Any) -> Rows:
    return DigitSums(**{"num": 200, "terms": 4, **fields}).rows(Rows(), Place({}, Streams(seed)))  # type: ignore[arg-type]


@pytest.mark.parametrize("digits, modulus, rationale", [("742", 2, "1 1 1"), ("999", 10, "9 8 7"), ("012", 3, "0 1 0")])
def test_steps_of_a_sum_end_in_its_label(digits: str, modulus: int, rationale: str) -> None:
    content = DigitSums(modulus=modulus).row(digits).content
    assert content["prompt"] == "+".join(digits) + "=" and content["rationale"] == rationale
    assert content["label"] == content["answer"] == rationale[-1] == str(sum(map(int, digits)) % modulus)


def test_a_share_of_the_sums_is_the_first_of_them_and_the_same_are_held_out() -> None:
    whole, quarter = sums(), sums(share=0.25)
    assert len(whole.train) + len(whole.held_out) == 200 == len({row.source for row in (*whole.train, *whole.held_out)})
    assert quarter.held_out == whole.held_out and quarter.train == whole.train[: round(len(whole.train) / 4)]
    assert whole == sums() and whole.held_out != sums(1).held_out


def test_the_recipe_weighs_both_tasks_alike_and_is_used_for_the_label() -> None:
    recipe = load("step_by_step")
    views = recipe.data[1]
    assert isinstance(views, Views) and next(iter(views.views)) == "predict" and views.views["predict"].target == "label"
    weights = [(o.tag, o.weight) for o in recipe.train[0].turn[0].objective]
    assert weights == [("predict", 0.5), ("explain", 0.5)]


@pytest.mark.parametrize(
    "digits, modulus, rationale, label",
    [("742", 2, "1 0 0", "0"), ("97531", 2, "1 1 1 1 1", "1"), ("0123", 3, "0 1 2 0", "0"), ("2112", 3, "2 1 1 2", "1")],
)
def test_the_most_frequent_rest_by_hand_of_equal_ones_the_smallest(digits: str, modulus: int, rationale: str, label: str) -> None:
    content = DigitSums(modulus=modulus, ask="most").row(digits).content
    assert (content["rationale"], content["label"], content["answer"]) == (rationale, label, label)
