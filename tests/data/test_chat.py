import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from limbeck.data.base import Rows
from limbeck.data.chat import Chat
from limbeck.text.spans import encode

ASK, ANSWER = {"role": "user", "content": "what?"}, {"role": "assistant", "content": "that"}


@pytest.fixture
def read(tmp_path, place):
    """Rows of a file with the given records."""

    def call(*records, **fields) -> Rows:
        (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, records)))
        return Chat(**{"path": "a.jsonl", "split": 0, **fields}).rows(Rows(), place())

    return call


def asked(row, tokenizer) -> str:
    return tokenizer.decode([i for i, a in zip(*encode(row, tokenizer), strict=True) if a])


def test_messages_tools_and_all_they_hold_are_kept(read, bpe):
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {"x": None}}}]}
    messages = [ASK, call, {"role": "tool", "content": "12", "tool_call_id": "1"}, ANSWER]
    (row,) = read({"messages": messages, "tools": [{"type": "function"}], "tag": "agent"}).train
    assert list(row.content["messages"]) == messages and row.content["tools"] == [{"type": "function"}] and row.tag == "agent"
    assert asked(row, bpe) == "that<|im_end|>"


def test_conversations_of_the_older_form_are_converted(read, bpe):
    (row,) = read({"conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}).train
    assert row.content["messages"] == ({"role": "system", "content": "s"}, {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"})
    assert asked(row, bpe) == "a<|im_end|>"


def test_parquet_is_read_too_and_what_it_writes_as_null_is_not_there(tmp_path, place):
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}
    pq.write_table(pa.Table.from_pylist([{"messages": [ASK, call, ANSWER]}, {"messages": [{**ASK, "content": "b"}, ANSWER]}]), tmp_path / "a.parquet")
    rows = Chat(path="a.parquet", split=0).rows(Rows(), place()).train
    assert list(rows[0].content["messages"]) == [ASK, call, ANSWER] and rows[1].content["messages"][1] == ANSWER


def test_what_is_learnt_can_be_chosen(read, bpe):
    call = {"role": "assistant", "content": "", "tool_calls": [{"name": "f"}]}
    one, two = ({"role": "assistant", "content": text} for text in ("one", "two"))
    chat = {"messages": [ASK, one, ASK, call, {"role": "tool", "content": "12"}, two]}
    assert asked(read(chat).train[0], bpe) == "one<|im_end|>two<|im_end|>"
    assert asked(read(chat, ask="calls").train[0], bpe) == 'one<|im_end|>[{"name": "f"}]<|im_end|>two<|im_end|>'
    assert asked(read(chat, ask="last").train[0], bpe) == "two<|im_end|>"
    assert len({read(chat, ask=ask).train[0].key for ask in ("answers", "calls", "last")}) == 3


def test_chats_without_an_answer_are_skipped_with_a_note_and_refused_if_there_are_no_others(read, refused):
    alone, first = {"messages": [ASK]}, {"messages": [ANSWER, ASK]}
    rows = read(alone, {"messages": [ASK, ANSWER]}, first)
    assert len(rows.train) == 1 and rows.notes == ("chat: 2 of 3 rows skipped: no assistant turn",)
    assert refused(lambda: read(alone, first)) == (
        "chat",
        "data chat  path: a.jsonl",
        "messages of an assistant that answer others",
        "none in 2 chats",
        "name the roles system, user, assistant and tool; or set ask: calls",
    )


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"messages": []}, "messages is no list of messages"),
        ({"messages": "hi"}, "messages is no list of messages"),
        ({"messages": ["hi"]}, "message 0 is no mapping"),
        ({"messages": None}, "messages is no list of messages"),
        ({"messages": [ASK, {"role": "robot", "content": "x"}]}, "message 1 is by robot, which is none of assistant, developer, function, system"),
        ({"messages": [ASK, {"role": ["x"], "content": "x"}]}, 'message 1 is by ["x"]'),
        ({"conversations": [{"from": {}, "value": "x"}]}, "message 0 is by {}"),
        ({"messages": [ASK, {"role": "assistant", "content": None}]}, "message 1 says nothing"),
        ({"mesages": [ASK]}, "no field messages: perhaps mesages"),
        ({"messages": [ASK, ANSWER], "tools": "{"}, "tools is text, and no JSON"),
        ({"messages": [ASK, {"role": "assistant", "content": "\ud800"}]}, "message 1 has half a character"),
    ],
)
def test_a_broken_chat_is_refused_with_its_place_or_left_out(read, refused, record, reason):
    slug, where, expected, got, do = refused(lambda: read(record))
    assert slug == "data" and where.endswith("a.jsonl:1") and expected == "at most 0 broken records" and "max_bad: 1" in do
    assert got.startswith(reason)
    assert len(read(record, {"messages": [ASK, ANSWER]}, max_bad=1).train) == 1


def test_tools_may_be_json_within_json_and_the_field_may_be_named(read):
    (row,) = read({"talk": [ASK, ANSWER], "tools": json.dumps([{"type": "function"}])}, messages="talk").train
    assert row.content["tools"] == [{"type": "function"}]


def test_chats_that_open_alike_are_held_out_together(read):
    system, user = ([{"role": role, "content": str(i % num)} for i in range(100)] for role, num in (("system", 100), ("user", 20)))
    rows = read(*({"messages": [s, u, ANSWER]} for s, u in zip(system, user, strict=True)), split=0.3)
    train, held = ({row.content["messages"][1]["content"] for row in some} for some in (rows.train, rows.held_out))
    assert train and held and not train & held
