"""Answers of a served model: what is asked, what becomes a row, what is left out and counted, and what is never asked twice."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from limbeck.data.base import Part, Place, Rows
from limbeck.data.replies import Replies
from limbeck.errors import Failed, Refused
from limbeck.numerics import Streams
from limbeck.planning import plan
from limbeck.signals import Row
from limbeck.start import run
from limbeck.store import read_json
from scripted_server import ScriptedServer, serving
from toy import at_home, metrics, toy

__all__ = ["at_home"]


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with serving(writes=lambda question: f"about {question}") as found:
        yield found


@pytest.fixture
def where(tmp_path: Path) -> Place:
    return Place({}, Streams(0), extra={"responses": tmp_path / "responses"})  # type: ignore[arg-type]


ROWS = tuple(Row(f"r{i}", {"prompt": f"question {i}", "answer": "old", "level": "easy"}, "sums", source=f"d{i}") for i in range(4))
SOME = Rows((Part(ROWS[:3], 3.0), Part(ROWS[3:])), (Row("h", {"prompt": "kept apart", "answer": "a"}, source="h", split="held_out"),))


def step(server: ScriptedServer, **fields: Any) -> Replies:
    return Replies(**{"url": server.url, "model": "tutor", **fields})


def test_each_row_gets_the_servers_answer_in_order_and_held_out_rows_stay(server: ScriptedServer, where: Place) -> None:
    found = step(server, tag="chosen").rows(SOME, where)
    assert [row.content for row in found.train] == [
        {"prompt": f"question {i}", "answer": f"about question {i}", "level": "easy", "open": False, "by": "tutor"} for i in range(4)
    ]
    assert {row.tag for row in found.train} == {"chosen"} and [part.share for part in found.parts] == [3.0, None]
    assert found.held_out == SOME.held_out and not {row.key for row in found.train} & {row.key for row in ROWS}
    assert sorted(server.questions) == [f"question {i}" for i in range(4)]


def test_the_template_is_for_the_server_and_the_prompt_of_the_row_for_the_student(server: ScriptedServer, where: Place) -> None:
    found = step(server, prompt="{level}: {prompt} {{prompt}}").rows(SOME, where)
    assert "easy: question 0 {prompt}" in server.questions and found.train[0].content["prompt"] == "question 0"
    text = Rows((Part((Row("t", {"text": "a {text}"}),)),))
    assert step(server, prompt="go on: {text}").rows(text, where).train[0].content == {
        "prompt": "go on: a {text}",
        "answer": "about go on: a {text}",
        "open": False,
        "by": "tutor",
    }


def test_a_chat_is_sent_up_to_its_last_answer_and_only_the_new_one_is_learnt(server: ScriptedServer, where: Place) -> None:
    said = [("system", "be brief"), ("user", "one"), ("assistant", "first"), ("user", "two"), ("assistant", "old")]
    chat = Row("c", {"messages": tuple({"role": role, "content": text} for role, text in said), "turns": (2, 4)})
    tools = Row("t", {"messages": ({"role": "user", "content": None},)})
    found = step(server).rows(Rows((Part((chat, tools)),)), where)
    assert [m["content"] for m in server.seen[0]["messages"]] == ["be brief", "one", "first", "two"] and len(server.seen) == 1
    (row,) = found.train
    assert row.content["turns"] == (4,) and row.content["messages"][4] == {"role": "assistant", "content": "about two"}
    assert any("1 rows are no chat of texts" in note for note in found.notes)


def test_an_answer_that_is_cut_off_stays_open_and_what_is_no_text_is_left_out_and_counted(where: Place) -> None:
    answers = [("half a sen", "length"), (" \n", "stop"), ("no", "content_filter"), ("yes", "stop")]

    def choice(question: str) -> dict[str, Any]:
        text, finish = answers[int(question[-1])]
        return {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}

    with serving(writes=choice) as server:
        found = step(server).rows(SOME, where)
    assert [(row.content["answer"], row.content["open"]) for row in found.train] == [("half a sen", True), ("yes", False)]
    assert found.notes == (
        "replies: 2 of 4 rows answered by tutor",
        "replies: 2 answers are left out with their rows: 1 empty, 1 ended by 'content_filter'",
    )


def test_a_part_of_which_no_row_is_left_is_no_part_and_where_nothing_is_left_it_fails(where: Place) -> None:
    with serving(writes=lambda question: "" if question == "question 3" else "yes") as server:
        assert len(step(server).rows(SOME, where).parts) == 1
    with serving(writes=lambda question: "") as server, pytest.raises(Failed, match="none in 4: 4 empty"):
        step(server, version=2).rows(SOME, where)


def test_nothing_is_asked_twice_and_another_version_asks_anew(server: ScriptedServer, where: Place) -> None:
    first = step(server).rows(SOME, where)
    assert step(server).rows(SOME, where).plain() == first.plain() and len(server.questions) == 4
    step(server, version=2).rows(SOME, where)
    assert len(server.questions) == 8


def test_rows_that_have_no_field_of_the_template_are_refused(server: ScriptedServer, where: Place) -> None:
    with pytest.raises(Refused, match="with all of question"):
        step(server, prompt="{question}").rows(SOME, where)
    assert not server.questions


def test_a_plan_asks_nothing_and_says_how_much_it_would(server: ScriptedServer, where: Place) -> None:
    found = step(server).rows(SOME, Place(where.models, where.streams, extra={**where.extra, "plan": True}))
    assert not server.questions and len(found.train) == 4 and "at most 4 requests" in found.notes[-1]


def test_pairs_of_a_served_teachers_and_the_students_own_text_are_trained_on(tmp_path: Path, server: ScriptedServer) -> None:
    lines = "".join(f'{{"prompt": "question {i}", "answer": "old"}}\n' for i in range(8))
    (tmp_path / "asked.jsonl").write_text(lines, encoding="utf-8")
    own = [
        {"kind": "jsonl", "path": str(tmp_path / "asked.jsonl"), "split": 0.25},
        {"kind": "replies", "url": server.url, "model": "tutor"},
        {"kind": "rollouts", "by": {"rejected": "student"}, "own": "chosen", "new_tokens": 6},
    ]
    objectives = [{"kind": "skew_kl", "tag": "chosen", "per": "row"}, {"kind": "skew_reverse_kl", "tag": "rejected", "per": "row"}]
    recipe = toy(tmp_path, {"data": own, "objective": objectives, "steps": 2})
    plan(recipe)
    assert not server.questions
    run(recipe, name="pairs", runs=tmp_path)
    rows = read_json(tmp_path / "pairs" / "rows" / "0.json")["parts"][0]["rows"]
    assert [row["tag"] for row in rows] == ["chosen", "rejected"] * (len(rows) // 2) and rows[0]["content"]["answer"].startswith("about question")
    assert {r["name"]: r["count"] for r in metrics(tmp_path / "pairs") if "skew" in r["name"]} == {"skew_kl": 2, "skew_reverse_kl": 2}
