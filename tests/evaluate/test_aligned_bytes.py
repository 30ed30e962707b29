"""How much of held-out text two tokenizers cut out alike, in the summary and the report of a run."""

from pathlib import Path
from typing import Any

import pytest

from limbeck.align.byte_chunks import MOST_ROWS, ByteChunks
from limbeck.check.models import quiet
from limbeck.evaluate.aligned_bytes import AlignedBytes
from limbeck.model.base import Models
from limbeck.signals import Row
from limbeck.start import run
from toy import TINY, at_home, toy
from two_tokenizers import bpe, models

__all__ = ["at_home"]
ROWS = [Row("a", {"text": "hello there"}), Row("b", {"text": "he"}), Row("c", {"prompt": "x", "answer": "hell"})]


@pytest.mark.parametrize("begin, inside, lost", [(True, 17, 0), (False, 9 + 4, 1)])
def test_bytes_in_chunks_are_counted_over_all_rows(examine: Any, begin: bool, inside: int, lost: int) -> None:
    """Without a begin the teacher's first token of a text, he, is not predicted: of the second row nothing is left."""
    both = models(begin)
    found = AlignedBytes()(examine(ROWS, dict(both.items())))
    assert found == {"student": {"aligned_bytes": pytest.approx(inside / 17), "rows_without_chunks": lost}}
    (note,) = ByteChunks().notes(ROWS, both)
    assert note == f"byte_chunks: {lost} rows without a common chunk (3); {inside / 17:.1%} of the bytes lie in chunks"


def test_a_teacher_that_is_not_among_the_subjects_still_reads(examine: Any) -> None:
    both = models(True)
    alone = examine(ROWS, {"student": both["student"]}, teacher=both["teacher"])
    assert AlignedBytes()(alone)["student"]["aligned_bytes"] == 1
    assert AlignedBytes()(examine(ROWS, {"student": both["student"]})) == {}


def test_a_tokenizer_that_loses_text_is_not_measured(examine: Any) -> None:
    from tokenizers import normalizers

    both = models(True)
    both["teacher"].tokenizer = bpe(True)
    both["teacher"].tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    assert AlignedBytes()(examine(ROWS, dict(both.items()))) == {}


def test_of_many_rows_some_are_looked_at() -> None:
    rows = [Row(str(i), {"text": "hello"}) for i in range(2 * MOST_ROWS + 1)]
    (note,) = ByteChunks().notes(rows, models())
    assert f"looked at, of {len(rows):,}" in note and ByteChunks().notes(rows, Models({})) == ()


def test_a_run_says_what_is_lost_in_its_notes_its_summary_and_its_report(tmp_path: Path) -> None:
    both = models()
    with quiet():
        both["teacher"].module.float().save_pretrained(tmp_path / "teacher")  # type: ignore[operator]
    both["teacher"].tokenizer.save_pretrained(tmp_path / "teacher")
    stage = {"objective": ["chunk_likelihood"], "align": [{"kind": "byte_chunks", "debias": True, "merge": 0.1}]}
    recipe = toy(tmp_path, stage, teacher=f"path:{tmp_path / 'teacher'}", student={"start": f"config:{TINY}"}, evaluate=["aligned_bytes"])
    done = run(recipe, runs=tmp_path)
    found = done.summary["student"]
    assert 0.8 < found["aligned_bytes"] < 1 and found["rows_without_chunks"] == 0  # a first letter of each row is not predicted by the teacher
    (told,) = [check["result"] for check in done.summary["checks"] if check["name"] == "byte_chunks"]
    assert told.startswith("0 rows without a common chunk")
    page = (done.path / "report.html").read_text()
    assert "tokens cut out alike" in page and "rows without a common chunk" in page
    assert "rows without a common chunk" in (done.path / "plan.txt").read_text()
