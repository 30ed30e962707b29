from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from limbeck.check.models import classifier, family_of, pictures
from limbeck.data.augment import Augment, moved
from limbeck.data.base import Place
from limbeck.errors import Refused
from limbeck.model.base import Models
from limbeck.numerics import Streams
from limbeck.signals import Batch, Row

MODELS = Models({"student": classifier(), "teacher": classifier(1)})


def window(step: Any, number: int = 0, rows: tuple[Row, ...] = pictures()[:8]) -> Batch:
    return step.window(MODELS.batch(rows), Place(MODELS, Streams(0), number), None)


def test_an_image_is_cut_out_of_itself_with_a_black_border() -> None:
    image = torch.arange(9, dtype=torch.uint8).view(1, 1, 3, 3)
    down_and_right = moved(image, 1, [2], [0], [False])[0, 0]
    assert down_and_right.tolist() == [[0, 3, 4], [0, 6, 7], [0, 0, 0]]
    assert moved(image, 1, [1], [1], [True])[0, 0].tolist() == [[2, 1, 0], [5, 4, 3], [8, 7, 6]]
    assert moved(image, 1, [1], [1], [False]).equal(image)


def test_shifts_are_spread_over_all_places_and_half_of_the_images_are_mirrored() -> None:
    rows = tuple(replace(pictures()[i % 40], key=f"{i}") for i in range(2000))
    drawn = [key.split("/")[1].split(".") for key in window(Augment(pad=1, flip=0.5), rows=rows).keys]
    places = {(y, x): sum(one[:2] == [y, x] for one in drawn) for y in "012" for x in "012"}
    assert len(places) == 9 and all(150 < number < 300 for number in places.values())  # 222 expected, a standard deviation is 14
    assert 900 < sum(one[2] == "1" for one in drawn) < 1100


def test_a_row_is_changed_alike_wherever_it_stands_in_a_window_and_otherwise_in_the_next() -> None:
    step, rows = Augment(pad=2), pictures()[:8]
    whole, turned, later = window(step), window(step, rows=rows[::-1]), window(step, 1)
    assert whole.keys == turned.keys[::-1] and whole.view("student").inputs["pixels"].equal(turned.view("student").inputs["pixels"].flip(0))
    assert whole.keys != later.keys and len(set(whole.keys)) == 8


def test_teacher_and_student_see_the_same_image() -> None:
    batch = window(Augment())
    assert batch.view("teacher").inputs["pixels"] is batch.view("student").inputs["pixels"]


def test_one_that_changes_nothing_and_rows_without_pixels_are_refused() -> None:
    with pytest.raises(ValidationError, match="pad or flip"):
        Augment(pad=0, flip=0.0)
    models = Models({"student": family_of("llama")})
    with pytest.raises(Refused, match="rows that hold pixels"):
        Augment().window(models.batch([Row("a", {"text": "some words"})]), Place(models, Streams(0)), None)
