"""Questions about images, made of their classes."""

from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError

from limbeck.check.models import pictures
from limbeck.data._overlap import drop_overlap
from limbeck.data.base import Part, Place, Rows
from limbeck.data.describe import Describe, turn
from limbeck.data.digits import Digits
from limbeck.errors import Refused
from limbeck.model.base import Models
from limbeck.numerics import Streams
from limbeck.signals import Row

HERE = Place(Models({}), Streams(0))
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def made(step: Describe, rows: tuple[Row, ...] = pictures()) -> list[Row]:
    return list(step.rows(Rows((Part(rows),)), HERE).train)


def test_each_image_gets_a_question_and_an_answer_with_the_name_of_its_class() -> None:
    found = made(Describe(names=NAMES))
    for row, before in zip(found, pictures(), strict=True):
        pair = Describe().pairs[turn(before.key, 3)]
        assert row.content["prompt"] == f"<image>\n{pair.question}\n"
        assert row.content["answer"] == pair.answer.replace("{label}", NAMES[before.content["label"]])
        assert torch.equal(row.content["pixels"], before.content["pixels"]) and (row.tag, row.source) == (before.tag, before.source)
    assert len({row.key for row in found} | {row.key for row in pictures()}) == 80 and len({row.content["prompt"] for row in found}) == 3


def test_the_question_goes_by_the_image_alone_not_by_its_place_or_the_seed() -> None:
    some = pictures()[5:9]
    other = Describe().rows(Rows((Part(some),)), Place(Models({}), Streams(7))).train
    assert [row.key for row in other] == [row.key for row in made(Describe())[5:9]]


def test_every_question_about_every_image_stays_on_the_side_of_the_image() -> None:
    rows = Describe(every=True).rows(Digits(num=50).rows(Rows(), HERE), HERE)
    assert len(rows.train) + len(rows.held_out) == 150 and len({row.key for row in (*rows.train, *rows.held_out)}) == 150
    assert not {row.source for row in rows.train} & {row.source for row in rows.held_out}


def test_questions_that_all_images_share_are_no_overlap_between_training_and_held_out_rows() -> None:
    rows = Describe().rows(Digits(num=60).rows(Rows(), HERE), HERE)
    assert drop_overlap(rows).held_out == rows.held_out and len(rows.held_out) > 3


def test_as_messages_for_models_with_a_chat_template() -> None:
    (row,) = made(Describe(form="chat", pairs=({"question": "What?", "answer": "A {label}."},)), pictures()[:1])  # type: ignore[arg-type]
    assert row.content["messages"] == ({"role": "user", "content": "<image>\nWhat?"}, {"role": "assistant", "content": f"A {row.tag}."})


def test_rows_that_cannot_be_described_are_refused() -> None:
    with pytest.raises(Refused, match="rows that hold pixels and a class") as caught:
        made(Describe(), (Row("a", {"text": "no picture"}),))
    assert "right after" in caught.value.do
    with pytest.raises(Refused, match="a name for each class"):
        made(Describe(names=("zero", "one")))
    with pytest.raises(ValidationError, match="put before each question"):
        Describe(pairs=({"question": "<image>?", "answer": "x"},))  # type: ignore[arg-type]


@pytest.mark.parametrize("label, tag, names", [(-1, "", NAMES), (-1, "coat", ()), (3, "", ())])
def test_an_image_without_a_named_class_is_refused(label: int, tag: str, names: tuple[str, ...]) -> None:
    row = Row("one", {"pixels": torch.zeros(1, 4, 4, dtype=torch.uint8), "label": label}, tag)
    with pytest.raises(Refused, match=f"row one of class {label}") as told:
        made(Describe(names=names), (row,))
    assert told.value.slug == "label"
    named = made(Describe(names=NAMES), (replace(row, content={**row.content, "label": 3}, tag=""),))
    assert "three" in named[0].content["answer"]  # names of one's own need no tag
