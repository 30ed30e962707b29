"""What a linear map reads off frozen states: held against scikit-learn, and against what noise does."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from limbeck.check.models import clips, family_of, hearing_model
from limbeck.evaluate.base import Exam, Table
from limbeck.evaluate.probe import Probe, fitted, noisy
from limbeck.model.base import Role
from limbeck.numerics import Streams
from limbeck.signals import Row

ROLES: dict[str, Role] = {"teacher": hearing_model(0, torch.float32, layers=3), "student": hearing_model(1, torch.float32)}


def exam(rows: Any, roles: dict[str, Role] = ROLES, seed: int = 0) -> Exam:
    @contextmanager
    def open_(subject: str) -> Iterator[Role]:
        yield roles[subject]

    def table(subject: str) -> Table:
        raise AssertionError("an encoder has no table of answers")

    return Exam(rows, tuple(roles), open_, table, seed)


def test_the_map_is_ridge_regression_on_scaled_states() -> None:
    draw = torch.Generator().manual_seed(0)
    x, other = (3 + 2 * torch.randn(60, 5, generator=draw, dtype=torch.float64) for _ in range(2))
    label = torch.randint(3, (60,), generator=draw)
    scaler = StandardScaler().fit(x.numpy())
    theirs = Ridge(alpha=0.05 * 60).fit(scaler.transform(x.numpy()), torch.nn.functional.one_hot(label).numpy())
    expected = theirs.predict(scaler.transform(other.numpy())).argmax(1)
    assert fitted(x, label, 0.05)(other).tolist() == expected.tolist()


def test_classes_that_show_in_the_states_are_read_and_random_ones_are_not() -> None:
    rows = clips(num=80)
    shuffled = [replace(row, content={**row.content, "label": (i * i // 7) % 2}) for i, row in enumerate(rows)]
    told, chance = (Probe(ratios=(40,))(exam(some)) for some in (rows, shuffled))
    assert told["student"]["probe"] > 0.95 and told["student"]["probe_40db"] > 0.9  # two pitches, in noise of 10 dB
    assert 0.25 < chance["student"]["probe"] < 0.75
    assert told["student"]["metrics"]["probe accuracy"]["value"] == pytest.approx(100 * told["student"]["probe"])


def test_noise_takes_away_what_it_should_and_louder_noise_takes_more() -> None:
    found = Probe(ratios=(-20, 0, 40))(exam(clips(num=60)))["student"]
    assert found["steady_-20db"] < found["steady_0db"] < found["steady_40db"] and found["steady_40db"] > 0.99
    assert found["probe_-20db"] < 0.9 < found["probe_40db"]  # two classes: at -20 dB nearly a guess


def test_noise_is_so_loud_as_is_said_and_the_same_for_each_subject() -> None:
    row = clips()[0]
    one, again, other = noisy(row, 5, Streams(0)), noisy(row, 5, Streams(0)), noisy(row, 5, Streams(1))
    assert torch.equal(one.content["wave"], again.content["wave"]) and not torch.equal(one.content["wave"], other.content["wave"])
    rest = (one.content["wave"] - row.content["wave"]).double()
    assert 10 * float(torch.log10(row.content["wave"].double().square().mean() / rest.square().mean())) == pytest.approx(5, abs=1e-3)


def test_no_row_is_told_by_a_map_that_was_made_on_its_document() -> None:
    alone = [replace(row, content={**row.content, "label": i // 2}, source=f"pair-{i // 2}") for i, row in enumerate(clips(num=16))]
    found = Probe(ratios=())(exam(alone))["student"]  # each class is one document: where that is left out, nothing can name it
    assert found["probe"] == 0.0


def test_the_gap_to_another_subject_is_paired() -> None:
    same: dict[str, Role] = {"teacher": ROLES["student"], "student": ROLES["student"]}
    gap = Probe(ratios=(0,))(exam(clips(num=40), same))["gaps"]["teacher"]
    assert gap == {"probe accuracy": 0.0, "probe accuracy_error": 0.0, "probe accuracy at 0 dB": 0.0, "probe accuracy at 0 dB_error": 0.0}


def test_rows_without_classes_and_models_that_answer_themselves_are_left_alone() -> None:
    plain = [replace(row, content={name: x for name, x in row.content.items() if name != "label"}) for row in clips()]
    assert Probe()(exam(plain)) == {}
    text = [Row(str(i), {"text": "some", "label": i % 2}) for i in range(4)]
    assert Probe()(exam(text, {"student": family_of("llama", 0, torch.float32)})) == {}
