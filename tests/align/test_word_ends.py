"""Chunks of two tokenizers with the ends of words: added to what is compared, and asked of the teacher before chunks are joined."""

import math
from typing import Any

import pytest
import torch

from limbeck.align.base import Aligned
from limbeck.align.byte_chunks import ByteChunks
from limbeck.check import check
from limbeck.check.models import family_of
from limbeck.errors import Refused
from limbeck.model.base import Models
from limbeck.model.text import AT_ONCE, of_labels
from limbeck.objective.chunk_likelihood import ChunkLikelihood
from limbeck.signals import Batch, Logits, Row, dense
from limbeck.text.bytes_of import boundaries, exact
from limbeck.text.chunks import Piece, laid, merged
from limbeck.train.settle import settle
from limbeck.train.stage import Turn
from limbeck.train.window import Running, count, indexed, window
from two_tokenizers import models

TEXTS = (("he", "hello he llama"), ("a", "x he"), ("a", "hell"))
ROWS = [Row(f"row {i}", {"prompt": prompt, "answer": answer}) for i, (prompt, answer) in enumerate(TEXTS)]
TAU, FLOOR = 100.0, 1e-6


def turn(**align: Any) -> Turn:
    return Turn(batch=3, align=(ByteChunks(**align),), objective=(ChunkLikelihood(tau=TAU, floor=FLOOR),))  # type: ignore[call-arg]


def laid_out(both: Models, rows: list[Row] = ROWS, **align: Any) -> tuple[Turn, Any, Batch]:
    """A turn, settled, and a window of it that has been indexed."""
    one = turn(**align)
    settled = settle(one, (), both, "main")
    return one, settled, indexed(both.batch(rows), both, settled.align, settled.needs)


def word_ends(role: Any) -> torch.Tensor:
    """Which entries of a head begin where a word has ended."""
    spelled = exact(role.tokenizer, "here")
    begins = {i for i, b in enumerate(spelled.bytes) if b[:1] in (b" ", b"\t", b"\n")}
    return torch.tensor([i in begins or i in spelled.marks for i in range(role.vocab or 0)])


def brute(both: Models, role: str, rows: list[Row], chunks: list[list[tuple[int, ...]]], debias: bool) -> list[float]:
    """Log-probability of every chunk of the rows, from the whole softmax of the module itself, row by row in double precision."""
    one, out = both[role], []
    mask = word_ends(one)
    for row, own in zip(rows, chunks, strict=True):
        view = one.view([row])
        ids = view.inputs["ids"]
        asked = set(view.targets.tolist())
        with torch.no_grad():
            p = one.module(ids[None]).logits[0].double().softmax(-1)
        for places in own:
            value = sum(math.log(p[place - 1, ids[place]]) for place in places)
            after = places[-1] + 1
            out.append(value + (math.log((p[after - 1] * mask).sum()) if debias and after in asked else 0.0))
    return out


def chunk_places(both: Models, rows: list[Row], join: float | None) -> list[tuple[list[tuple[int, ...]], list[tuple[int, ...]]]]:
    """Chunks of each row by the definition: cut at common ends, then joined where the teacher's module gives a word little chance to end."""
    spelled, out = [exact(both[role].tokenizer, "here") for role in ("student", "teacher")], []
    for row in rows:
        views = [both[role].view([row]) for role in ("student", "teacher")]
        chunks = list(laid(tuple(Piece(v.inputs["ids"].tolist(), v.asked.tolist(), v.shift) for v in views), spelled))  # type: ignore[union-attr, arg-type]
        with torch.no_grad():
            p = both["teacher"].module(views[1].inputs["ids"][None]).logits[0].double().softmax(-1)
        mask = word_ends(both["teacher"])
        joined: list[Any] = []
        for chunk in chunks:
            last = joined[-1] if joined else None
            if last and join is not None and float(p[last[1][-1]][mask].sum()) <= join and last[1][-1] + 1 == chunk[1][0]:
                joined[-1] = (last[0] + chunk[0], last[1] + chunk[1])
            else:
                joined.append(chunk)
        out.append(([a for a, _ in joined], [b for _, b in joined]))
    return out


def middling(both: Models) -> float:
    """A probability that the teacher exceeds after some chunks, and not after others."""
    said = both.says("teacher", both.batch(ROWS), ("boundary_logprob",))["boundary_logprob"].exp().sort().values
    middle = said[len(said) // 4 : -len(said) // 4]
    widest = int(middle.diff().argmax())
    return float(middle[widest : widest + 2].mean())  # between two of them: rounding decides nothing


@pytest.mark.parametrize("debias", [False, True])
@pytest.mark.parametrize("join", [False, True])
@pytest.mark.parametrize("role", ["student", "teacher"])
def test_what_chunks_say_is_what_the_definition_says(debias: bool, join: bool, role: str) -> None:
    both = models()
    merge = middling(both) if join else None
    _, settled, batch = laid_out(both, debias=debias, merge=merge)
    with torch.no_grad():
        said = Aligned(both, settled.align).says(role, batch, ("chunk_logprob",))["chunk_logprob"]
    places = chunk_places(both, ROWS, merge)
    expected = brute(both, role, ROWS, [each[role == "teacher"] for each in places], debias)
    torch.testing.assert_close(said.double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-6)
    assert not join or len(expected) < sum(len(ours) for ours, _ in chunk_places(both, ROWS, None))


def test_the_loss_of_a_window_is_the_papers_over_the_chunks_that_remain() -> None:
    both = models()
    merge = middling(both)
    one, settled, batch = laid_out(both, debias=True, merge=merge)
    running = Running(one, (), [], settled, [None])
    with both.turn("student"):
        (loss,) = window(running, both, batch, 0, count(one, batch))
    places = chunk_places(both, ROWS, merge)
    ours, theirs = (brute(both, role, ROWS, [each[side] for each in places], True) for side, role in enumerate(("student", "teacher")))

    def cross(a: float, b: float) -> float:
        return -(math.exp(a) * b + (1 - math.exp(a)) * math.log1p(-math.exp(b)))

    pairs = [(t / TAU - FLOOR, s / TAU - FLOOR) for s, t in zip(ours, theirs, strict=True)]
    expected = sum(cross(a, b) - cross(a, a) for a, b in pairs)
    apart = sum(len(each[0]) for each in chunk_places(both, ROWS, None))
    assert loss.count == len(pairs) < apart  # the reference divides by those that were joined too
    assert loss.total.item() == pytest.approx(expected, rel=1e-4, abs=1e-9)


def test_a_word_may_end_before_a_first_byte_of_space_never_after_a_last_one() -> None:
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "Ġa", "aĠ", "ĉb", "Ċ"]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(BPE(vocab, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.add_special_tokens(["<end>"])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")
    names = {i: piece for piece, i in fast.get_vocab().items()}
    assert {names[i] for i in boundaries(fast, "here")} == {"Ġ", "ĉ", "Ċ", "Ġa", "ĉb", "<end>"}


def test_chunks_are_joined_from_the_left_and_never_over_a_gap() -> None:
    chunks = (((0,), (0,)), ((1,), (1,)), ((2,), (2,)), ((4,), (3,)), ((5,), (5,)))
    assert merged(chunks, [True] * 5) == chunks
    assert merged(chunks, [False, True, True, True, True]) == (((0, 1), (0, 1)), *chunks[2:])
    assert merged(chunks, [False] * 5) == (((0, 1, 2), (0, 1, 2)), chunks[3], chunks[4])  # 3 is missing on one side, 4 on the other
    assert merged((), []) == ()


def test_neither_rows_nor_answers_are_joined() -> None:
    both = models()
    _, _, batch = laid_out(both, merge=1 - 1e-9, debias=True)
    view = batch.view("student")
    assert view.chunk_row is not None and view.chunk_row.tolist() == [0, 1, 2]  # all that is asked for in a row, and no more
    assert view.chunk_end is not None and (view.chunk_end == -1).all()  # nothing that is asked for follows
    spelled = [exact(both[role].tokenizer, "here") for role in ("student", "teacher")]
    ids = list(b"he")
    sides = tuple(Piece([*ids, *ids, *ids], [True, True, False, False, True, True], 0) for _ in range(2))
    assert merged(laid(sides, [spelled[0]] * 2), [False] * 4) == (((0, 1), (0, 1)), ((4, 5), (4, 5)))  # type: ignore[arg-type]


def test_the_contracts_hold_with_both() -> None:
    both = middling(models())
    found = check(ByteChunks(debias=True, merge=both)).rows
    assert [str(row) for row in found if row.status == "failed"] == []


def test_the_teacher_is_asked_once_and_only_while_it_is_frozen() -> None:
    both, asked = models(), []
    says = both["teacher"].says
    both["teacher"].says = lambda view, names, inject: (asked.append(names), says(view, names, inject))[1]  # type: ignore[method-assign]
    one, settled, batch = laid_out(both, debias=True, merge=0.1)
    running = Running(one, (), [], settled, [None])
    with both.turn("student"):
        window(running, both, batch, 0, count(one, batch))
    assert asked == [("target_logprob", "boundary_logprob")]
    swapped = (ChunkLikelihood(seats={"student": "teacher", "teacher": "student"}),)  # type: ignore[call-arg]
    taught = Turn.model_validate({**dict(one), "trains": "teacher", "objective": swapped})
    with pytest.raises(Refused) as caught:
        settle(taught, (), both, "main")
    assert caught.value.where == "main.align" and "gets gradients" in caught.value.got
    both["teacher"].offers = both["teacher"].offers - {"boundary_logprob"}
    with pytest.raises(Refused) as caught:
        settle(turn(merge=0.1), (), both, "main")
    assert caught.value.slug == "need" and "boundary_logprob" in caught.value.expected


def test_log_probabilities_are_made_in_parts_whose_logits_are_not_kept() -> None:
    role = family_of("llama", 0, context=2 * AT_ONCE)
    view = role.view([Row("a", {"text": "a b" * (AT_ONCE // 2)})])
    logits, label = (role.says(view, ("logits", "label"), {})[name] for name in ("logits", "label"))
    hidden, sizes = logits.hidden.clone().requires_grad_(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (sizes.append(x.numel()), x)[1], lambda x: x):
        said = of_labels(Logits(hidden, role.head, True), label, role.boundary(view.device)).unbind(-1)
    log_q = dense(Logits(hidden, role.head, True)).log_softmax(-1)
    expected = log_q.gather(-1, label[:, None])[:, 0], log_q[:, list(boundaries(role.tokenizer, "here"))].logsumexp(-1)
    assert len(label) > AT_ONCE and max(sizes) < AT_ONCE * (role.vocab or 0)
    for ours, theirs in zip(said, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
        found, same = (torch.autograd.grad(x.sum(), hidden, retain_graph=True)[0] for x in (ours, theirs))
        torch.testing.assert_close(found, same)


def test_nothing_depends_on_the_other_rows_of_a_window() -> None:
    both = models()
    align = {"debias": True, "merge": middling(both)}
    _, settled, batch = laid_out(both, **align)
    listen = Aligned(both, settled.align)
    with torch.no_grad():
        whole = listen.says("student", batch, ("chunk_logprob",))["chunk_logprob"]
        for i, row in enumerate(ROWS):
            _, _, alone = laid_out(both, [row], **align)
            mine = batch.view("student").chunk_row == i
            torch.testing.assert_close(listen.says("student", alone, ("chunk_logprob",))["chunk_logprob"], whole[mine])
            torch.testing.assert_close(listen.says("student", batch.at(torch.tensor([i])), ("chunk_logprob",))["chunk_logprob"], whole[mine])
