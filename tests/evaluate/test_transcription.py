"""Wrong words: against all ways to make one sequence of the other, against jiwer, and by hand."""

import contextlib
import functools
import itertools
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from limbeck.check.models import spoken, transcriber_of
from limbeck.evaluate.base import Exam
from limbeck.evaluate.transcription import Transcription
from limbeck.model.base import Role
from limbeck.signals import Row
from limbeck.store import read_json
from limbeck.text.words import edits, normalised


def brute_force(one: tuple[str, ...], other: tuple[str, ...]) -> int:
    """The fewest edits, by trying all."""

    @functools.cache
    def least(i: int, j: int) -> int:
        if i == len(one) or j == len(other):
            return len(one) - i + len(other) - j
        return min(least(i + 1, j) + 1, least(i, j + 1) + 1, least(i + 1, j + 1) + (one[i] != other[j]))

    return least(0, 0)


def test_edits_are_the_fewest_there_are() -> None:
    every = [letters for num in range(5) for letters in itertools.product("ab", repeat=num)]
    assert all(edits(one, other) == brute_force(one, other) for one in every for other in every)
    assert edits("kitten", "sitting") == 3  # Levenshtein's own example
    draw = random.Random(0)
    for _ in range(50):
        one, other = (tuple(draw.choices("abc", k=draw.randrange(12))) for _ in range(2))
        assert edits(one, other) == brute_force(one, other)


def test_rates_are_those_of_jiwer() -> None:
    jiwer = pytest.importorskip("jiwer")
    draw, words = random.Random(1), "ice floats on water because it is less dense".split()
    right, said = ([" ".join(draw.choices(words, k=draw.randrange(1, 9))) for _ in range(20)] for _ in range(2))
    found = Transcription()(exam({"student": said}, right))["student"]
    assert found["word_error_rate"] == pytest.approx(jiwer.wer(right, said))
    assert found["character_error_rate"] == pytest.approx(jiwer.cer(right, said))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" And Mr. John Dashwood, had…", "and mr john dashwood had"),
        ("ill-disposed / “ill disposed”", "ill disposed ill disposed"),
        ("He didn't; don’t!", "he didnt dont"),
        ("'Tis the boys' $10", "tis the boys 10"),
        ("Straße ＦＵＬＬ\u00a0width", "strasse full width"),
        ("", ""),
    ],
)
def test_case_and_punctuation_are_left_aside_and_digits_stay(text: str, expected: str) -> None:
    assert normalised(text) == expected


def exam(written: dict[str, list[str]], right: list[str], **context: Any) -> Exam:
    """Subjects that write what is given."""
    row = spoken().train[0]
    rows = [replace(row, key=f"row-{i}", source=f"clip-{i}", content={**row.content, "answer": f" {text}"}) for i, text in enumerate(right)]

    @contextlib.contextmanager
    def opened(subject: str) -> Iterator[Role]:
        role = transcriber_of()

        def transcribe(some: list[Row], new_tokens: int) -> list[str]:
            return [written[subject][int(one.key.removeprefix("row-"))] for one in some]

        role.transcribe = transcribe  # type: ignore[method-assign, assignment]
        yield role

    return Exam(rows, tuple(written), opened, lambda subject: pytest.fail("no table is needed"), 0, context)


RIGHT = ["ten of clubs", "he was not an ill disposed young man"]


def test_figures_by_hand(tmp_path: Path) -> None:
    written = {
        "teacher": ["Ten of clubs.", "He was not an ill-disposed young man."],
        "student": ["Ten o'clubs.", "He was not an old-sposed young man, man."],
    }
    found = Transcription()(exam(written, RIGHT, evidence=tmp_path))
    teacher, student = found["teacher"], found["student"]
    assert (teacher["word_error_rate"], teacher["character_error_rate"], teacher["words_as_teacher"]) == (0, 0, 1)
    # ten oclubs: one word replaced, one gone of 3; old sposed .. man man: two replaced, one too many of 8
    assert student["word_error_rate"] == pytest.approx((2 + 3) / 11)
    # teacher and student write 3 and 2, 8 and 9 words; 2 and 3 edits apart
    assert student["words_as_teacher"] == pytest.approx(1 - (2 + 3) / (3 + 9))
    # "of clubs" to "oclubs" takes two, " man" four
    assert student["character_error_rate"] == pytest.approx((2 + brute_force(tuple("ill disposed"), tuple("old sposed")) + 4) / (12 + 36))
    # linearised, two clips: residuals 2 - R 3 and 3 - R 8 with R = 5/11, whose squares are (7/11)^2 each
    assert student["word_error_rate_error"] == pytest.approx((2 / 1 * 2 * (7 / 11) ** 2) ** 0.5 / 11)
    assert found["gaps"]["teacher"]["Wrong words"] == pytest.approx(100 * 5 / 11) and found["transcription"] == {"clips": 2, "words": 11}
    assert student["metrics"]["Wrong words"] == {
        "value": pytest.approx(100 * 5 / 11),
        "error": pytest.approx(100 * student["word_error_rate_error"]),
        "unit": "%",
        "lower_is_better": True,
    }
    kept = read_json(tmp_path / "written.json")
    assert kept[0] == {"key": "row-0", "teacher": "Ten of clubs.", "student": "Ten o'clubs."}


def test_more_words_than_were_said_give_a_rate_above_one_and_silence_all_wrong() -> None:
    found = Transcription()(exam({"student": ["a a a a a a a", ""]}, RIGHT))["student"]
    assert found["word_error_rate"] == (7 + 8) / 11 and "words_as_teacher" not in found


def test_two_that_write_nothing_write_the_same() -> None:
    found = Transcription()(exam({"teacher": ["", ""], "student": ["", "..."]}, RIGHT))
    assert found["student"]["words_as_teacher"] == 1 and found["student"]["word_error_rate"] == 1


def test_rows_without_a_transcript_are_passed_over() -> None:
    given = exam({"student": ["x", "y"]}, RIGHT)
    assert Transcription()(replace(given, rows=[replace(row, content={"wave": row.content["wave"]}) for row in given.rows])) == {}
