"""Rationales by a served model: what is asked, how an answer is read, what is kept, and what becomes of rows without one."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from limbeck.component import canonical_json, changed
from limbeck.data._written import Unparsed, filled, parsed
from limbeck.data.annotate import Annotate
from limbeck.data.base import Part, Place, Rows
from limbeck.endpoint import Endpoint, Limits, Reply
from limbeck.endpoint.chat import Chat, Written, ask_all, written
from limbeck.endpoint.kept import Kept
from limbeck.errors import Failed, LimbeckError, Refused
from limbeck.numerics import Streams
from limbeck.planning import plan
from limbeck.signals import Row
from limbeck.start import run
from scripted_server import Fault, ScriptedServer, serving
from scripted_server import changed as altered
from toy import at_home, metrics, toy

__all__ = ["at_home"]

MARKERS = ("So the answer is", "The answer is")
CHAT = Chat("tutor", ({"role": "user", "content": "why?"},), 0.0, 1.0, 16, 0, "p/1")
KEY = "sk-canary/0123456789abcdef"


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with serving() as found:
        yield found


@pytest.fixture
def where(tmp_path: Path) -> Place:
    return Place({}, Streams(0), extra={"responses": tmp_path / "responses"})  # type: ignore[arg-type]


def some(num: int = 6) -> Rows:
    rows = tuple(Row(f"r{i}", {"prompt": f"question {i}", "answer": f"a{i}"}, "sums", source=f"d{i}") for i in range(num))
    held = (Row("h", {"prompt": "kept apart", "answer": "a"}, source="h", split="held_out"),)
    return Rows((Part(rows[:4], 3.0), Part(rows[4:])), held, ({"name": "before"},), ("a note",))


def step(server: Any, **fields: Any) -> Annotate:
    url = server if isinstance(server, str) else server.url
    return Annotate(**{"url": url, "model": "tutor", "prompt": "Q: {prompt}", **fields})


def failed(call: Any, kind: type[LimbeckError] = Failed) -> LimbeckError:
    with pytest.raises(kind) as caught:
        call()
    return caught.value


def plain(rows: Rows) -> str:
    return json.dumps([rows.plain(), [vars(row) for row in rows.held_out]])


# ---- how an answer is read -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, rationale, label",
    [
        ("2 and 2 are 4. So the answer is 4.", "2 and 2 are 4.", "4"),
        ("It rains.\nThe answer is: (b)", "It rains.", "(b)"),
        ("Half of 9. So the answer is 4.5.", "Half of 9.", "4.5"),
        ("so the answer is not capital. So the answer is  no ", "so the answer is not capital.", "no"),
        ("It \u2028rains.\n\nSo the answer is wet\nand cold", "It \u2028rains.", "wet\nand cold"),
        ("[INST] {prompt} </s> So the answer is {answer}", "[INST] {prompt} </s>", "{answer}"),
    ],
)
def test_the_rationale_stands_before_the_first_marker_and_the_label_behind_it(text: str, rationale: str, label: str) -> None:
    assert parsed(Written(text, "stop"), MARKERS) == (rationale, label)


@pytest.mark.parametrize(
    "text, finish, reason",
    [
        ("It is four.", "stop", "without a marker"),
        ("", "stop", "without a marker"),
        ("it is so. so the answer is 4", "stop", "without a marker"),
        ("A. So the answer is 4. B. So the answer is 5.", "stop", "with a second marker"),
        ("A. The answer is 4. So the answer is 5.", "stop", "with a second marker"),
        ("So the answer is 4.", "stop", "without a rationale"),
        (" \n So the answer is 4.", "stop", "without a rationale"),
        ("2 and 2. So the answer is .", "stop", "without a label"),
        ("2 and 2. So the answer is", "stop", "without a label"),
        ("2 and 2 are 4. So the answer is 4", "length", "cut off"),
        ("2 and 2 are 4. So the answer is 4", "", "without an end"),
        ("2 and 2 are 4. So the answer is 4", "content_filter\x1b[31m and more and more", r"ended by 'content_filter\x1b[31m '"),
        ("2 and\0 2. So the answer is 4", "stop", "with characters that are no text"),
        ("2 and 2\ud800. So the answer is 4", "stop", "with characters that are no text"),
    ],
)
def test_an_answer_that_cannot_be_read_says_why(text: str, finish: str, reason: str) -> None:
    with pytest.raises(Unparsed) as caught:
        parsed(Written(text, finish), MARKERS)
    assert str(caught.value) == reason


def test_of_markers_that_contain_each_other_the_longer_one_parts() -> None:
    assert parsed(Written("x. Answer: final: y", "stop"), ("Answer:", "Answer: final:")) == ("x.", "y")


@pytest.mark.parametrize("marker", [".*", "(", "[a"])
def test_a_marker_is_a_text_and_no_pattern(marker: str) -> None:
    assert parsed(Written(f"why{marker}this", "stop"), (marker,)) == ("why", "this")


@pytest.mark.parametrize(
    "answer",
    [
        None,
        [],
        "text",
        7,
        {},
        {"choices": None},
        {"choices": []},
        {"choices": "abc"},
        {"choices": {"0": {}}},
        {"choices": [None]},
        {"choices": [{"message": None}]},
        {"choices": [{"message": "text"}]},
        {"choices": [{"message": {"content": 7}}]},
        {"choices": [{"message": {"content": ["a"]}}]},
        {"choices": [{"message": {"content": "a"}, "finish_reason": ["stop"]}]},
        {"choices": [{"text": "a completion"}]},
    ],
)
def test_what_is_no_chat_completion_is_refused_in_one_message(answer: Any) -> None:
    error = failed(lambda: written(answer, "here"))
    assert error.slug == "answer" and error.where == "here" and len(str(error)) < 500


def test_an_answer_without_a_text_is_the_empty_text() -> None:
    assert written({"choices": [{"message": {"content": None, "refusal": "no"}, "finish_reason": "stop"}]}, "here") == Written("", "stop")
    assert written({"choices": [{"message": {}}]}, "here") == Written("", "")


# ---- what is asked ---------------------------------------------------------------------------------------------------


def test_each_field_is_put_in_once_and_its_braces_mean_nothing() -> None:
    assert filled("{prompt} or {answer}?", {"prompt": "{answer} {0} {{answer}}", "answer": "{prompt}"}) == "{answer} {0} {{answer}} or {prompt}?"
    assert filled('{{prompt}} {"a": {"b": 1}} {} { prompt } \\frac{1}{2} {prompt!r}', {"prompt": "x"}) == (
        '{prompt} {"a": {"b": 1}} {} { prompt } \\frac{1}{2} {prompt!r}'
    )


def test_a_question_holds_the_row_as_it_is_and_the_answer_goes_to_its_row(server: ScriptedServer, where: Place) -> None:
    hostile = "{answer} {{prompt}} {0.__class__} %s $x \\1 \\g<0> \u202e </s>"
    rows = Rows((Part((Row("r", {"prompt": hostile, "answer": "a"}),)),))
    (row,) = step(server, prompt="Q: {prompt} | {{prompt}} | \\1 {answer}").rows(rows, where).train
    assert server.questions == [f"Q: {hostile} | {{prompt}} | \\1 a"]
    assert row.content["rationale"] == f"It asks {server.questions[0]}." and row.content["prompt"] == hostile


def test_what_is_sent_is_what_the_fields_say(server: ScriptedServer, where: Place) -> None:
    step(server, temperature=0.5, top_p=0.9, max_tokens=77, seed=3).rows(some(1), where)
    sent = {name: value for name, value in server.seen[0].items() if name != "headers"}
    message = {"role": "user", "content": "Q: question 0"}
    assert sent == {"model": "tutor", "messages": [message], "temperature": 0.5, "top_p": 0.9, "max_tokens": 77, "seed": 3}
    step(server, seed=None).rows(some(1), where)
    assert "seed" not in server.seen[1] and server.paths == ["completions"] * 2


def test_the_name_of_an_answer_is_all_it_depends_on_and_no_address() -> None:
    others = {
        "model": "other",
        "messages": ({"role": "user", "content": "how?"},),
        "temperature": 0.1,
        "top_p": 0.5,
        "max_tokens": 17,
        "seed": None,
        "prompt": "p/2",
        "sample": 1,
    }
    assert set(others) == set(vars(CHAT))
    assert len({CHAT.key(), *(replace(CHAT, **{name: value}).key() for name, value in others.items())}) == 1 + len(others)
    assert CHAT.key() == replace(CHAT, messages=({"content": "why?", "role": "user"},)).key()


def test_a_server_at_another_address_is_not_asked_again(where: Place) -> None:
    with serving() as first, serving() as second:
        before = step(first).rows(some(), where)
        assert plain(step(second).rows(some(), where)) == plain(before) and second.paths == [] and len(first.questions) == 6
        step(second, version=2).rows(some(), where)
        assert len(second.questions) == 6


def test_a_row_without_the_fields_of_the_prompt_is_passed_over_and_a_field_that_none_has_is_refused(server: ScriptedServer, where: Place) -> None:
    rows = Rows((Part((Row("t", {"text": "a text"}), Row("p", {"prompt": "a question"}))),))
    found = step(server).rows(rows, where)
    assert found.train[0] == rows.train[0] and "rationale" in found.train[1].content and server.questions == ["Q: a question"]
    assert "annotate: 1 rows have no prompt, and are as they were" in found.notes
    error = failed(lambda: step(server, prompt="{question}").rows(rows, where), Refused)
    assert error.slug == "prompt" and "prompt, text" in error.expected and "question" in error.got and len(server.questions) == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": "no field"},
        {"prompt": "{{prompt}}"},
        {"prompt": ""},
        {"markers": ()},
        {"markers": ("",)},
        {"markers": (" ",)},
        {"into": {}},
        {"into": {"rationale": "x", "label": "x"}},
        {"into": {"rationale": "prompt"}},
        {"into": {"rationale": "ids"}},
        {"into": {"why": "x"}},
        {"temperature": -1},
        {"top_p": 0},
        {"max_tokens": 0},
        {"budget_usd": 1},
    ],
)
def test_fields_that_cannot_work_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        step("http://localhost:1/v1", **fields)


@pytest.mark.parametrize("fields, slug", [({"url": f"https://user:{KEY}@host/v1"}, "url"), ({"key_env": KEY}, "key")])
def test_a_key_in_the_wrong_place_is_refused_and_not_repeated(fields: dict[str, Any], slug: str) -> None:
    error = failed(lambda: step("http://localhost:1/v1", **fields), Refused)
    assert error.slug == slug and error.where.startswith("data.") and "canary" not in str(error)


# ---- what becomes of rows --------------------------------------------------------------------------------------------


def test_training_rows_get_both_halves_in_their_places_and_held_out_rows_are_not_asked_about(server: ScriptedServer, where: Place) -> None:
    rows = some()
    found = step(server).rows(rows, where)
    assert [row.content for row in found.train] == [
        {"prompt": f"question {i}", "answer": f"a{i}", "rationale": f"It asks Q: question {i}.", "label": "13"} for i in range(6)
    ]
    assert [part.share for part in found.parts] == [3.0, None] and [len(part.rows) for part in found.parts] == [4, 2]
    assert found.held_out == rows.held_out and "Q: kept apart" not in server.questions
    assert not {row.key for row in found.train} & {row.key for row in rows.train} and len({row.key for row in found.train}) == 6
    assert [(row.tag, row.source, row.split) for row in found.train] == [("sums", f"d{i}", "train") for i in range(6)]
    assert found.notes == ("a note", "annotate: 6 of 6 rows have a rationale by tutor")
    assert found.provenance[0] == {"name": "before"} and found.provenance[1]["name"] == f"endpoint:{server.url}#tutor"


def test_the_label_may_replace_the_answer_of_training_rows_only(server: ScriptedServer, where: Place) -> None:
    rows = some(2)
    own = replace(rows.train[0], content={**rows.train[0].content, "ids": {"mark": (1, 2)}, "asked": {"mark": (False, True)}})
    rows = replace(rows, parts=(Part((own, rows.train[1])),))
    found = step(server, into={"rationale": "why", "label": "answer"}).rows(rows, where)
    assert found.train[0].content == {"prompt": "question 0", "answer": "13", "why": "It asks Q: question 0."}
    assert found.held_out[0].content["answer"] == "a"
    other = step(server, into={"rationale": "why"}).rows(rows, where)
    assert other.train[0].content["answer"] == "a0" and other.train[0].content["ids"] == {"mark": (1, 2)} and "label" not in other.train[0].content
    assert other.train[0].key != found.train[0].key and len(server.questions) == 2


@pytest.mark.parametrize("keep", [True, False])
def test_an_answer_that_cannot_be_read_is_counted_and_nothing_of_it_is_learnt(server: ScriptedServer, where: Place, keep: bool) -> None:
    bad: dict[str, Any] = {
        "Q: question 1": "SECRET without",
        "Q: question 2": {"message": {"content": "SECRET. So the answer is 4"}, "finish_reason": "length"},
        "Q: question 4": "SECRET. So the answer is 1. So the answer is 2.",
    }
    server.writes = lambda question: bad.get(question, "Because. So the answer is 4.")
    rows = some()
    found = step(server, keep_unparsed=keep).rows(rows, where)
    left = [row for row in found.train if "rationale" not in row.content]
    assert left == ([rows.train[i] for i in (1, 2, 4)] if keep else []) and "SECRET" not in plain(found)
    assert [row.content["prompt"] for row in found.train] == [f"question {i}" for i in (range(6) if keep else (0, 3, 5))]
    told = "annotate: 3 answers cannot be read: 1 without a marker, 1 cut off, 1 with a second marker; their rows "
    assert found.notes[1:] == ("annotate: 3 of 6 rows have a rationale by tutor", told + ("stay as they were" if keep else "are left out"))


def test_where_no_answer_can_be_read_the_run_ends_and_says_why(server: ScriptedServer, where: Place) -> None:
    server.writes = lambda question: "I cannot help\x1b[31m with that."
    error = failed(lambda: step(server).rows(some(), where))
    assert (error.slug, error.code) == ("answers", 5) and "none in 6 answers: 6 without a marker" in error.got and r"help\x1b" in error.got


def test_a_server_that_ends_each_answer_in_its_own_way_makes_no_long_note(server: ScriptedServer, where: Place) -> None:
    server.writes = lambda q: "Because. So the answer is 1." if q.endswith(" 0") else {"message": {"content": "x"}, "finish_reason": q * 9}
    found = step(server).rows(some(40), where)
    assert max(map(len, found.notes)) < 400 and "39 answers cannot be read" in found.notes[2]


# ---- hostile answers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault, slug",
    [
        (Fault(change=altered(lambda a: {**a, "choices": [{"message": {"content": 7}}]})), "answer"),
        (Fault(change=altered(lambda a: [a])), "answer"),
        (Fault(change=lambda body: body.replace(b"It asks", b"x" * 5_000_000)), "size"),
        (Fault(change=lambda body: b'{"choices": ' + b"[" * 100_000), "endpoint"),
        (Fault(change=lambda body: b"\xff\xfe no text"), "endpoint"),
        (Fault(404), "server"),
        (Fault(401), "key"),
        (Fault(302, {"Location": "http://127.0.0.1:1/"}), "redirect"),
    ],
    ids=["content", "list", "huge", "nested", "bytes", "404", "401", "302"],
)
def test_a_broken_server_ends_in_one_message_and_what_came_before_is_kept(server: ScriptedServer, where: Place, fault: Fault, slug: str) -> None:
    step(server).rows(some(2), where)
    server.always = fault
    error = failed(lambda: step(server, concurrency=1, attempts=1).rows(some(), where), LimbeckError)
    assert error.slug == slug and len(str(error)) < 1000
    server.always = Fault()
    asked = len(server.questions)
    assert all("rationale" in row.content for row in step(server).rows(some(), where).train)
    assert len(server.questions) == asked + 4


def test_usage_that_cannot_be_is_not_believed(server: ScriptedServer, where: Place) -> None:
    for usage in (None, [], {"prompt_tokens": -9}, {"prompt_tokens": "many"}, {"prompt_tokens": 1 << 60}):
        server.faults.append(Fault(change=altered(lambda a, usage=usage: {**a, "usage": usage})))
    found = step(server, concurrency=1).rows(some(5), where)
    assert all("rationale" in row.content for row in found.train)
    assert Endpoint(server.url, None, where.extra["responses"]).ledger.spent() == (5 * (len("Q: question 0") + 64), 5 * 256)


def test_the_key_reaches_no_row_file_or_error(server: ScriptedServer, where: Place, monkeypatch) -> None:
    monkeypatch.setenv("TUTOR_KEY", KEY)
    server.writes = lambda question: f"The key is {KEY}. So the answer is {KEY}."
    found = step(server, key_env="TUTOR_KEY").rows(some(2), where)
    assert server.seen[0]["headers"]["Authorization"] == f"Bearer {KEY}" and found.train[0].content["label"] == "***"
    written = b"".join(path.read_bytes() for path in where.extra["responses"].rglob("*") if path.is_file())
    assert "canary" not in plain(found) and b"canary" not in written and "canary" not in canonical_json(step(server, key_env="TUTOR_KEY"))


# ---- kept, in order, within the budget -------------------------------------------------------------------------------


def test_asked_again_nothing_is_requested_and_the_rows_are_the_same(server: ScriptedServer, where: Place) -> None:
    first = step(server).rows(some(), where)
    server.always = Fault(500)
    assert plain(step(server, concurrency=3, budget_tokens=0).rows(some(), where)) == plain(first) and len(server.paths) == 6


def test_rows_keep_their_order_whatever_is_answered_first(where: Place, monkeypatch) -> None:
    """Each question is answered only when the answer to the next one is kept."""
    done = [threading.Event() for _ in range(7)]
    done[6].set()
    put = Kept.put

    def kept(self: Kept, key: str, body: bytes) -> None:
        put(self, key, body)
        done[int(json.loads(body)["choices"][0]["message"]["content"][-2])].set()

    def send(ask: Any) -> Reply:
        number = int(json.loads(ask.body)["messages"][0]["content"].split()[-1])
        assert done[number + 1].wait(30)
        choice = {"message": {"content": f"Because. So the answer is {number}."}, "finish_reason": "stop"}
        return Reply(200, {}, json.dumps({"choices": [choice]}).encode())

    monkeypatch.setattr(Kept, "put", kept)
    found = step("http://localhost:1/v1").rows(some(), replace(where, extra={**where.extra, "send": send}))
    assert [row.content["label"] for row in found.train] == list("012345")


def test_a_budget_that_is_used_up_says_how_far_it_came_and_the_next_run_goes_on(server: ScriptedServer, where: Place) -> None:
    most = len("Q: question 0") + 64 + 256  # of one question; the server then counts 3 and 10 tokens
    error = failed(lambda: step(server, concurrency=1, budget_tokens=most + 2 * 13).rows(some(), where))
    assert (error.slug, error.code) == ("budget", 4) and "3 of 6 rows are answered" in error.got and f"{most + 26:,} tokens" in error.expected
    assert "39 spent" in error.got and "raise budget_tokens" in error.do and len(server.questions) == 3
    found = step(server, budget_tokens=10_000).rows(some(), where)
    assert len(server.questions) == 6 == len(set(server.questions)) and all("rationale" in row.content for row in found.train)


def test_a_plan_asks_nothing_and_says_what_would_be_asked(server: ScriptedServer, where: Place) -> None:
    priced = step(server, usd_per_million_in=1e4, usd_per_million_out=1e4)
    planned = replace(where, extra={**where.extra, "plan": True})
    found = priced.rows(some(), planned)
    assert server.paths == [] and [row.content["prompt"] for row in found.train] == [row.content["prompt"] for row in some().train]
    assert {(row.content["rationale"], row.content["label"]) for row in found.train} == {("not asked yet", "not asked yet")}
    assert found.notes[-1] == f"annotate: at most 6 requests and 1,998 tokens to {server.url}, 19.98 dollars; a plan asks nothing"
    priced.rows(some(2), where)
    found = priced.rows(some(), planned)
    assert len(server.paths) == 2 and "at most 4 requests" in found.notes[-1] and found.train[1].content["label"] == "13"
    priced.rows(some(), where)
    assert plain(priced.rows(some(), planned)) == plain(priced.rows(some(), where))


CHILD = """
import sys
from pathlib import Path
sys.path.insert(0, str(Path(sys.argv[1]) / "data"))
from test_annotate import Place, Streams, plain, some, step
place = Place({}, Streams(0), extra={"responses": Path(sys.argv[3])})
print(plain(step(sys.argv[2], concurrency=2).rows(some(12), place)))
"""


def test_killed_and_run_again_it_asks_only_what_was_in_flight_and_ends_the_same(server: ScriptedServer, where: Place, tmp_path: Path) -> None:
    tests = Path(__file__).parents[1]
    words = [sys.executable, "-c", CHILD, str(tests), server.url, str(where.extra["responses"])]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tests), *sys.path])}
    server.faults += [Fault()] * 5 + [Fault(hang=True)] * 2
    child = subprocess.Popen(words, env=env, stdout=subprocess.DEVNULL)
    for _ in range(7):
        assert server.arrived.acquire(timeout=60)
    while sum(path.read_bytes().count(b"\n") for path in where.extra["responses"].glob("written/*.jsonl")) < 5:
        assert child.poll() is None
    child.send_signal(signal.SIGKILL)
    child.wait()
    again = subprocess.run(words, env=env, capture_output=True, text=True, check=True).stdout.strip()
    sent = [body["messages"][0]["content"] for body in server.seen]
    assert len(sent) == 14 and len(set(sent)) == 12 and sum(sent.count(x) - 1 for x in set(sent)) == 2
    whole = replace(where, extra={"responses": tmp_path / "other"})
    assert plain(step(server).rows(some(12), whole)) == again


def test_no_more_are_in_flight_than_allowed_and_equal_questions_are_asked_once(server: ScriptedServer, where: Place) -> None:
    rows = Rows((Part(tuple(Row(f"r{i}", {"prompt": f"question {i // 2}"}) for i in range(12))),))
    found = step(server, concurrency=3).rows(rows, where)
    assert server.most_at_once <= 3 and len(server.questions) == 6
    assert [row.content["rationale"] for row in found.train] == [f"It asks Q: question {i // 2}." for i in range(12)]


def test_questions_alone_can_be_asked_and_offline_what_is_missing_is_named(server: ScriptedServer, tmp_path: Path) -> None:
    endpoint = Endpoint(server.url, None, tmp_path, limits=Limits(concurrency=2))
    error = failed(lambda: ask_all(endpoint, [CHAT], ["r"], "here"))
    assert error.slug == "offline" and server.paths == []


def test_what_changes_no_answer_is_in_no_cache_key() -> None:
    one = step("http://localhost:1/v1")
    assert canonical_json(changed(one, key_env="K", concurrency=3, budget_tokens=5)) == canonical_json(one)
    assert len({canonical_json(changed(one, **{name: value})) for name, value in (("model", "x"), ("version", 2), ("seed", 4))}) == 3


def test_a_run_asks_once_and_its_plan_and_the_same_command_again_ask_nothing(server: ScriptedServer, tmp_path: Path) -> None:
    lines = [json.dumps({"prompt": f"question {i}", "answer": f"a{i}"}) for i in range(12)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    asks = {"kind": "annotate", "url": server.url, "model": "tutor", "prompt": "Q: {prompt}", "into": {"rationale": "why", "label": "answer"}}
    views = {"predict": {"prefix": "predict: ", "target": "answer"}, "explain": {"prefix": "explain: ", "target": "why"}}
    rows = {"kind": "jsonl", "path": str(tmp_path / "rows.jsonl"), "split": 0.3}
    recipe = toy(tmp_path, data=[rows, asks, {"kind": "views", "views": views}])
    planned = str(plan(recipe, probe=False))
    assert server.paths == [] and "a plan asks nothing" in planned
    run(recipe, name="first", runs=tmp_path)
    num = len(server.questions)
    assert 0 < num < 12 and len(set(server.questions)) == num
    run(recipe, name="second", runs=tmp_path)
    assert len(server.questions) == num and metrics(tmp_path / "first") == metrics(tmp_path / "second")
