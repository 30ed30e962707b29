"""A linear map from frozen states: against scikit-learn, and that nobody is answered by a map that has seen him."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from limbeck.check.data import masked
from limbeck.check.models import classifier, clips, hearing_model, pictures
from limbeck.evaluate.base import Exam
from limbeck.evaluate.probe import NAME, Probe, fitted, noisy, pooled
from limbeck.model.base import Role
from limbeck.numerics import Streams
from limbeck.signals import Row

ROLES: dict[str, Role] = {"teacher": hearing_model(0, torch.float32, layers=3), "student": hearing_model(1, torch.float32)}
DRAW = torch.Generator().manual_seed(0)


def exam(rows: list[Row], **roles: Role) -> Exam:
    @contextmanager
    def open_(name: str) -> Iterator[Role]:
        yield roles[name]

    return Exam(rows, tuple(roles), open_, lambda _: pytest.fail("no table is needed"))


def test_the_map_is_scikit_learns_ridge_on_standardised_states() -> None:
    states, others = torch.randn(40, 7, generator=DRAW).double() * 3 + 5, torch.randn(9, 7, generator=DRAW).double()
    label = torch.randint(3, (40,), generator=DRAW)
    states[:, 4] = 2.0  # a channel that says nothing is not divided by zero
    mean, scale = states.mean(0).numpy(), np.where(states.std(0, correction=0).numpy() > 1e-12, states.std(0, correction=0).numpy(), 1)
    theirs = Ridge(alpha=0.1 * 40).fit((states.numpy() - mean) / scale, np.eye(3)[label.numpy()]).predict((others.numpy() - mean) / scale)
    np.testing.assert_allclose(fitted(states, label, 3, 0.1, others).numpy(), theirs, rtol=1e-8, atol=1e-10)


def test_a_label_that_stands_in_the_states_is_read_out_and_one_of_noise_is_not() -> None:
    label = torch.randint(2, (300,), generator=DRAW)
    fold, states = torch.arange(300) % 5, torch.randn(300, 20, generator=DRAW).double()
    noise = Probe().right([states], label, 2, fold)[0].double().mean()
    states[:, 3] += 6 * label
    assert Probe().right([states], label, 2, fold)[0].double().mean() > 0.97
    assert 0.38 < noise < 0.62  # chance, with a standard deviation of 0.03: a map that had seen its rows would do far better
    wide = torch.randn(300, 320, generator=DRAW).double()
    assert bool((fitted(wide, label, 2, 1e-9, wide).argmax(-1) == label).all())
    assert Probe(ridge=1e-9).right([wide], label, 2, fold)[0].double().mean() < 0.65


def test_pieces_of_one_document_are_answered_by_maps_of_other_documents() -> None:
    rows = [Row(f"{d}-{i}", {"text": "A", "label": d % 2}, source=f"document-{d}") for d in range(40) for i in range(3)]
    folds = [Probe().fold(row) for row in rows]
    assert all(len(set(folds[i : i + 3])) == 1 for i in range(0, 120, 3)) and len(set(folds)) == 5


def test_states_are_the_mean_over_the_positions_of_each_row() -> None:
    role = masked("nucleotides")
    rows = [Row(f"{i}", {"text": text, "label": 0}) for i, text in enumerate(["ACGTTTACG", "A", "ACGNA"] * 4)]
    found, states = pooled(role, rows, 1)
    assert len(states) == sum(len(role.view([row]).inputs["ids"]) for row in rows)
    with torch.no_grad():
        alone = torch.stack([role.says(role.view([row]), ("hidden.1",), {})["hidden.1"].mean(0) for row in rows])
    torch.testing.assert_close(found, alone.double(), rtol=1e-6, atol=1e-8)
    images, _ = pooled(classifier(), pictures(), -1)
    assert len(images) == len(pictures()) and images.ndim == 2 and len(images.unique(dim=0)) > 30


def test_what_it_tells_of_each_subject_and_of_the_rows() -> None:
    rows = [Row(f"{i}", {"text": ("AC", "GT")[i % 2] * (5 + i % 7), "label": i % 2}, source=f"{i}") for i in range(60)]
    rows.append(Row("no label", {"text": "ACGT"}))
    found = Probe()(exam(rows, teacher=masked("kmer6"), student=masked("nucleotides")))
    assert found["probe"] == {"rows": 60, "kinds": 2, "most_frequent": 0.5, "layer": -1}
    for subject in ("teacher", "student"):
        figure = found[subject]["metrics"][NAME]
        assert found[subject]["probe_accuracy"] == 1.0 and figure["value"] == 100.0 and figure["unit"] == "%"


@pytest.mark.parametrize("labels", [[None] * 8, [1] * 8], ids=["none", "of one kind"])
def test_without_labels_or_with_one_kind_it_measures_nothing(labels: list[Any]) -> None:
    rows = [Row(f"{i}", {"text": "ACGT"} | ({} if label is None else {"label": label}), source=f"{i}") for i, label in enumerate(labels)]
    assert Probe()(exam(rows, student=masked("nucleotides"))) == {}


def test_classes_that_show_in_the_states_are_read_and_random_ones_are_not() -> None:
    rows = clips(num=80)
    shuffled = [replace(row, content={**row.content, "label": (i * i // 7) % 2}) for i, row in enumerate(rows)]
    told, chance = (Probe(ratios=(40,), ridge=0.01)(exam(some, **ROLES)) for some in (rows, shuffled))
    assert told["student"]["probe_accuracy"] > 0.95 and told["student"]["probe_accuracy_40db"] > 0.9  # two pitches, in noise of 10 dB
    assert 0.25 < chance["student"]["probe_accuracy"] < 0.75
    assert told["student"]["metrics"][NAME]["value"] == pytest.approx(100 * told["student"]["probe_accuracy"])


def test_noise_takes_away_what_it_should_and_louder_noise_takes_more() -> None:
    found = Probe(ratios=(-20, 0, 40), ridge=0.01)(exam(clips(num=60), **ROLES))["student"]
    assert found["steady_-20db"] < found["steady_0db"] < found["steady_40db"] and found["steady_40db"] > 0.99
    assert found["probe_accuracy_-20db"] < 0.9 < found["probe_accuracy_40db"]  # two classes: at -20 dB nearly a guess


def test_noise_is_so_loud_as_is_said_and_the_same_for_each_subject() -> None:
    row = clips()[0]
    one, again, other = noisy(row, 5, Streams(0)), noisy(row, 5, Streams(0)), noisy(row, 5, Streams(1))
    assert torch.equal(one.content["wave"], again.content["wave"]) and not torch.equal(one.content["wave"], other.content["wave"])
    rest = (one.content["wave"] - row.content["wave"]).double()
    assert 10 * float(torch.log10(row.content["wave"].double().square().mean() / rest.square().mean())) == pytest.approx(5, abs=1e-3)


def test_no_row_is_told_by_a_map_that_was_made_on_its_document() -> None:
    alone = [replace(row, content={**row.content, "label": i // 2}, source=f"pair-{i // 2}") for i, row in enumerate(clips(num=16))]
    found = Probe(ratios=(), ridge=0.01)(exam(alone, **ROLES))["student"]  # each class is one document: where that is left out, nothing can name it
    assert found["probe_accuracy"] == 0.0


def test_the_gap_to_another_subject_is_paired() -> None:
    same: dict[str, Role] = {"teacher": ROLES["student"], "student": ROLES["student"]}
    gap = Probe(ratios=(0,), ridge=0.01)(exam(clips(num=40), **same))["gaps"]["teacher"]
    assert gap == {NAME: 0.0, f"{NAME}_error": 0.0, f"{NAME} at 0 dB": 0.0, f"{NAME} at 0 dB_error": 0.0}
