"""One text of two tokenizers, laid side by side: random Unicode, begins, marks, chats, and spaces that a tokenizer puts in front."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.signals import Row
from limbeck.text.bytes_of import exact
from limbeck.text.bytes_tokenizer import ByteTokenizer
from limbeck.text.chunks import Chunks, Piece, covered, laid, stretches
from limbeck.text.spans import encode
from two_tokenizers import bpe

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA = (
    "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% else %}{{ m['content'] }}</s>{% endif %}{% endfor %}"
)
WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
PAIRS = (("he", "ll"), ("lo", "Ã©", "Ġh"))
"""Of letters, as byte-level tokenizers write bytes: é and a space before h are in the second."""


def sides(row: Row, tokenizers: Any) -> tuple[Piece, Piece]:
    """A row as both read it."""
    one, other = (Piece(*encode(row, tokenizer), 1) for tokenizer in tokenizers)
    return one, other


def cut(row: Row, tokenizers: Any) -> Chunks:
    return laid(sides(row, tokenizers), [exact(tokenizer, "here") for tokenizer in tokenizers])


def said(row: Row, tokenizer: Any) -> list[bytes]:
    """The bytes of each token of a row."""
    spelled = exact(tokenizer, "here")
    return [spelled.bytes[i] for i in encode(row, tokenizer)[0]]


def ends(row: Row, tokenizer: Any) -> list[set[int]]:
    """Bytes up to the end of each token, from the beginning of its stretch."""
    pieces = said(row, tokenizer)
    runs = stretches(encode(row, tokenizer)[1])
    return [{sum(len(pieces[i]) for i in run[: n + 1]) for n, place in enumerate(run) if pieces[place]} for run in runs]


def brute(row: Row, tokenizers: Any) -> list[list[int]]:
    """Lengths of the stretches of text between common ends, by stretch, found by trying each byte."""
    found = []
    for ours, theirs in zip(*(ends(row, tokenizer) for tokenizer in tokenizers), strict=True):
        common = [n for n in range(1, max(ours, default=0) + 1) if n in ours and n in theirs]
        found.append([b - a for a, b in zip([0, *common], common, strict=False)])
    return found


def held(row: Row, tokenizers: Any, chunks: Chunks) -> list[tuple[bytes, bytes]]:
    """What each chunk spells on either side."""
    pieces = [said(row, tokenizer) for tokenizer in tokenizers]
    return [(b"".join(pieces[0][i] for i in a), b"".join(pieces[1][j] for j in b)) for a, b in chunks]


@settings(max_examples=100, deadline=None)
@given(WORDS, WORDS)
def test_answers_of_random_text_are_cut_at_every_common_end(prompt: str, answer: str) -> None:
    for tokenizers in ((bpe(pieces=PAIRS[0]), bpe(pieces=PAIRS[1])), (ByteTokenizer(), bpe())):
        row = Row(f"{prompt}-{answer}-{len(tokenizers[0])}", {"prompt": prompt, "answer": answer})
        texts = held(row, tokenizers, cut(row, tokenizers))
        assert all(a == b for a, b in texts)
        assert [len(a) for a, _ in texts if a] == brute(row, tokenizers)[0]
        assert texts[-1] == (b"", b"")  # the end of text, which both have, is a chunk of its own
        assert b"".join(a for a, _ in texts) == answer.encode()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=3))
def test_chats_in_two_templates_are_laid_answer_by_answer(turns: list[tuple[str, str]]) -> None:
    """Templates write other marks around the same answers; what a template trims is text of one side alone, and loses nothing else."""
    one = bpe(pieces=PAIRS[0], marks=("<|im_start|>", "<|im_end|>"), chat=CHATML)
    other = bpe(pieces=PAIRS[1], marks=("<s>", "</s>"), chat=LLAMA)
    spoken = [(role, text) for n, (asks, says) in enumerate(turns) for role, text in (("user", f"{n}{asks}"), ("assistant", says))]
    messages = [{"role": role, "content": text} for role, text in spoken]
    row = Row(repr(turns), {"messages": messages})
    chunks = cut(row, (one, other))
    texts = held(row, (one, other), chunks)
    assert all(a == b for a, b in texts)
    assert b"".join(a for a, _ in texts) == "".join(says for _, says in turns).encode()
    assert sum(not a for a, _ in texts) == len(turns)  # each end of turn, by its purpose
    runs = [stretches(piece.asked) for piece in sides(row, (one, other))]
    for a, b in chunks:
        assert [[set(places) <= set(run) for run in r].count(True) for places, r in ((a, runs[0]), (b, runs[1]))] == [1, 1]
        assert [set(a) <= set(run) for run in runs[0]].index(True) == [set(b) <= set(run) for run in runs[1]].index(True)


@pytest.mark.parametrize("begins", [(False, False), (True, False), (False, True), (True, True)])
def test_the_first_chunk_of_a_text_stays_only_where_both_begin_alike(begins: tuple[bool, bool]) -> None:
    tokenizers = bpe(begins[0], PAIRS[0]), bpe(begins[1], PAIRS[1])
    row = Row(f"begins {begins}", {"text": "hello there"})
    texts = [a for a, _ in held(row, tokenizers, cut(row, tokenizers))]
    assert texts == [b"he"] * all(begins) + [b"llo", b" ", b"t", b"he", b"r", b"e"]


def test_a_mark_of_one_side_alone_loses_only_itself() -> None:
    """The reference loses every chunk after it."""
    one, other = bpe(pieces=PAIRS[0], marks=("<begin>", "<end>", "<tool>")), bpe(pieces=PAIRS[1])
    spelled = [exact(tokenizer, "here") for tokenizer in (one, other)]
    ours, theirs = (encode(Row(text, {"prompt": "a", "answer": text}), tokenizer) for text, tokenizer in (("he<tool>hello", one), ("hehello", other)))
    both = Piece(*ours, 1), Piece(*theirs, 1)
    chunks = laid(both, spelled)
    assert one.convert_tokens_to_ids("<tool>") in ours[0]
    assert [b"".join(spelled[0].bytes[ours[0][i]] for i in a) for a, _ in chunks] == [b"he", b"he", b"llo", b""]
    assert covered(chunks, both, spelled) == (7, 7)


def test_bytes_in_chunks_are_counted_against_all_that_are_asked_for() -> None:
    tokenizers = bpe(True, PAIRS[0]), bpe(False, PAIRS[1])
    row = Row("counted", {"text": "hello"})  # he ll o, and h e l lo: of he, h cannot be predicted where no begin stands before it
    spelled = [exact(tokenizer, "here") for tokenizer in tokenizers]
    assert covered(cut(row, tokenizers), sides(row, tokenizers), spelled) == (3, 5)
    assert covered((), sides(row, tokenizers), spelled) == (0, 5)
