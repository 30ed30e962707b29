"""How much of held-out text two tokenizers cut out alike, in the summary and the report of a run."""

from pathlib import Path
from typing import Any

import pytest
import torch

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
    assert list(found) == ["student"] and found["student"]["aligned_bytes"] == pytest.approx(inside / 17)
    assert found["student"]["rows_without_chunks"] == lost
    (note,) = ByteChunks().notes(ROWS, both)
    assert note == f"byte_chunks: {lost} rows without a common chunk (3); {inside / 17:.1%} of the bytes lie in chunks"


def given(role: Any, text: str, places: Any) -> float:
    """What a module gives to some tokens of a text, from its whole softmax."""
    ids = role.view([Row(text, {"text": text})]).inputs["ids"]
    with torch.no_grad():
        log_p = role.module(ids[None]).logits[0].double().log_softmax(-1)
    return sum(float(log_p[place - 1, ids[place]]) for place in places)


def test_the_gap_is_that_of_whole_chunks_from_the_softmax_of_both_modules(examine: Any) -> None:
    """hello: begin h e l l o on the one side, begin he ll o on the other; he: begin h e, and begin he. Documents a and b."""
    both, text = models(True), "hello"
    rows = [Row("a", {"text": text}, source="a"), Row("b", {"text": "he"}, source="b"), Row("c", {"text": text}, source="a")]
    found = AlignedBytes()(examine(rows, dict(both.items())))["student"]
    pairs = [((1, 2), (1,)), ((3, 4), (2,)), ((5,), (3,))]
    hello = [abs(given(both["student"], text, ours) - given(both["teacher"], text, theirs)) for ours, theirs in pairs]
    he = abs(given(both["student"], "he", (1, 2)) - given(both["teacher"], "he", (1,)))
    mean = (2 * sum(hello) + he) / 7
    assert found["chunk_gap"] == pytest.approx(mean, rel=1e-5) and mean > 0.01
    spread = (2 * sum(hello) - 6 * mean) ** 2 + (he - mean) ** 2  # the ratio of sums of two documents, linearised
    assert found["chunk_gap_error"] == pytest.approx((2 * spread) ** 0.5 / 7, rel=1e-4)


def test_differences_between_subjects_of_one_tokenizer_are_paired_over_documents(examine: Any) -> None:
    both, other = models(True), models(True)
    with torch.no_grad():
        for p in other["student"].parameters():
            p.mul_(1.5)
    rows = [Row(str(i), {"text": text}, source=f"d{i // 2}") for i, text in enumerate(("hello", "he", "hell he", "o hello", "xhe", "hex"))]
    found = AlignedBytes()(examine(rows, {"teacher": both["teacher"], "start": other["student"], "student": both["student"]}))
    pair = found["gaps"]["start"]
    assert list(found["gaps"]) == ["start"] and pair["chunk_gap"] == pytest.approx(found["student"]["chunk_gap"] - found["start"]["chunk_gap"])
    assert 0 < pair["chunk_gap_error"] < found["student"]["chunk_gap_error"]
    alike = {"teacher": both["teacher"], "start": both["teacher"], "student": both["teacher"]}
    assert "gaps" not in AlignedBytes()(examine(rows, alike))  # with one tokenizer agreement has better ones


def test_to_a_model_of_one_tokenizer_that_says_the_same_there_is_no_gap(examine: Any) -> None:
    both = models(True)
    assert AlignedBytes()(examine(ROWS, {"teacher": both["teacher"], "student": both["teacher"]}))["student"]["chunk_gap"] == 0


def test_a_teacher_that_is_not_among_the_subjects_still_reads_and_has_no_gap(examine: Any) -> None:
    both = models(True)
    alone = examine(ROWS, {"student": both["student"]}, teacher=both["teacher"])
    assert AlignedBytes()(alone)["student"] == {"aligned_bytes": 1, "rows_without_chunks": 0}
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
    assert "tokens cut out alike" in page and "rows without a common chunk" in page and "log-probability, nats/stretch" in page
    assert "kl" not in found and found["chunk_gap"] > 0 and "comes within" in done.verdict
    assert "rows without a common chunk" in (done.path / "plan.txt").read_text()
