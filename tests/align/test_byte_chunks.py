"""Two tokenizers over one text, cut where both stand at the same byte."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import two_tokenizers
from limbeck.align.base import Aligned
from limbeck.align.byte_chunks import ByteChunks
from limbeck.check.models import quiet
from limbeck.errors import Refused
from limbeck.model.base import Models
from limbeck.objective.chunk_likelihood import ChunkLikelihood
from limbeck.signals import Row
from limbeck.start import run
from limbeck.text.chunks import Read, unled, walked
from limbeck.train.settle import settle
from limbeck.train.stage import Turn
from toy import TINY, at_home, metrics, toy  # noqa: F401


def models(begin: bool = False) -> tuple[Models, Any]:
    """Both models, and the teacher's tokenizer."""
    both = two_tokenizers.models(begin)
    return both, both["teacher"].tokenizer


def cut(text: bytes, ends: set[int]) -> tuple[bytes, ...]:
    return tuple(text[a:b] for a, b in pairwise(sorted({0, len(text), *ends})))


@settings(max_examples=200, deadline=None)
@given(st.text(min_size=1, max_size=12), st.data())
def test_chunks_end_at_the_common_ends_and_marks_of_one_side_lose_nothing(text: str, data: st.DataObject) -> None:
    whole = text.encode()
    places = st.sets(st.integers(1, len(whole)))
    ends = [{*data.draw(places), len(whole)} for _ in range(2)]
    sides = []
    for some in ends:  # marks of one side alone, anywhere
        pieces: list[tuple[bytes, str]] = [(b, "") for b in cut(whole, some)]
        for at in sorted(data.draw(st.lists(st.integers(0, len(pieces)), max_size=3)), reverse=True):
            pieces.insert(at, (b"", f"mark {len(sides)}"))
        sides.append(Read(*zip(*pieces, strict=True)))
    common = sorted(ends[0] & ends[1])
    found = walked(sides[0], sides[1])
    assert [b"".join(sides[0].bytes[i] for i in a) for a, _ in found] == list(cut(whole, set(common)))
    for a, b in found:
        assert b"".join(sides[0].bytes[i] for i in a) == b"".join(sides[1].bytes[j] for j in b)
        assert not any(sides[0].marks[i] for i in a) and not any(sides[1].marks[j] for j in b)


def test_marks_of_one_purpose_are_chunks_and_text_that_differs_is_none() -> None:
    one = Read((b"", b"a", b"x", b"c", b""), ("begin", "", "", "", "end"))
    other = Read((b"", b"a", b"y", b"c", b""), ("begin", "", "", "", "end"))
    assert walked(one, other) == (((0,), (0,)), ((1,), (1,)), ((3,), (3,)), ((4,), (4,)))
    assert walked(Read((b"ab", b"c"), ("", "")), Read((b"a", b"b"), ("", ""))) == (((0,), (0, 1)),)  # what is left over is paired with nothing


def test_sums_of_log_probabilities_are_those_of_the_tokens_of_each_chunk() -> None:
    both, tokenizer = models()
    rows = [Row("a", {"prompt": "he", "answer": "hello"}), Row("b", {"prompt": "a", "answer": "xhe"})]
    align = ByteChunks().settle(both)
    batch = align.index(both.batch(rows), both)
    assert tokenizer.encode("hello", add_special_tokens=False) == [tokenizer.get_vocab()[t] for t in ("he", "ll", "o")]
    view, theirs = batch.view("student"), batch.view("teacher")
    assert view.chunk_of is not None and view.chunk_of.tolist() == [0, 0, 1, 1, 2, 3, 4, 5, 5, 6]  # he, ll, o, end; x, he, end
    assert theirs.chunk_of is not None and theirs.chunk_of.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert view.chunk_row is not None and view.chunk_row.tolist() == [0, 0, 0, 0, 1, 1, 1]
    listen = Aligned(both, (align,))
    said = listen.says("student", batch, ("chunk_logprob",))
    each = both.says("student", batch, ("target_logprob",))["target_logprob"]
    expected = torch.stack([each[:2].sum(), each[2:4].sum(), each[4], each[5], each[6], each[7:9].sum(), each[9]])
    torch.testing.assert_close(said["chunk_logprob"], expected)
    alone = batch.at(torch.tensor([1]))
    torch.testing.assert_close(listen.says("student", alone, ("chunk_logprob",))["chunk_logprob"], expected[4:])


@pytest.mark.parametrize("begin", [True, False])
def test_the_first_chunk_stays_only_where_both_begin_alike(begin: bool) -> None:
    both, _ = models(begin)
    batch = ByteChunks().index(both.batch([Row("a", {"text": "hello"})]), both)
    view = batch.view("student")
    assert both.batch([Row("a", {"text": "hello"})]).view("student").inputs["ids"][0] == 256  # bytes begin with a mark
    assert view.chunk_of is not None
    assert view.chunk_of.tolist() == ([0, 0, 1, 1, 2] if begin else [-1, -1, 0, 0, 1])


def test_it_teaches_across_tokenizers_and_one_without_a_use_is_refused() -> None:
    both, _ = models()
    turn = Turn(batch=1, align=(ByteChunks(),), objective=(ChunkLikelihood(),))  # type: ignore[call-arg]
    assert settle(turn, (), both, "main").needs == {"student": ("chunk_logprob",), "teacher": ("chunk_logprob",)}
    with pytest.raises(Refused, match="chunk") as caught:
        settle(Turn.model_validate({"batch": 1, "align": ["byte_chunks"], "objective": ["cross_entropy"]}), (), both, "main")
    assert caught.value.where == "main.align"
    with pytest.raises(Refused) as caught:
        settle(Turn.model_validate({"batch": 1, "objective": ["chunk_likelihood"]}), (), both, "main")
    assert caught.value.do == "add align: byte_chunks"


def test_a_window_of_other_texts_is_refused() -> None:
    both, _ = models()
    batch = both.batch([Row("a", {"prompt": "a", "answer": "one", "open": True})])
    view = both["teacher"].view([Row("a", {"prompt": "a", "answer": "xx", "open": True})])
    with pytest.raises(Refused) as caught:
        ByteChunks().index(type(batch)(**{**vars(batch), "views": {**batch.views, "teacher": view}}), both)
    assert caught.value.slug == "chunk"


def test_a_space_that_a_tokenizer_puts_in_front_is_no_text() -> None:
    ours, theirs = Read((b" he", b"y"), ("", "")), Read((b"h", b"ey"), ("", ""))
    assert unled(ours, theirs, True).bytes == (b"he", b"y")
    assert unled(ours, Read((b" hey",), ("",)), True) == ours and unled(ours, theirs, False) == ours


def test_a_run_teaches_a_student_of_another_tokenizer_and_leaves_agreement_out(tmp_path: Path) -> None:
    both, tokenizer = models()
    with quiet():
        both["teacher"].module.float().save_pretrained(tmp_path / "teacher")  # type: ignore[operator]
    tokenizer.save_pretrained(tmp_path / "teacher")
    stage = {"objective": ["chunk_likelihood"], "align": ["byte_chunks"]}
    recipe = toy(tmp_path, stage, teacher=f"path:{tmp_path / 'teacher'}", student={"start": f"config:{TINY}"}, evaluate=["perplexity"])
    done = run(recipe)
    found = {record["name"] for record in metrics(done.path)}
    assert "chunk_likelihood" in found and "held_out_kl" not in found
