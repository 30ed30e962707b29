import json
import struct
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.component import canonical_json, validate
from limbeck.data.base import BLOCK, Part, Place, Rows
from limbeck.data.mix import Mix, refuse_classes
from limbeck.errors import Refused
from limbeck.numerics import Streams
from limbeck.signals import Row
from limbeck.text.bytes_tokenizer import ByteTokenizer


@pytest.fixture
def folder(tmp_path):
    """Files of 3, 50 and 7 documents, one a line: a0, a1, ...; b0, ...; c0, ..."""
    for name, num in (("a", 3), ("b", 50), ("c", 7)):
        (tmp_path / f"{name}.txt").write_text("\n".join(f"{name}{i}" for i in range(num)))
    return tmp_path


def lines(name: str, **more) -> dict:
    return {"kind": "text", "path": f"{name}.txt", "separator": "\n", "split": 0, **more}


def mixed(place: Place, *parts, before: Rows = Rows()) -> Rows:  # noqa: B008  (a frozen value)
    return validate(Mix, {"parts": list(parts)}).rows(before, place)


def drawn(rows: Rows, first: int, num: int, seed: int = 0) -> list[str]:
    return [row.content["text"] for row in rows.draw(first, num, Streams(seed))]


def test_every_block_of_draws_has_the_shares_exactly_whatever_the_sizes(place, folder):
    rows = mixed(place(), {"data": [lines("a")], "share": 5}, {"data": [lines("b")], "share": 2}, {"data": [lines("c")], "share": 1})
    for block in range(3):
        assert Counter(text[0] for text in drawn(rows, block * BLOCK, BLOCK)) == {"a": 640, "b": 256, "c": 128}


def test_within_a_part_all_rows_come_before_any_comes_again(place, folder):
    rows = mixed(place(), {"data": [lines("a")], "share": 1}, {"data": [lines("b")], "share": 3})
    some = [text for text in drawn(rows, 0, 2000) if text[0] == "a"]
    for i in range(0, len(some) - 3, 3):
        assert sorted(some[i : i + 3]) == ["a0", "a1", "a2"]
    others = [text for text in drawn(rows, 0, 2000) if text[0] == "b"]
    assert set(map(tuple, (sorted(others[i : i + 50]) for i in range(0, 1450, 50)))) == {tuple(sorted(f"b{i}" for i in range(50)))}


def test_draws_can_be_resumed_anywhere_and_depend_on_the_seed(place, folder):
    rows = mixed(place(), {"data": [lines("a")], "share": 0.3}, {"data": [lines("b")], "share": 0.7})
    whole = drawn(rows, 0, 2200)
    for first in (1023, 1025, 2047):
        assert drawn(rows, first, 2200 - first) == whole[first:]
    assert drawn(rows, 0, 200, seed=1) != whole[:200]


@settings(max_examples=10, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(1, 9), st.floats(0.05, 20)), min_size=2, max_size=5))
def test_the_share_of_each_part_is_within_a_draw_of_what_was_asked(parts):
    rows = Rows(tuple(Part(tuple(Row(f"{i}-{n}", {"text": str(i)}) for n in range(size)), share) for i, (size, share) in enumerate(parts)))
    count = Counter(drawn(rows, BLOCK, BLOCK))
    total = sum(share for _, share in parts)
    assert sum(count.values()) == BLOCK
    assert all(abs(count[str(i)] - BLOCK * share / total) <= 1 for i, (_, share) in enumerate(parts))


def test_shares_hold_after_pack_has_made_bins(place, folder):
    recipe = {"parts": [{"data": [lines("a")], "share": 1}, {"data": [lines("b")], "share": 1}]}
    rows = validate(Mix, recipe).rows(Rows(), place(ByteTokenizer()))
    from limbeck.data.pack import Pack

    out = Pack(length=12).rows(rows, place(ByteTokenizer()))
    assert [len(part.groups) for part in out.parts] == [1, 16] and out.in_block == [512, 512]  # of 4 + 4 + 4, and so on


def test_steps_of_a_part_change_its_rows_alone_and_mixtures_may_be_nested(place, folder):
    packed = {"data": [lines("a"), {"kind": "pack", "length": 3}], "share": 1, "tag": "x"}
    inner = {"kind": "mix", "parts": [packed, {"data": [lines("b")], "share": 3}]}
    rows = mixed(place(ByteTokenizer()), {"data": [inner], "share": 1, "tag": "y"}, {"data": [lines("c")], "share": 1})
    assert rows.in_block == [128, 384, 512]
    assert [{row.tag for row in part.rows} for part in rows.parts] == [{"x"}, {"y"}, {""}]
    assert [any("ids" in row.content for row in part.rows) for part in rows.parts] == [True, False, False]


def test_a_tag_is_written_to_rows_without_one_held_out_ones_too(place, tmp_path):
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": f"{i}", **({"tag": "own"} if i % 2 else {})}) for i in range(100)))
    rows = mixed(place(), {"data": [{"kind": "jsonl", "path": "a.jsonl", "split": 0.3}], "tag": "given"})
    for some in (rows.train, rows.held_out):
        assert {(int(row.content["text"]) % 2, row.tag) for row in some} == {(0, "given"), (1, "own")}


def test_two_sources_in_one_part_share_its_draws_by_their_rows(place, folder):
    rows = mixed(place(), {"data": [lines("a"), lines("c")], "share": 1}, {"data": [lines("b")], "share": 1})
    assert rows.in_block == [154, 358, 512]  # 3 : 7 of the half


def test_sources_outside_of_a_mixture_count_by_their_rows(place, folder):
    other = Part(tuple(Row(str(i), {"text": "z"}) for i in range(53)))
    rows = mixed(place(), {"data": [lines("a")], "share": 1}, {"data": [lines("b")], "share": 1}, before=Rows((other,)))
    assert rows.in_block == [512, 256, 256]  # 53 rows against 3 + 50


def test_provenance_notes_and_held_out_rows_of_all_parts_are_kept(place, folder):
    rows = mixed(place(), {"data": [lines("a", split=0.5)]}, {"data": [lines("b", split=0.01, licence="CC0-1.0")]}, before=Rows(notes=("before",)))
    assert [facts["name"] for facts in rows.provenance] == ["a.txt", "b.txt"] and rows.provenance[1]["licence"] == "CC0-1.0"
    assert rows.notes[0] == "before" and {row.split for row in rows.held_out} == {"held_out"}
    assert len(rows.train) + len(rows.held_out) == 53


def test_needs_are_those_of_all_steps(monkeypatch, folder):
    from limbeck.data.text import Text

    monkeypatch.setattr(Text, "needs", property(lambda self: {"teacher": ("text", self.path)}))
    mix = validate(Mix, {"parts": [{"data": [lines("a"), lines("b")]}, {"data": [lines("a")]}]})
    assert mix.needs == {"teacher": ("text", "a.txt", "b.txt")}


def test_a_share_too_small_to_be_drawn_is_refused(place, folder, refused):
    error = refused(lambda: mixed(place(), {"data": [lines("a")], "share": 9999}, {"data": [lines("b")], "share": 1}))
    assert error == (
        "value",
        "data mix  parts",
        "shares that are drawn once in 1,024 draws",
        "1.0 of 10000.0",
        "raise the smallest share, or remove its part",
    )


def test_a_part_without_rows_is_refused(place, refused):
    error = refused(lambda: mixed(place(), {"data": ["python_topics"]}, {"data": [{"kind": "pack", "length": 8}]}), code=2)
    assert error[0] == "tokenizer"
    error = refused(lambda: mixed(place(ByteTokenizer()), {"data": [{"kind": "pack", "length": 8}]}))
    assert error == ("data", "data mix  parts.0", "rows to train on", "none", "add a source, or remove the part")


def test_a_step_that_changes_windows_belongs_after_the_mix(place, folder, refused, monkeypatch):
    from limbeck.data.text import Text

    monkeypatch.setattr(Text, "window", lambda self, batch, place, memory: batch, raising=False)
    error = refused(lambda: mixed(place(), {"data": [lines("a")]}))
    assert error == ("key", "data mix  parts.0.data.0", "a step that makes rows", "one that changes windows", "write it after the mix")


@pytest.mark.parametrize("share", [0, -1, float("inf"), float("nan")])
def test_impossible_shares_are_refused(share, refused):
    assert refused(lambda: validate(Mix, {"parts": [{"data": ["python_topics"], "share": share}]}))[1] == "parts.0.share"


def test_a_misspelt_step_in_a_part_is_named_with_its_path(refused):
    error = refused(lambda: validate(Mix, {"parts": [{"data": ["python_topic"]}]}))
    assert error[0] == "kind" and error[1] == "parts.0.data.0" and error[4] == "write python_topics"


def test_a_mixture_is_written_and_read_again_with_its_parts():
    mix = Mix.example()
    again = Mix.model_validate(mix.model_dump(mode="json"))
    assert again == mix and canonical_json(again) == canonical_json(mix)


def images(*tags: str):
    """A part of pictures whose classes are called so."""
    return Rows((Part(tuple(Row(tag, {"pixels": i, "label": i}, tag) for i, tag in enumerate(tags))),))


def test_images_whose_classes_are_counted_otherwise_are_refused():
    refuse_classes([images("cat", "dog"), images("cat", "dog", "fox"), images("cat")])
    refuse_classes([Rows((Part((Row("a", {"text": "a", "label": 0}, "x"),)),)), images("cat")])  # of a text the tag is no class
    with pytest.raises(Refused, match="1: dog in parts.0, fox in parts.2"):
        refuse_classes([images("cat", "dog"), images("cat"), images("cat", "fox")])


def test_a_mixture_of_digits_and_clothes_is_refused(place, tmp_path):
    pixels, labels = torch.arange(2 * 64, dtype=torch.uint8), bytes([0, 1])
    (tmp_path / "a-images-idx3-ubyte").write_bytes(struct.pack(">4I", 0x0803, 2, 8, 8) + pixels.numpy().tobytes())
    (tmp_path / "a-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x0801, 2) + labels)
    clothes = {"kind": "idx_images", "path": "a-images-idx3-ubyte", "classes": ["shirt", "coat"], "split": 0}
    with pytest.raises(Refused, match="0 in parts.0, shirt in parts.1"):
        mixed(place(), {"data": [{"kind": "digits", "num": 30}]}, {"data": [clothes]})
    mixed(place(), {"data": [{"kind": "digits", "num": 30}]}, {"data": [{**clothes, "classes": ["0", "1"]}]})
