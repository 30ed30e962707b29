"""What roles say of chunks: rows merged by the chain rule, and rows over what two vocabularies spell alike."""

from dataclasses import replace

import pytest
import torch

import two_tokenizers
from limbeck.align.base import Aligned
from limbeck.align.byte_chunks import ByteChunks
from limbeck.errors import Refused
from limbeck.model.base import Models
from limbeck.numerics import log_probs
from limbeck.objective.forward_kl import ForwardKL
from limbeck.objective.jsd import JSD
from limbeck.objective.sorted_l1 import SortedL1
from limbeck.signals import Batch, Row, dense
from limbeck.text.bytes_of import exact
from limbeck.train.settle import settle
from limbeck.train.stage import Turn

ALIGN = ByteChunks()
ROWS = [Row("a", {"prompt": "he", "answer": "hello"}), Row("b", {"prompt": "a", "answer": "xhe"})]
ALL = ("chunk_logprob", "lead_logprob", "chunk_logits", "last_logits", "rest_logits")


def indexed(both: Models, rows: list[Row] = ROWS) -> Batch:
    return ALIGN.index(both.batch(rows), both)


def test_a_merged_row_is_the_probability_of_the_whole_chunk_for_each_way_to_end_it() -> None:
    both = two_tokenizers.models()
    student, vocab = both["student"], both["student"].vocab or 0
    said = Aligned(both, (ALIGN,)).says("student", indexed(both, ROWS[:1]), ("last_logits", "lead_logprob"))
    merged = log_probs(dense(said["last_logits"])) + said["lead_logprob"][:, None]
    text = [256, *b"he", *b"hello"]  # chunks he, ll, o, end; by brute force: every way to end each of them, word for word
    for chunk, (start, end) in enumerate(((3, 4), (5, 6), (7, 7), (8, 8))):
        every = torch.tensor([[*text[:end], v] for v in range(vocab)])
        with torch.no_grad():
            log_p = student.module(every).logits.log_softmax(-1)  # type: ignore[operator]
        expected = sum(log_p[:, t - 1].gather(-1, every[:, t, None])[:, 0] for t in range(start, end + 1))
        assert isinstance(expected, torch.Tensor)
        torch.testing.assert_close(merged[chunk], expected, rtol=0, atol=1e-6)  # norms are float32
    assert (said["lead_logprob"] < 0).tolist() == [True, True, False, False]
    assert merged.exp().sum(-1).tolist() == pytest.approx(said["lead_logprob"].exp().tolist())  # not made one again


def test_shared_entries_spell_the_same_on_both_sides_in_one_order_and_marks_go_by_purpose() -> None:
    both = two_tokenizers.models()
    batch = indexed(both)
    ours, theirs = (exact(both[role].tokenizer, "here") for role in ("student", "teacher"))
    pairs = list(zip(*(x.tolist() for role in ("student", "teacher") if (x := batch.view(role).shared) is not None), strict=True))
    assert len(pairs) == 258 and all(ours.bytes[i] == theirs.bytes[j] for i, j in pairs)
    assert {(ours.marks[i], theirs.marks[j]) for i, j in pairs if i in ours.marks} == {("begin", "begin"), ("end", "end")}
    assert {b"he", b"ll"} == {theirs.bytes[j] for j in range(len(theirs.bytes)) if j not in dict(map(reversed, pairs))} - {b""}  # type: ignore[arg-type]


def test_shared_rows_stand_where_both_have_read_the_same_and_merged_rows_where_a_chunk_ends() -> None:
    both = two_tokenizers.models()
    batch, listen = indexed(both), Aligned(both, (ALIGN,))
    places = {"student": ([0, 2, 4, 5, 6, 7, 9], [1, 3, 4, 5, 6, 8, 9]), "teacher": ([0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 4, 5, 6])}
    for role, (first, last) in places.items():  # he ll o end; x he end
        said, every = listen.says(role, batch, ALL), dense(both.says(role, batch, ("logits",))["logits"])
        shared = batch.view(role).shared
        assert shared is not None
        torch.testing.assert_close(dense(said["chunk_logits"]), every[first][:, shared])
        torch.testing.assert_close(dense(said["last_logits"]), every[last])
        rest = dense(said["rest_logits"]).softmax(-1)
        alone = [i for i in range(every.shape[-1]) if i not in set(shared.tolist())]
        torch.testing.assert_close(rest[:, :-1], every[last].softmax(-1)[:, alone])  # of all entries, not made one again
        torch.testing.assert_close(rest[:, -1], every[last].softmax(-1)[:, shared].sum(-1))
        alone_row = listen.says(role, batch.at(torch.tensor([1])), ALL)
        torch.testing.assert_close(dense(alone_row["chunk_logits"]), dense(said["chunk_logits"])[4:])
        torch.testing.assert_close(alone_row["lead_logprob"], said["lead_logprob"][4:])


def test_tokens_after_the_last_common_byte_are_in_no_row() -> None:
    both = two_tokenizers.models()
    batch = both.batch([Row("a", {"prompt": "a", "answer": "hellox", "open": True})])
    other = both["teacher"].view([Row("a", {"prompt": "a", "answer": "helloyhe", "open": True})])
    found = ALIGN.index(replace(batch, views={**batch.views, "teacher": other}), both)
    ours, theirs = (found.view(role).chunk_of for role in ("student", "teacher"))
    assert ours is not None and theirs is not None
    assert ours.tolist() == [0, 0, 1, 1, 2, -1] and theirs.tolist() == [0, 1, 2, -1, -1]


def test_what_was_said_before_the_chunks_were_known_can_still_be_told_apart_by_rows_and_tags() -> None:
    both = two_tokenizers.models()
    batch = both.batch([replace(ROWS[0], tag="chosen"), ROWS[1]])
    before = replace(batch, said={"teacher": both.says("teacher", batch, ("logits", "target_logprob"))})
    heard = Aligned(both, (ALIGN,)).says("teacher", ALIGN.index(before, both), ALL)
    assert heard.num("chunk") == 7 and len(heard.on("chosen")["chunk_logits"]) == 4
    assert ForwardKL(per="chunk", tag="chosen")({"student": heard, "teacher": heard}).count == 4  # type: ignore[call-arg]


def test_padded_heads_and_short_ones_lend_only_what_both_know() -> None:
    both = two_tokenizers.models()
    both["teacher"].module.resize_token_embeddings(100)  # type: ignore[operator]
    shared = ALIGN.index(both.batch(ROWS[:0]), both).view("teacher").shared
    assert shared is not None and 0 < len(shared) == 100 and int(shared.max()) < 100


def test_vocabularies_that_share_nothing_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limbeck.align._chunks.spelled_alike", lambda one, other: ())
    with pytest.raises(Refused) as caught:
        ALIGN.settle(two_tokenizers.models())
    assert (caught.value.slug, caught.value.where) == ("vocab", "align.byte_chunks") and "258 and 260" in caught.value.got


def turn(*objectives: object, align: tuple[str, ...] = ("byte_chunks",)) -> Turn:
    return Turn.model_validate({"align": list(align), "objective": list(objectives)})


def refused(turn: Turn, both: Models) -> Refused:
    with pytest.raises(Refused) as caught:
        settle(turn, (), both, "main")
    return caught.value


def test_raw_ids_of_two_tokenizers_are_never_compared_whatever_the_sizes_of_the_heads() -> None:
    both = two_tokenizers.models()
    for objective in ("forward_kl", "hidden_mse"):
        error = refused(turn(objective, {"kind": "jsd", "per": "chunk"}), both)
        assert (error.slug, error.where) == ("tokenizer", "main.objective.0") and "per: chunk" in error.do and "by_position" in error.do
        assert "258 and 260 ids" in error.got
    both["student"].module.resize_token_embeddings(300)  # type: ignore[operator]
    assert both["student"].vocab == both["teacher"].vocab
    assert refused(turn("forward_kl", "sorted_l1"), both).slug == "tokenizer"
    assert settle(turn("cross_entropy", "sorted_l1", {"kind": "jsd", "per": "chunk"}), (), both, "main").align == (ALIGN,)


def test_chunks_without_an_alignment_are_refused_with_the_names_of_those_that_make_them() -> None:
    both = two_tokenizers.models()
    assert refused(turn("sorted_l1", align=()), both).do == "add align: byte_chunks or by_position"
    assert refused(turn({"kind": "forward_kl", "per": "chunk"}, align=()), both).do == "add align: byte_chunks"
    assert refused(turn("hybrid_l1", align=("by_position",)), both).do == "write align: byte_chunks"


@pytest.mark.parametrize("name", ["byte_chunks", "by_position"])
def test_an_alignment_that_nobody_hears_is_refused(name: str) -> None:
    error = refused(turn("cross_entropy", align=(name,)), two_tokenizers.models())
    assert (error.slug, error.where, error.got) == ("chunk", "main.align", f"{name} without one")


def test_two_alignments_that_make_chunks_are_refused() -> None:
    error = refused(turn("sorted_l1", align=("byte_chunks", "by_position")), two_tokenizers.models())
    assert (error.slug, error.got) == ("chunk", "byte_chunks and by_position")


def test_every_divergence_between_two_tokenizers_is_settled_by_its_unit_alone() -> None:
    both = two_tokenizers.models()
    settled = settle(turn(JSD(per="chunk", share=0.3), SortedL1()), (), both, "main")  # type: ignore[call-arg]
    assert settled.needs["student"] == settled.needs["teacher"] == ("chunk_logits", "last_logits", "lead_logprob") and settled.notes == ()
