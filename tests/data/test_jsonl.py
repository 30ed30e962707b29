import json

import pytest

from limbeck.data import _records
from limbeck.data.base import Rows
from limbeck.data.jsonl import Jsonl


@pytest.fixture
def read(tmp_path, place):
    """Rows of a file with the given lines."""

    def call(*lines, **fields) -> Rows:
        data = b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines)
        (tmp_path / "a.jsonl").write_bytes(data)
        return Jsonl(**{"path": "a.jsonl", "split": 0, **fields}).rows(Rows(), place())

    return call


def contents(rows: Rows) -> list[dict]:
    return [dict(row.content) for row in rows.train]


def test_texts_prompts_and_answers_are_found_by_their_usual_names(read):
    rows = read({"text": "a", "other": 1}, {"prompt": "b", "answer": "c", "text": "not read"}, {"prompt": "d"}, {"prompt": "e", "answer": None})
    assert contents(rows) == [{"text": "a"}, {"prompt": "b", "answer": "c"}, {"prompt": "d"}, {"prompt": "e"}]


def test_fields_may_be_named(read):
    assert contents(read({"q": "a", "a": "b", "text": "x"}, prompt="q", answer="a")) == [{"prompt": "a", "answer": "b"}]
    assert contents(read({"body": "a", "prompt": "x"}, text="body")) == [{"text": "a"}]
    assert [row.tag for row in read({"text": "a", "kind": "code"}, {"text": "b", "kind": 3}, {"text": "c"}, tag="kind").train] == ["code", "3", ""]


def test_keys_depend_on_content_and_tag_and_repeats_are_kept_once(read):
    rows = read({"text": "a"}, {"text": "a", "tag": "x"}, {"text": "a"}, {"prompt": "a"})
    assert len({row.key for row in rows.train}) == 3 == len(rows.train)
    assert rows.notes == ("jsonl: 1 of 4 rows repeat another one, and are kept once",)
    assert {row.key for row in read({"prompt": "a"}, {"text": "a"}).train} <= {row.key for row in rows.train}


def test_answers_to_one_prompt_are_of_one_document_so_that_none_is_held_out_alone(read):
    rows = read(*({"prompt": f"p{i % 50}", "answer": f"a{i}"} for i in range(500)), split=0.3)
    train, held = ({row.content["prompt"] for row in some} for some in (rows.train, rows.held_out))
    assert train and held and not train & held


def test_blank_lines_and_a_byte_order_mark_are_passed_over(read):
    assert contents(read(b"\xef\xbb\xbf" + b'{"text": "a"}', b"", b"  ", b'{"text": "b"}', b"")) == [{"text": "a"}, {"text": "b"}]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": ', "no JSON: Expecting value"),
        (b"[1]", "no mapping"),
        (b'{"text": 3}', "text is int, not text"),
        (b'{"text": null}', "text is null, not text"),
        (b'{"txet": "a"}', "no field text: perhaps txet"),
        (b"{}", "no field at all"),
        (b'{"text": "\xff"}', "no UTF-8 at byte 10 of the line"),
        (b'{"text": "\\ud83d"}', "text has half a character (a lone surrogate) at 0"),
        (b"[" * 100_000, "no JSON: "),
        (b"9" * 5000, "no JSON: "),
        (b'{"prompt": ["a"]}', "prompt is list, not text"),
    ],
)
def test_a_bad_line_is_refused_with_file_and_line_or_left_out_with_a_note(read, refused, tmp_path, line, reason):
    good = {"text": "good"}
    slug, where, expected, got, do = refused(lambda: read(good, line, good))
    assert (slug, where, expected) == ("data", f"data jsonl  {tmp_path / 'a.jsonl'}:2", "at most 0 broken records")
    assert got.startswith(reason) and len(got) < 300 and do == "correct it, or set max_bad: 1 to leave so many out"
    rows = read(good, line, {"text": "more"}, max_bad=1)
    assert contents(rows) == [good, {"text": "more"}]
    assert rows.notes[0].startswith(f"jsonl: 1 broken records left out, the first {tmp_path / 'a.jsonl'}:2: {reason}")
    assert refused(lambda: read(line, good, line, max_bad=1))[1].endswith("a.jsonl:3")


def test_a_named_field_that_is_missing_is_bad_though_another_is_there(read, refused):
    assert refused(lambda: read({"text": "a", "question": "b"}, prompt="questoin"))[3] == "no field questoin: perhaps question"
    assert refused(lambda: read({"prompt": "a", "solution": "b"}, answer="soluton"))[3] == "no field soluton: perhaps solution"
    assert refused(lambda: read({"q": "a", "t": "b"}, prompt="q", text="t"))[3] == "text and prompt are both named, and a row has one of them"


def test_long_lines_are_rows_up_to_a_limit_and_what_follows_is_still_read(read, refused, monkeypatch):
    long = {"text": "x" * 3_000_000}
    assert contents(read(long)) == [long]
    monkeypatch.setattr(_records, "LINE_BYTES", 50)
    exact = json.dumps({"text": "x" * 38}).encode()
    assert len(exact) == 50
    for too_long in (b"y" * 51, b"y" * 52, b"y" * 100, b"y" * 101, b"y" * 102, exact + b" "):
        rows = read(exact, too_long, {"text": "b"}, exact.replace(b"xx", b"zz"), max_bad=1)
        assert [row.content["text"][0] for row in rows.train] == ["x", "b", "z"]
        assert rows.notes[0].endswith("a.jsonl:2: a line of more than 50 bytes")
        assert refused(lambda last=too_long: read({"text": "a"}, {"text": "b"}, last))[3] == "a line of more than 50 bytes"


def test_a_file_of_nothing_but_bad_lines_has_no_rows(read, refused):
    assert refused(lambda: read(b"x", max_bad=1)) == ("data", "data jsonl  path: a.jsonl", "at least one row", "none in 1 files", "correct path")
