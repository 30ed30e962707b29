"""A linear map from frozen states: against scikit-learn, and that nobody is answered by a map that has seen him."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from limbeck.check.data import masked
from limbeck.check.models import classifier, pictures
from limbeck.evaluate.base import Exam
from limbeck.evaluate.probe import Probe, fitted, pooled
from limbeck.model.base import Role
from limbeck.signals import Row

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
    noise = Probe().right(states, label, 2, fold).double().mean()
    states[:, 3] += 6 * label
    assert Probe().right(states, label, 2, fold).double().mean() > 0.97
    assert 0.38 < noise < 0.62  # chance, with a standard deviation of 0.03: a map that had seen its rows would do far better
    wide = torch.randn(300, 320, generator=DRAW).double()
    assert bool((fitted(wide, label, 2, 1e-9, wide).argmax(-1) == label).all())
    assert Probe(ridge=1e-9).right(wide, label, 2, fold).double().mean() < 0.65


def test_pieces_of_one_document_are_answered_by_maps_of_other_documents() -> None:
    rows = [Row(f"{d}-{i}", {"text": "A", "label": d % 2}, source=f"document-{d}") for d in range(40) for i in range(3)]
    folds = [Probe().fold(row) for row in rows]
    assert all(len(set(folds[i : i + 3])) == 1 for i in range(0, 120, 3)) and len(set(folds)) == 5


def test_states_are_the_mean_over_the_positions_of_each_row() -> None:
    role = masked("nucleotides")
    rows = [Row(f"{i}", {"text": text, "label": 0}) for i, text in enumerate(["ACGTTTACG", "A", "ACGNA"] * 4)]
    found = pooled(role, rows, 1)
    with torch.no_grad():
        alone = torch.stack([role.says(role.view([row]), ("hidden.1",), {})["hidden.1"].mean(0) for row in rows])
    torch.testing.assert_close(found, alone.double(), rtol=1e-6, atol=1e-8)
    images = pooled(classifier(), pictures(), -1)
    assert len(images) == len(pictures()) and images.ndim == 2 and len(images.unique(dim=0)) > 30


def test_what_it_tells_of_each_subject_and_of_the_rows() -> None:
    rows = [Row(f"{i}", {"text": ("AC", "GT")[i % 2] * (5 + i % 7), "label": i % 2}, source=f"{i}") for i in range(60)]
    rows.append(Row("no label", {"text": "ACGT"}))
    found = Probe()(exam(rows, teacher=masked("kmer6"), student=masked("nucleotides")))
    assert found["probe"] == {"rows": 60, "kinds": 2, "most_frequent": 0.5, "layer": -1}
    for subject in ("teacher", "student"):
        figure = found[subject]["metrics"]["labels read out by a linear probe"]
        assert found[subject]["probe_accuracy"] == 1.0 and figure["value"] == 100.0 and figure["unit"] == "%"


@pytest.mark.parametrize("labels", [[None] * 8, [1] * 8], ids=["none", "of one kind"])
def test_without_labels_or_with_one_kind_it_measures_nothing(labels: list[Any]) -> None:
    rows = [Row(f"{i}", {"text": "ACGT"} | ({} if label is None else {"label": label}), source=f"{i}") for i, label in enumerate(labels)]
    assert Probe()(exam(rows, student=masked("nucleotides"))) == {}
