from collections import Counter
from types import SimpleNamespace

import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from limbeck.data.base import Part, Place, Rows, key_of
from limbeck.data.pack import Pack, binned
from limbeck.numerics import Streams
from limbeck.signals import Row
from limbeck.text.bytes_tokenizer import BOS, EOS, ByteTokenizer
from limbeck.text.spans import encode
from limbeck.text.tokens import fingerprint, specials, tokens

QUICK = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
DOCUMENTS = st.lists(st.text(alphabet="abé日🙂 \n.<|>_end", max_size=60), min_size=1, max_size=8, unique=True)
BYTES = ByteTokenizer()


def document(text: str, **more) -> Row:
    key = key_of("text", text)
    return Row(key, {"text": text}, source=key, **more)


def packed(rows, tokenizer, held_out=(), share=None, **fields) -> Rows:
    place = Place({"student": SimpleNamespace(tokenizer=tokenizer)}, Streams(0))  # type: ignore[arg-type]
    return Pack(**fields).rows(Rows((Part(tuple(rows), share),), tuple(held_out)), place)


def size(row: Row, tokenizer) -> int:
    return len(encode(row, tokenizer)[0])


def by_bin(rows: Rows) -> dict[str, list[Row]]:
    return {some[0].group: list(some) for part in rows.parts for some in part.groups}


def bare(row: Row, tokenizer) -> list[int]:
    """The ids of a piece without what the tokenizer puts around each text."""
    before, after = specials(tokenizer)
    ids = encode(row, tokenizer)[0]
    assert tuple(ids[: len(before)]) == before and tuple(ids[len(ids) - len(after) :]) == after
    return ids[len(before) : len(ids) - len(after)]


@QUICK
@given(DOCUMENTS, st.integers(8, 40), st.booleans())
def test_every_token_of_every_document_appears_once_in_order_and_the_texts_join_to_the_document(bpe, documents, length, as_bytes):
    tokenizer = BYTES if as_bytes else bpe
    documents = [text for text in documents if text]
    rows = packed([document(text) for text in documents], tokenizer, length=length) if documents else Rows()
    for text in documents:
        pieces = [row for row in rows.train if row.source == key_of("text", text)]
        assert [i for row in pieces for i in bare(row, tokenizer)] == list(tokens(text, tokenizer).ids)
        assert "".join(row.content["text"] for row in pieces) == text
        assert all(size(row, tokenizer) <= length for row in pieces)


@QUICK
@given(DOCUMENTS, st.integers(8, 40), st.integers(1, 9), st.booleans())
def test_what_is_missing_is_what_the_notes_count(bpe, documents, length, shortest, as_bytes):
    tokenizer = BYTES if as_bytes else bpe
    rows = packed([document("a" * 300), *map(document, documents)], tokenizer, length=length, shortest=min(shortest, length - 2))
    kept = sum(len(bare(row, tokenizer)) for row in rows.train)
    total = sum(len(tokens(text, tokenizer).ids) for text in ["a" * 300, *documents])
    lost = int(rows.notes[0].split("(")[1].split(" ")[0]) if rows.notes else 0
    assert kept + lost == total and (not lost or rows.notes[0].startswith("pack: "))
    assert all(len(bare(row, tokenizer)) >= min(shortest, length - 2) for row in rows.train)


@QUICK
@given(DOCUMENTS, st.integers(8, 40), st.booleans())
def test_bins_hold_at_most_the_length_keys_are_unique_and_a_second_run_gives_the_same(bpe, documents, length, as_bytes):
    tokenizer = BYTES if as_bytes else bpe
    source = [document("x"), *map(document, documents)]
    rows = packed(source, tokenizer, length=length)
    bins = by_bin(rows)
    assert "" not in bins and all(sum(size(row, tokenizer) for row in some) <= length for some in bins.values())
    assert len({row.key for row in rows.train}) == len(rows.train) == sum(map(len, bins.values()))
    assert packed(source, tokenizer, length=length) == rows
    assert not {row.key for row in rows.train} & {row.key for row in source}, "whoever changes a row changes its key"


@given(st.lists(st.integers(1, 16), min_size=1, max_size=60))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_bins_are_filled_as_well_as_best_fit_decreasing_promises(sizes):
    rows = binned([(Row(str(i), {}), n) for i, n in enumerate(sizes)], 16)
    assert [row.key for row in rows] == [str(i) for i in range(len(sizes))]
    load: Counter[str] = Counter()
    for row, n in zip(rows, sizes, strict=True):
        load[row.group] += n
    lightest = sorted(load.values())[:2]
    assert max(load.values()) <= 16 and (len(load) == 1 or sum(lightest) > 16), "two bins that fit into one"
    assert len(load) <= 11 / 9 * -(-sum(sizes) // 16) + 4 or any(n > 8 for n in sizes)


def test_bins_by_hand():
    rows = binned([(Row(key, {}), n) for key, n in (("a", 3), ("b", 10), ("c", 6), ("d", 7), ("e", 4))], 10)
    names = {row.key: row.group for row in rows}
    assert names["a"] == names["d"] and names["c"] == names["e"] and len(set(names.values())) == 3


def test_a_batch_of_bins_has_nearly_equal_work():
    rows = packed([document(str(i) + "x" * (i * 7 % 50)) for i in range(200)], BYTES, length=64)
    assert sum(size(row, BYTES) for row in rows.train) / (64 * len(by_bin(rows))) > 0.97
    assert len({row.group for row in rows.draw(0, 8, Streams(0))}) == 8


def test_no_piece_ends_within_a_character(bpe):
    text = "日本語🙂" * 10
    for tokenizer in (BYTES, bpe):
        rows = packed([document(text)], tokenizer, length=8)
        assert len(rows.train) > 5
        for row in rows.train:
            assert tokenizer.decode(bare(row, tokenizer)) == row.content["text"]


def test_what_a_tokenizer_passes_over_is_still_in_the_texts():
    import transformers

    core = tokenizers.Tokenizer(tokenizers.models.WordLevel({"the": 0, "fox": 1, "?": 2}, unk_token="?"))
    core.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    spaces = transformers.PreTrainedTokenizerFast(tokenizer_object=core, unk_token="?")
    rows = packed([document("  the  fox \n the ")], spaces, length=2)
    assert [row.content["text"] for row in rows.train] == ["  the  fox \n ", "the "]


def test_a_character_longer_than_a_piece_is_cut_all_the_same():
    rows = packed([document("🙂a")], BYTES, length=3)
    assert [bare(row, BYTES) for row in rows.train] == [[0xF0, 0x9F], [0x99, 0x82], [97]]
    assert "".join(row.content["text"] for row in rows.train) == "🙂a"


def test_each_piece_gets_the_begin_that_the_tokenizer_gives_a_text():
    rows = packed([document("abcdef")], BYTES, length=4)
    assert [encode(row, BYTES)[0] for row in rows.train] == [[BOS, 97, 98, 99], [BOS, 100, 101, 102]]


def test_another_tokenizer_reads_the_text_of_the_piece(bpe):
    (row, *_) = packed([document("the fox jumps over the lazy dog")], bpe, length=4).train
    assert encode(row, bpe)[0] == list(row.content["ids"][fingerprint(bpe)])
    assert encode(row, BYTES)[0] == [BOS, *row.content["text"].encode()]


def test_tag_source_and_share_are_kept_and_parts_are_not_mixed(place):
    rows = Rows((Part((document("a" * 10, tag="one"),), 0.25), Part((document("b" * 10, tag="two"),), 0.75)))
    out = Pack(length=6).rows(rows, place(BYTES))
    assert [part.share for part in out.parts] == [0.25, 0.75]
    assert [{row.tag for row in part.rows} for part in out.parts] == [{"one"}, {"two"}]
    assert {row.source for row in out.parts[0].rows} == {key_of("text", "a" * 10)}


def test_sources_that_are_not_mixed_are_drawn_by_bins_and_no_longer_by_documents(place):
    rows = Rows((Part((document("a" * 700),)), Part(tuple(document(f"{i:02d}b") for i in range(100)))))
    out = Pack(length=8).rows(rows, place(BYTES))
    assert [len(part.groups) for part in out.parts] == [100, 50] and out.in_block == [683, 341]  # 1,024 in proportion 2 : 1


def test_held_out_rows_are_cut_alike_and_stay_alone():
    rows = packed([document("a" * 10)], BYTES, [document("b" * 10), document("c")], length=6)
    assert [row.content["text"] for row in rows.held_out] == ["bbbbb", "bbbbb", "c"]
    assert [row.group for row in rows.held_out] == [""] * 3 and len({row.key for row in rows.held_out}) == 3


def test_rows_that_belong_together_stay_together_and_are_not_joined_by_others():
    pair = [Row(name, {"prompt": "q", "answer": name}, tag=name, group="pair") for name in ("chosen", "rejected")]
    rows = packed([document("x"), *pair, document("y")], BYTES, length=20)
    assert [row.key for row in by_bin(rows)["pair"]] == ["chosen", "rejected"] and len(by_bin(rows)) == 2


def test_rows_within_the_length_are_untouched_but_for_their_bin(bpe):
    row = Row("k", {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, tag="t", source="s")
    (out,) = packed([row], bpe, length=100).train
    assert (out.key, out.content, out.tag, out.source) == ("k", row.content, "t", "s") and out.group


def test_a_long_answer_loses_its_end_and_has_no_end_of_text():
    rows = packed([Row("k", {"prompt": "ab", "answer": "cdéfg"}, source="s")], BYTES, length=7)
    (row,) = rows.train
    assert encode(row, BYTES) == ([BOS, *"abcdé".encode()], [False] * 3 + [True] * 4)
    assert row.content["answer"] == "cdé" and row.content["open"] and row.key != "k" and row.source == "s"
    assert rows.notes == ("pack: 1 rows cut at their end to 7 tokens",)
    (row,) = packed([Row("k", {"prompt": "ab", "answer": "cdéfg"})], BYTES, length=6).train
    assert encode(row, BYTES)[0] == [BOS, *b"abcd"], "half a character is not kept"


def test_an_answer_that_fits_but_for_its_end_of_text_is_whole_and_open(bpe):
    (row,) = packed([Row("k", {"prompt": "ab", "answer": "cd"})], BYTES, length=5).train
    assert encode(row, BYTES)[0] == [BOS, *b"abcd"] and row.content["answer"] == "cd"
    other = encode(row, bpe)[0]
    assert bpe.decode(other) == "abcd" and EOS not in other and bpe.eos_token_id not in other


def test_rows_of_which_no_answer_is_left_are_dropped_and_counted(bpe):
    long = [
        Row("k", {"prompt": "a" * 50, "answer": "b"}),
        Row("p", {"prompt": "c" * 50}),
        Row("m", {"messages": [{"role": "user", "content": "d" * 50}, {"role": "assistant", "content": "e"}]}),
    ]
    rows = packed([*long, Row("ok", {"prompt": "a", "answer": "b"})], bpe, length=20)
    assert [row.key for row in rows.train] == ["ok"] and rows.notes == ("pack: 3 rows dropped: no answer within 20 tokens",)


def talk(*said: str) -> Row:
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]
    return Row("k", {"messages": tuple(messages)}, source="s")


@QUICK
@given(st.lists(st.text(alphabet="abé日🙂 \n", max_size=12), min_size=2, max_size=6), st.integers(12, 90))
def test_a_long_chat_is_a_beginning_of_itself_that_ends_with_something_asked(bpe, said, length):
    row = talk(*said)
    ids, asked = encode(row, bpe)
    out = packed([Row("x", {"prompt": "a", "answer": "b"}), row], bpe, length=length).train[1:]
    if len(ids) <= length:
        assert out[0].content == row.content
    elif not out:
        assert sum(asked[:length]) <= 4, "a character that is cut may be all there was"
    else:
        cut, cut_asked = encode(out[0], bpe)
        assert "\ufffd" not in bpe.decode(cut), "half a character"
        assert len(cut) <= length and cut == ids[: len(cut)] and cut_asked == asked[: len(cut)] and cut_asked[-1]
        assert not any(asked[len(cut) + 4 : length]), "more could have been kept"
        turns = out[0].content["messages"]
        assert turns[:-1] == row.content["messages"][: len(turns) - 1]
        assert row.content["messages"][len(turns) - 1]["content"].startswith(turns[-1]["content"])


def test_a_chat_cut_within_a_turn_reads_alike_for_another_tokenizer(bpe):
    other = type(bpe)(tokenizer_object=tokenizers.Tokenizer.from_str(bpe.backend_tokenizer.to_str()), eos_token="<|im_end|>")
    other.chat_template = bpe.chat_template.replace("<|im_start|>", "<|endoftext|>")
    assert fingerprint(other) != fingerprint(bpe)
    (row,) = packed([talk("the fox", "the lazy dog jumps over the fox")], bpe, length=24).train
    assert row.content["open"] and bpe.decode(encode(row, bpe)[0]).endswith("assistant\n" + row.content["messages"][1]["content"])
    assert other.decode(encode(row, other)[0]) == bpe.decode(encode(row, bpe)[0]).replace("<|im_start|>", "<|endoftext|>")


def test_a_chat_cut_after_a_turn_keeps_its_end_of_turn(bpe):
    row = talk("a", "b", "c" * 40, "d")
    (out,) = packed([row], bpe, length=30).train
    assert out.content["messages"] == row.content["messages"][:2] and not out.content["open"]
    assert bpe.decode(encode(out, bpe)[0]).endswith("assistant\nb<|im_end|>")


def test_a_chat_cut_before_its_last_end_of_turn_has_all_words_and_is_open(bpe):
    row = talk("a", "b", "c" * 40, "d")
    (whole,) = packed([row], bpe, length=30).train
    num = size(whole, bpe)
    (out,) = packed([row], bpe, length=num - 1).train
    assert out.content["messages"] == row.content["messages"][:2] and out.content["open"]
    assert encode(out, bpe)[0] == encode(whole, bpe)[0][:-1] and bpe.decode(encode(out, bpe)[0]).endswith("assistant\nb")


def test_a_turn_that_the_template_has_rewritten_is_left_out_whole():
    core = tokenizers.Tokenizer(tokenizers.models.BPE())
    core.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.train_from_iterator(
        ["a"],
        tokenizers.trainers.BpeTrainer(
            special_tokens=["<|im_end|>"], show_progress=False, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()
        ),
    )
    import transformers

    shouting = transformers.PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>")
    shouting.chat_template = (
        "{% for m in messages %}{{ m.role + ':' + (m.content | upper if m.role == 'assistant' else m.content) + '<|im_end|>' }}"
        "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
    )
    (out,) = packed([talk("a", "1", "b", "long enough")], shouting, length=40).train
    assert [m["content"] for m in out.content["messages"]] == ["a", "1"]
    assert encode(out, shouting)[0] == shouting.encode("user:a<|im_end|>assistant:1<|im_end|>")


def test_a_piece_shorter_than_the_shortest_is_dropped_and_counted():
    rows = packed([document("a" * 10), document("bc")], BYTES, length=5, shortest=3)
    assert [row.content["text"] for row in rows.train] == ["aaaa", "aaaa"]
    assert rows.notes == ("pack: 2 pieces of fewer than 3 tokens dropped (4 tokens)",)


def test_a_part_of_which_nothing_is_left_is_no_part(place):
    rows = Pack(length=8, shortest=3).rows(Rows((Part((document("a"),)), Part((document("abcd"),)))), place(BYTES))
    assert len(rows.parts) == 1 and len(rows.draw(0, 3, Streams(0))) == 3


def test_nothing_left_to_train_on_is_refused(refused):
    assert refused(lambda: packed([document("ab")], BYTES, length=8, shortest=3)) == (
        "data",
        "data pack",
        "something to train on within 8 tokens",
        "nothing of 1 rows",
        "raise length, or lower shortest",
    )


def test_a_length_without_room_for_text_is_refused(refused):
    class Framed(ByteTokenizer):
        def encode(self, text, add_special_tokens=True):
            return super().encode(text, add_special_tokens) + [EOS] * add_special_tokens

    assert refused(lambda: packed([document("ab")], Framed(), length=2)) == (
        "value",
        "data pack  length",
        "more than the 2 tokens around each text",
        "length: 2",
        "raise length",
    )


def test_a_student_without_a_tokenizer_is_refused(place, refused):
    expected = ("tokenizer", "data pack", "a student with a tokenizer", "one without", "remove pack: it cuts text")
    assert refused(lambda: Pack(length=8).rows(Rows(), place(None))) == expected
    assert refused(lambda: Pack(length=8).rows(Rows(), Place({}, Streams(0)))) == expected  # type: ignore[arg-type]


def test_rows_that_are_no_text_are_refused(refused):
    assert refused(lambda: packed([Row("k", {"pixels": 0})], BYTES, length=8))[:2] == ("row", "row k")


@pytest.mark.parametrize("fields", [{"length": 1}, {"length": 8, "shortest": 0}, {}])
def test_impossible_lengths_are_no_recipe(fields, refused):
    from limbeck.component import validate

    assert refused(lambda: validate(Pack, fields))[0] in ("value", "key")
