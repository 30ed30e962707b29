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
    assert walked(Read((b"a", b"bcd"), ("", "")), Read((b"a", b"bc"), ("", ""))) == (((0,), (0,)),)  # nor with what is left over beside it


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


def test_with_one_tokenizer_every_token_is_a_chunk_and_says_what_the_softmax_gives_it() -> None:
    both, _ = models(begin=True)
    alike = Models({"student": both["teacher"], "teacher": both["teacher"]})
    rows = [Row("a", {"text": "hello x"}), Row("b", {"prompt": "a", "answer": "xhe"})]
    batch = ByteChunks().index(alike.batch(rows), alike)
    said = Aligned(alike, (ByteChunks(),)).says("teacher", batch, ("chunk_logprob",))["chunk_logprob"]
    expected = []
    for row in rows:
        view = both["teacher"].view([row])
        ids = view.inputs["ids"]
        with torch.no_grad():
            log_p = both["teacher"].module(ids[None]).logits[0].log_softmax(-1)  # type: ignore[operator]
        expected += [log_p[place - 1, ids[place]] for place in view.targets.tolist()]
    torch.testing.assert_close(said, torch.stack(expected), rtol=0, atol=1e-6)
    assert len(said) == 5 + 3 and batch.view("student").chunk_of.tolist() == list(range(8))  # type: ignore[union-attr]


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


@pytest.mark.slow
def test_it_comes_nearer_to_the_teachers_likelihoods_than_text_alone_after_equal_steps() -> None:
    """On held-out chunks, three seeds: a teacher of bytes that has learnt a little, and students of two blocks with a vocabulary of 4,096."""
    rate = {"optimiser": {"lr": 3e-3, "warm_up": 0.1, "decay": "cosine"}}
    topics: dict[str, Any] = {"kind": "python_topics", "split": 0.1}
    teacher = {"data": [topics, {"kind": "pack", "length": 128, "shortest": 64}], "student": {"start": f"config:{TINY}"}, "export": ["safetensors"]}
    run({**teacher, "train": [{"objective": ["cross_entropy"], "steps": 300, "batch": 8, **rate}], "threads": 1}, name="teacher")
    student = {"start": "teacher", "surgery": [{"kind": "drop_blocks", "keep": [0, 3]}, {"kind": "transplant_vocab", "tokenizer": "python_4k"}]}
    recipe = {"data": [topics, {"kind": "pack", "length": 32, "shortest": 16}], "teacher": "run:teacher", "student": student, "threads": 1}
    alm = {"align": [{"kind": "byte_chunks", "debias": True, "merge": 0.1}], "objective": ["chunk_likelihood"]}
    for seed in (0, 1, 2):
        gaps = []
        for stage in (alm, {"objective": ["cross_entropy"]}):
            done = run({**recipe, "seed": seed, "train": [{**stage, "steps": 100, "batch": 4, **rate}], "evaluate": ["aligned_bytes"]})
            gaps.append(done.summary["student"]["chunk_gap"])
        assert gaps[0] < 0.9 * gaps[1] < 0.9 * done.summary["start"]["chunk_gap"]  # 2.2 against 2.9; 4.2 before training


def test_a_text_that_only_the_teacher_reads_as_too_long_is_to_be_packed_shorter(tmp_path: Path) -> None:
    student = {"start": f"config:{TINY}", "surgery": [{"kind": "transplant_vocab", "tokenizer": "python_4k"}]}
    rows = [{"kind": "python_topics"}, {"kind": "pack", "length": 400}]  # 400 pieces are more than 512 bytes
    with pytest.raises(Refused) as caught:
        run(toy(tmp_path, {"objective": ["chunk_likelihood"], "align": ["byte_chunks"]}, data=rows, student=student))
    assert caught.value.slug == "context" and caught.value.do.startswith("a smaller length of pack: the teacher")


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
