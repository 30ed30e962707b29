import numpy as np
import pytest

from limbeck.data import _overlap
from limbeck.data._overlap import COMMON, drop_overlap, number_of, runs, text_of
from limbeck.data.base import Part, Rows
from limbeck.signals import Row


def words(start: int, num: int) -> str:
    return " ".join(f"w{i}" for i in range(start, start + num))


def text(content: str, source: str = "") -> Row:
    return Row(content, {"text": content}, source=source or content)


def left(train, held, **more) -> list[str]:
    out = drop_overlap(Rows((Part(tuple(train)),), tuple(held)), **more)
    return [row.key for row in out.held_out]


def test_thirteen_words_in_common_are_too_many_and_twelve_are_not():
    train = [text("before " + words(0, 13) + " after")]
    assert left(train, [text("x " + words(0, 13) + " y")]) == []
    assert left(train, [text("x " + words(0, 12) + " y " + words(1, 12))]) == ["x " + words(0, 12) + " y " + words(1, 12)]


def test_case_punctuation_and_line_breaks_do_not_hide_an_overlap():
    assert left([text(words(0, 13))], [text("x, " + words(0, 13).upper().replace(" ", ",\n"))]) == []


def test_the_place_of_a_run_does_not_matter_and_its_order_does():
    held = "z " * 40 + words(0, 13)
    assert left([text(words(50, 200) + " " + words(0, 13))], [text(held)]) == []
    backwards = " ".join(reversed(words(0, 13).split()))
    assert left([text(words(0, 13))], [text(backwards)]) == [backwards]


def test_short_documents_are_compared_whole():
    assert left([text("Turn on the light")], [text("turn on the light!"), text("turn on the light please")]) == ["turn on the light please"]


def test_all_pieces_of_a_document_go_with_the_one_that_overlaps_and_a_note_counts_them():
    held = [text(words(100, 20), "doc"), text(words(0, 20), "doc"), text(words(200, 20), "other")]
    out = drop_overlap(Rows((Part((text(words(0, 30)),)),), tuple(held), notes=("before",)))
    assert [row.source for row in out.held_out] == ["other"]
    assert out.notes == ("before", "overlap: 1 of 2 held-out documents (2 rows) left out: 13 words in a row are also in text to train on")


def test_nothing_is_said_where_nothing_overlaps():
    rows = Rows((Part((text("a"),)),), (text("b"),))
    assert drop_overlap(rows) is rows and drop_overlap(Rows()) == Rows()


def test_a_phrase_of_many_training_documents_is_no_overlap_unless_a_document_is_nothing_else():
    phrase = words(0, 15)
    held = [text(phrase + " " + words(500, 20)), text(phrase)]
    few, many = ([text(f"{phrase} own{i}", str(i)) for i in range(num)] for num in (COMMON, COMMON + 1))
    assert left(few, held) == [] and left(many, held) == [held[0].key]


def test_a_phrase_is_counted_once_a_document_though_it_comes_in_pieces():
    pieces = [text(f"{words(0, 15)} own{i}", "book") for i in range(50)]
    assert left(pieces, [text(words(0, 15) + " " + words(500, 20))]) == []


def test_prompts_answers_and_messages_are_read_and_what_the_system_says_is_not():
    system, said = {"role": "system", "content": words(0, 15)}, {"role": "assistant", "content": words(100, 15)}
    asked = {"role": "user", "content": words(200, 15)}
    chat = Row("chat", {"messages": (system, asked, said)})
    assert left([Row("a", {"prompt": "x", "answer": words(100, 15)})], [chat]) == []
    assert left([Row("b", {"prompt": words(200, 15)})], [chat]) == []
    assert left([Row("c", {"messages": (system, {"role": "user", "content": "y"})})], [chat]) == ["chat"]
    assert text_of(Row("d", {"messages": ({"role": "assistant", "content": None}, {"role": "user", "content": [{"type": "image"}]})})) == ""


def test_writing_without_spaces_is_compared_by_characters():
    shared = "機械学習は人工知能の一分野である"
    assert left([text("前" + shared)], [text(shared + "後の文")]) == [] and left([text(shared)], [text("別の文書にはその言葉がない")]) != []


@pytest.mark.parametrize("at_once", [1, 10, 50, 1 << 22])
def test_the_answer_does_not_depend_on_how_much_is_in_memory(at_once):
    random = np.random.default_rng(0)
    train = [text(words(int(random.integers(0, 3000)), 40)) for _ in range(20)]
    held = [text(words(int(random.integers(0, 3000)), 30)) for _ in range(30)]
    spans = [tuple(int(x[1:]) for x in (row.key.split()[0], row.key.split()[-1])) for row in train]
    kept = [
        row.key
        for row in held
        for a, b in [(int(row.key.split()[0][1:]), int(row.key.split()[-1][1:]))]
        if all(min(b, d) - max(a, c) + 1 < 13 for c, d in spans)
    ]
    assert 0 < len(kept) < 30 and left(train, held, at_once=at_once) == kept


def test_memory_is_bounded_by_so_many_runs_at_a_time(monkeypatch):
    seen = []
    real = _overlap.overlapping
    monkeypatch.setattr(_overlap, "overlapping", lambda some, rows: seen.append(sum(map(len, some.values()))) or real(some, rows))
    left([text("a")], [text(words(i * 100, 22)) for i in range(10)], at_once=25)
    assert seen == [20] * 5  # 10 runs a document, two documents fit


def test_runs_by_brute_force():
    found = words(0, 20).split()
    mask, prime = (1 << 64) - 1, 0x9E3779B97F4A7C15
    for i, run in enumerate(runs(" ".join(found)).tolist()):
        value = 0
        for word in found[i : i + 13]:
            value = (value * prime + number_of(word)) & mask
        assert run == value
    assert len(runs(" ".join(found))) == 8 and len(runs("")) == 0 and len(runs("a b")) == 1
