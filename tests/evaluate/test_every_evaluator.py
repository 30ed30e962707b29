"""What every evaluator promises."""

import doctest
import importlib
import math
from typing import Any

import pytest
import torch

from limbeck.check.evaluate import verdict
from limbeck.check.models import (
    classifier,
    clips,
    denoiser,
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
from limbeck.component import find, members, validate
from limbeck.evaluate.base import Evaluator
from limbeck.signals import Row
from limbeck.student.masked_blocks import MaskedBlocks

SUBJECTS = ("teacher", "start", "student", "text_only")
SHORT: dict[str, dict[str, Any]] = {
    "identity": {"facts": {"name": "Limber"}, "num": 4, "new_tokens": 4},
    "similarity": {"num": 3, "new_tokens": 4, "prompt_bytes": 20},
    "speed": {"repeats": 2, "new_tokens": 2, "prompt_tokens": 4, "contexts": (8,)},
    "tasks": {"questions": 4, "passage_bytes": 40},
}
"""Settings that make an evaluator quick; none but these."""


@pytest.fixture(params=sorted(members("evaluate")))
def evaluator(request) -> type[Evaluator]:
    return find(Evaluator, request.param)


def test_it_is_made_by_its_name_alone_and_says_what_it_does(evaluator):
    made = evaluator()
    assert validate(evaluator, made.model_dump(mode="json")) == made
    kind = evaluator.model_fields["kind"].default
    assert members("evaluate")[kind].endswith(".") and all(field.description for name, field in evaluator.model_fields.items() if name != "kind")


def test_its_example_runs(evaluator):
    module = importlib.import_module(evaluator.__module__)
    assert doctest.testmod(module).attempted > 0 and doctest.testmod(module).failed == 0
    assert "References:" in (evaluator.__doc__ or "")


def numbers(found: Any) -> list[tuple[str, float]]:
    """Name and value of every number in what was found, by the last name above it."""
    if isinstance(found, dict):
        return [
            (name if isinstance(value, (int, float)) else inner, x)
            for name, value in found.items()
            for inner, x in ([(name, value)] if isinstance(value, (int, float)) else numbers(value))
        ]
    return [(name, x) for value in found for name, x in numbers(value)] if isinstance(found, list) and all(isinstance(v, dict) for v in found) else []


def test_its_values_are_within_the_ranges_that_it_claims(evaluator, examine, speaker):
    rows = [Row(f"row{i}", {"text": f"{word} " * 12}, source=word) for i, word in enumerate(("mat", "cat", "dog", "sun", "sea"))]
    roles = {name: speaker(seed, layers=2 - (seed > 0)) for seed, name in enumerate(SUBJECTS)}
    if evaluator.measures == "score":
        rows, roles = list(lists(0).train), {name: ranker_of(seed, torch.float32) for seed, name in enumerate(SUBJECTS)}
    if evaluator.measures == "label":
        rows, roles = list(pictures(0)), {name: classifier(seed, torch.float32) for seed, name in enumerate(SUBJECTS)}
    if evaluator.measures == "hidden":
        rows, roles = clips(num=40), {name: hearing_model(seed, torch.float32) for seed, name in enumerate(SUBJECTS)}
    if evaluator.measures == "pitch":
        rows, roles = list(pitched(0)), {name: pitch_tracker(seed, torch.float32) for seed, name in enumerate(SUBJECTS)}
    if evaluator.measures == "sample":
        rows, roles = list(points(0, 80).train), {name: denoiser(seed, torch.float32) for seed, name in enumerate(SUBJECTS)}
    if evaluator.measures == "transcript":
        rows, roles = list(spoken(0, "held_out").held_out), {name: transcriber_of(seed, torch.float32) for seed, name in enumerate(SUBJECTS)}
    if evaluator.measures == "blocks":
        roles = {name: MaskedBlocks(length=8)(role) for name, role in roles.items()}
    made = evaluator(**SHORT.get(evaluator.model_fields["kind"].default, {}))
    found = made(examine(rows, roles))
    for subject in SUBJECTS:
        values = {**found.get(subject, {}), **{name: x["value"] for name, x in found.get(subject, {}).get("tasks", {}).items()}}
        for name, (low, high) in evaluator.ranges.items():
            if (value := values.get(name)) is not None:
                assert low <= value <= high, f"{subject} {name}"
    assert set(evaluator.ranges) & {name for subject in SUBJECTS for name in (*found.get(subject, {}), *found.get(subject, {}).get("tasks", {}))}
    assert all(math.isfinite(x) for _, x in numbers(found)) and numbers(found)


def test_the_teacher_against_itself_is_as_claimed(evaluator, examine, speaker, rows, tmp_path):
    if evaluator.perfect:
        spoken_rows, heard = list(spoken(0, "held_out").held_out), {"teacher": transcriber_of(0, torch.float32)}
        rows, roles = (spoken_rows, heard) if evaluator.measures == "transcript" else (rows, {"teacher": speaker(0)})
        found = evaluator.example()(examine(rows, roles, send=verdict, responses=tmp_path))["teacher"]
        assert {name: found[name] for name in evaluator.perfect} == pytest.approx(dict(evaluator.perfect), abs=1e-6)
