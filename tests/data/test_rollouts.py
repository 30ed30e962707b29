"""Answers that roles write: who wrote what, prompts that are not learnt, rounds, and a stop in the middle of a stage."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from limbeck.check.models import family_of
from limbeck.data.base import Part, Place, Rows
from limbeck.data.rollouts import Rollouts
from limbeck.errors import Refused
from limbeck.model.base import Models
from limbeck.model.sampling import write
from limbeck.numerics import Streams
from limbeck.recipe import load, text_only
from limbeck.signals import Row
from limbeck.start import run
from limbeck.store import read_json
from limbeck.text.spans import encode
from toy import FEW, after, at_home, metrics, toy, words

__all__ = ["at_home"]
BOTH = {"chosen": "teacher", "rejected": "student"}
TEXTS = Rows((Part(tuple(Row(f"r{i}", {"text": f"some words {i} and more"}, source=f"d{i}") for i in range(5))),))


@pytest.fixture(scope="module")
def place() -> Place:
    roles = {"student": family_of("llama", 0, context=256), "teacher": family_of("llama", 1, context=256)}
    return Place(Models(roles), Streams(0), live=True)


def made(place: Place, rows: Rows = TEXTS, **fields: Any) -> list[Row]:
    return list(Rollouts(**{"by": BOTH, "prompt_tokens": 4, "new_tokens": 8, **fields}).rows(rows, place).train)


def test_each_prompt_has_an_answer_of_each_writer_in_one_group(place: Place) -> None:
    found = made(place)
    assert [(row.tag, row.content["by"], row.group, row.source) for row in found[:2]] == [
        ("chosen", "teacher", "r0", "d0"),
        ("rejected", "student", "r0", "d0"),
    ]
    assert len(found) == 10 and len({row.key for row in found}) == 10


def test_each_answer_is_what_its_writer_says_and_the_other_would_not(place: Place) -> None:
    tokenizer = place.models["student"].tokenizer
    for row in made(place, temperature=0.0):
        ids, asked = encode(row, tokenizer)
        prompt, answer = ids[: asked.index(True)], ids[asked.index(True) :]
        said = {name: write(place.models[name], [prompt], 8, 0.0, [0])[0] for name in ("student", "teacher")}
        assert answer == said[row.content["by"]] and said["student"] != said["teacher"]


def test_the_prompt_is_what_stood_there_and_only_the_answer_is_learnt(place: Place) -> None:
    tokenizer = place.models["student"].tokenizer
    for row in made(place):
        ids, asked = encode(row, tokenizer)
        original = encode(next(r for r in TEXTS.train if r.key == row.group), tokenizer)[0]
        assert ids[:4] == original[:4] and asked[:4] == [False] * 4 and all(asked[4:]) and 1 <= len(asked[4:]) <= 8


def test_of_a_prompt_with_an_answer_the_answer_is_replaced(place: Place) -> None:
    rows = Rows((Part((Row("r", {"prompt": "why?", "answer": "because"}),)),))
    (row,) = made(place, rows, by={"rollout": "student"}, prompt_tokens=None)
    ids, asked = encode(row, place.models["student"].tokenizer)
    original, was = encode(rows.train[0], place.models["student"].tokenizer)
    assert asked.index(True) == was.index(True) and ids[: asked.index(True)] == original[: was.index(True)] and ids != original


def test_an_own_answer_stays_beside_in_the_same_group_and_both_have_one_prompt(place: Place) -> None:
    rows = Rows((Part(tuple(Row(f"r{i}", {"prompt": f"why {i}?", "answer": "because"}, source="d") for i in range(3))),))
    found = made(place, rows, by={"rejected": "student"}, own="chosen", prompt_tokens=None)
    assert [(row.tag, row.group) for row in found] == [(tag, f"r{i}") for i in range(3) for tag in ("chosen", "rejected")]
    tokenizer = place.models["student"].tokenizer
    (own, own_asked), (written, asked) = (encode(row, tokenizer) for row in found[:2])
    start = own_asked.index(True)
    assert own[:start] == written[: asked.index(True)] and (own, own_asked) == encode(rows.train[0], tokenizer) and own != written
    assert len({row.key for row in (*found, *rows.train)}) == 9


def test_an_own_answer_that_is_not_there_or_a_tag_of_two_writers_is_refused(place: Place) -> None:
    with pytest.raises(Refused, match="a row with an answer, which own keeps"):
        made(place, by={"rejected": "student"}, own="chosen")
    with pytest.raises(ValueError, match="a tag that no writer has"):
        Rollouts(by=BOTH, own="chosen")


def test_another_round_or_seed_writes_anew_and_the_same_one_the_same(place: Place) -> None:
    keys = [[row.key for row in made(p, temperature=1.0)] for p in (place, place, replace(place, window=1), replace(place, streams=Streams(1)))]
    assert keys[0] == keys[1] != keys[2] and keys[0] != keys[3]


def test_fewer_prompts_are_taken_at_random_and_anew_each_round(place: Place) -> None:
    picks = [tuple(row.group for row in made(replace(place, window=n), num=2)[::2]) for n in range(4)]
    assert all(len(set(pick)) == 2 for pick in picks) and len(set(picks)) > 1


def test_a_text_without_prompt_tokens_is_refused(place: Place) -> None:
    for tokens in (None, 500):
        with pytest.raises(Refused, match="prompt_tokens"):
            made(place, prompt_tokens=tokens)


def rounds(folder: Path, **stage: Any) -> dict[str, Any]:
    own = [{**FEW, "path": str(words(folder))}, {"kind": "rollouts", "by": BOTH, "prompt_tokens": 5, "new_tokens": 10, "num": 6}]
    objectives = [{"kind": "skew_kl", "tag": "chosen", "per": "row"}, {"kind": "skew_reverse_kl", "tag": "rejected", "per": "row"}]
    return toy(folder, {"data": own, "objective": objectives, "repeat": 2, "steps": 3, "optimiser": {"lr": 0.05}, **stage})


def test_each_round_learns_from_what_the_student_of_that_round_writes(tmp_path: Path) -> None:
    run(rounds(tmp_path), name="rounds", runs=tmp_path)
    first, second = (read_json(tmp_path / "rounds" / "rows" / f"{n}.json")["parts"][0]["rows"] for n in range(2))
    assert len(first) == len(second) == 12
    counted = {r["name"]: r["count"] for r in metrics(tmp_path / "rounds") if "skew" in r["name"]}
    assert counted == {"skew_kl": 2, "skew_reverse_kl": 2}  # rows, not tokens


def test_a_stopped_round_goes_on_with_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(rounds(tmp_path), name="whole", runs=tmp_path)
    run(rounds(tmp_path), name="stopped", runs=tmp_path, stop=after(4))
    with monkeypatch.context() as patch:
        patch.setattr("limbeck.data.rollouts.write", lambda *_: pytest.fail("it writes again"))
        run(rounds(tmp_path), name="stopped", runs=tmp_path)
    assert metrics(tmp_path / "stopped") == metrics(tmp_path / "whole")


def test_outside_of_a_stage_and_with_steps_of_unknown_number_it_is_refused(tmp_path: Path) -> None:
    own = rounds(tmp_path)["train"][0]["data"]
    with pytest.raises(Refused, match="a stage, whose models can write"):
        run(toy(tmp_path, data=own), name="no", runs=tmp_path)
    with pytest.raises(Refused, match=r"train\.0\.steps: a number"):
        load({**rounds(tmp_path, steps="auto"), "minutes": 1})


def test_rows_that_a_stage_brings_itself_are_looked_at_as_all_others(tmp_path: Path) -> None:
    own = rounds(tmp_path)["train"][0]["data"]
    for change, slug in (({"by": {"chosen": "teacher"}}, "tag"), ({"new_tokens": 600}, "context")):
        with pytest.raises(Refused) as caught:
            run(rounds(tmp_path, data=[own[0], {**own[1], **change, "temperature": 3.0}]), name=slug, runs=tmp_path)
        assert caught.value.slug == slug, caught.value


def test_the_text_only_baseline_learns_from_text(tmp_path: Path) -> None:
    assert text_only(load({**rounds(tmp_path), "baseline": ["text_only"]})).train[0].data is None
