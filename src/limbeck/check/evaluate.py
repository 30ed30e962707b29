"""Contracts of evaluators: the teacher is perfect against itself, figures stay in their ranges, and nothing is written."""

import json
import math
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from limbeck.check.contract import NotClaimed, close, contract
from limbeck.check.models import (
    POINT_CLASSES,
    WORDS,
    classifier,
    clips,
    denoiser,
    family_of,
    hearing_model,
    lists,
    pictures,
    pitch_tracker,
    pitched,
    points,
    ranker_of,
    spoken,
    transcriber_of,
)
from limbeck.component import canonical_json, find
from limbeck.endpoint import Ask, Reply
from limbeck.evaluate._scoring import score
from limbeck.evaluate.base import Evaluator, Exam, Table
from limbeck.model.base import Role
from limbeck.signals import Row, View
from limbeck.student.base import Surgery

NUM, BYTES = 12, 440
CONTEXT = 512
"""Positions of the small models."""
LAST: dict[tuple[type, str, int], dict[str, Any]] = {}
"""What was found last."""


def held_out(seed: int, says: str = "logits") -> list[Row]:
    """Texts of some documents, long enough for questions about their second half; images or sounds with their classes; points; or lists."""
    if says == "label":
        return list(pictures(seed, split="held_out"))
    if says == "score":
        return [replace(row, split="held_out") for row in lists(seed).train]
    if says == "hidden":
        return list(clips(seed, split="held_out"))
    if says == "pitch":
        return list(pitched(seed, split="held_out"))
    if says == "transcript":
        return list(spoken(seed, "held_out").held_out)
    if says == "sample":
        return list(points(seed, 10 * POINT_CLASSES, "held_out").train)
    texts = [" ".join(WORDS[(i * i + (1 + i % 3) * j + seed) % len(WORDS)] for j in range(80))[:BYTES] for i in range(NUM)]
    return [
        Row(f"{seed}-{i}", {"text": text}, ("docs", "chat")[i % 2], split="held_out", source=f"document-{i // 2}") for i, text in enumerate(texts)
    ]


@cache
def roles(seed: int, says: str = "logits") -> dict[str, Role]:
    """A small teacher and a smaller student, untrained."""
    if says == "label":
        return {"teacher": classifier(seed, torch.float32, width=24), "student": classifier(seed + 1, torch.float32)}
    if says == "sample":
        return {"teacher": denoiser(seed, torch.float32, width=24), "student": denoiser(seed + 1, torch.float32)}
    if says == "score":
        return {"teacher": ranker_of(seed, torch.float32, layers=3), "student": ranker_of(seed + 1, torch.float32)}
    if says == "pitch":
        return {"teacher": pitch_tracker(seed, torch.float32, 2), "student": pitch_tracker(seed + 1, torch.float32)}
    if says == "transcript":
        return {"teacher": transcriber_of(seed, torch.float32, layers=3), "student": transcriber_of(seed + 1, torch.float32)}
    if says == "hidden":
        return {"teacher": hearing_model(seed, torch.float32, layers=3), "student": hearing_model(seed + 1, torch.float32)}
    made: dict[str, Role] = {
        "teacher": family_of("llama", seed, torch.float32, layers=3, context=CONTEXT),
        "student": family_of("llama", seed + 1, torch.float32, context=CONTEXT),
    }
    blocks: Any = find(Surgery, "masked_blocks").example()
    return {name: blocks(role) for name, role in made.items()} if says == "blocks" else made


@cache
def table_of(seed: int, subject: str, rows_at_once: int, teacher: bool, says: str) -> Table:
    every = roles(seed, says)

    def answers(some: Sequence[Row], view: View) -> Any:
        with torch.no_grad():
            return every["teacher"].says(view, ("logits",), {})["logits"]

    return score(every[subject], held_out(seed, says), answers if teacher else None, rows_at_once=rows_at_once)


def exam(seed: int = 0, subjects: Sequence[str] = ("teacher", "student"), rows_at_once: int = 8, teacher: bool = True, says: str = "logits") -> Exam:
    """An exam of both: of models of text, of classifiers, of rankers, of denoisers, or of encoders."""
    every, rows = roles(seed, says), held_out(seed, says)

    @contextmanager
    def open_(subject: str) -> Iterator[Role]:
        yield every[subject]

    def table(subject: str) -> Table:
        return table_of(seed, subject, rows_at_once, teacher, says)

    return Exam(rows, subjects, open_, table, seed, {"send": verdict, "responses": Path(answers_kept().name)})


@cache
def answers_kept() -> tempfile.TemporaryDirectory[str]:
    """Where answers are kept as long as this process lives."""
    return tempfile.TemporaryDirectory(prefix="limbeck-")


def verdict(ask: Ask) -> Reply:
    """A judge in this process: it writes the verdict that it is asked for, with a word that the length of the question picks."""
    question = json.loads(ask.body or b"{}")["messages"][-1]["content"]
    form = re.findall(r"^VERDICT \w+ .*$", question, re.MULTILINE)[-1]
    words = {name: known.split(" or ") for name, known in re.findall(r"^(\w+): (.+ or .+)$", question.rpartition(form)[2], re.MULTILINE)}
    said = [f"{name}={known[len(question) % len(known)]}" for name, known in words.items()]
    text = " ".join([*form.split(" ")[:2], *said])
    choice = {"index": 0, "message": {"role": "assistant", "content": f"Both are texts.\n{text}"}, "finish_reason": "stop"}
    return Reply(200, {}, json.dumps({"choices": [choice]}).encode())


def exercise(evaluator: Evaluator) -> None:
    """One ordinary use."""
    evaluator(exam(says=evaluator.measures))


def found_by(evaluator: Evaluator, seed: int) -> dict[str, Any]:
    """What it finds, remembered while contracts of one evaluator follow each other."""
    key = type(evaluator), canonical_json(evaluator), seed
    if key not in LAST:
        LAST.clear()
        LAST[key] = evaluator(exam(seed, says=evaluator.measures))
    return LAST[key]


def figures(found: Mapping[str, Any], subject: str) -> dict[str, float]:
    """All figures of one subject that are numbers, those of tasks by the task's name."""
    own = found.get(subject, {})
    flat = {**own, **{name: task.get("value") for name, task in own.get("tasks", {}).items() if isinstance(task, Mapping)}}
    return {name: value for name, value in flat.items() if isinstance(value, (int, float)) and not isinstance(value, bool)}


@contract
def perfect(evaluator: Evaluator, seed: int = 0) -> None:
    """Where claimed: the teacher against itself gets the perfect figures."""
    if not evaluator.perfect:
        raise NotClaimed("no figure is claimed to be perfect")
    found = figures(found_by(evaluator, seed), "teacher")
    for name, value in evaluator.perfect.items():
        assert name in found, f"claimed; but {name} is not measured of the teacher"
        close(found[name], value, (0.0, 1e-6), f"claimed; but the teacher against itself gets {name}")


@contract
def in_range(evaluator: Evaluator, seed: int = 0) -> None:
    """Every figure lies in the range that is stated for it, and no stated one is missing everywhere."""
    if not evaluator.ranges:
        raise NotClaimed("no ranges are stated")
    found, seen = found_by(evaluator, seed), set()
    for subject in ("teacher", "student"):
        for name, value in figures(found, subject).items():
            low, high = evaluator.ranges.get(name, (-math.inf, math.inf))
            assert low <= value <= high, f"{name} of the {subject} is {value:.6g}, outside of {low} to {high}"
            seen.add(name)
    assert seen & evaluator.ranges.keys(), f"none of {', '.join(evaluator.ranges)} is measured"


@contract
def batch_size(evaluator: Evaluator, seed: int = 0) -> None:
    """How many rows are scored at once does not change a figure, except for those that measure time."""
    found = [found_by(evaluator, seed), *(evaluator(exam(seed, rows_at_once=num, says=evaluator.measures)) for num in (8, 3))]
    compared = 0
    for subject in ("teacher", "student"):
        one, again, other = (figures(each, subject) for each in found)
        for name in one:
            if one[name] == again[name]:
                close(other[name], one[name], (1e-4, 1e-5), f"{name} of the {subject} with 3 rows at once")
                compared += 1
    if not compared:
        raise NotClaimed("all its figures measure time")


@contract
def reads_only(evaluator: Evaluator, seed: int = 0) -> None:
    """It changes no weight, leaves every model in the mode in which it was, and gives plain data for the summary."""
    given = exam(seed, says=evaluator.measures)
    models: dict[str, Role] = {}
    for subject in given.subjects:
        with given.open(subject) as role:
            models[subject] = role
    before = {subject: {name: x.clone() for name, x in role.state_dict().items()} for subject, role in models.items()}
    modes = {subject: [m.training for m in role.modules()] for subject, role in models.items()}
    found = evaluator(given)
    json.dumps(found)
    for subject, role in models.items():
        assert all(torch.equal(x, before[subject][name]) for name, x in role.state_dict().items()), f"the weights of the {subject} changed"
        assert [m.training for m in role.modules()] == modes[subject], f"the {subject} is left in another mode"


@contract
def without_teacher(evaluator: Evaluator, seed: int = 0) -> None:
    """Where there is no teacher it measures what it can, or nothing: it does not fail."""
    found = evaluator(exam(seed, ("student",), teacher=False, says=evaluator.measures))
    assert "teacher" not in found, "it measures a teacher that is not there"
