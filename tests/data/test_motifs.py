"""Planted motifs: that the label says whether one is there, and that nothing else gives it away."""

from collections import Counter
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from limbeck.data.base import Place, Rows
from limbeck.data.motifs import Motifs
from limbeck.errors import Refused
from limbeck.model.base import Models
from limbeck.numerics import Streams
from limbeck.signals import Row


def made(seed: int = 0, **fields: Any) -> tuple[list[Row], Rows]:
    rows = Motifs(**fields).rows(Rows(), Place(Models({}), Streams(seed)))
    return [*rows.train, *rows.held_out], rows


def motif_of(rows: Rows) -> str:
    return rows.notes[0].split(": ")[1].split(" in ")[0]


def test_the_motif_stands_in_every_labelled_sequence_and_in_no_other() -> None:
    rows, all_of = made(num=200, bases=60, motif_length=12)
    motif = motif_of(all_of)
    assert len(motif) == 12 and Counter(row.content["label"] for row in rows) == {0: 100, 1: 100}
    assert all((motif in row.content["text"]) == bool(row.content["label"]) for row in rows)
    assert all(len(row.content["text"]) == 60 and set(row.content["text"]) <= set("ACGT") for row in rows)
    assert len({row.content["text"].find(motif) for row in rows if row.content["label"]}) > 20  # of 49 places


def test_a_sequence_that_holds_a_short_motif_by_chance_is_drawn_again_and_no_other_one_is_moved() -> None:
    fields: dict[str, Any] = {"num": 200, "bases": 60, "motif_length": 4, "motif_seed": 1}  # AGAT
    rows, all_of = made(**fields)
    motif = motif_of(all_of)
    assert all((motif in row.content["text"]) == bool(row.content["label"]) for row in rows)
    assert [row.key for row in rows] == [row.key for row in made(**fields)[0]]
    step, stream = Motifs(**fields), Streams(0)("motifs")
    numbers = torch.tensor(["ACGT".index(letter) for letter in motif])[None]
    first = [step.row(i, numbers, stream) for i in range(200)]
    kept = {row.key for row in first if row is not None}
    # the shuffled letters are AGAT in 1 of 12; elsewhere it stands in 1 - (1 - 1/256)^57 = 20%: 27 of 100 expected, a standard deviation is 4.4
    assert 13 < 200 - len(kept) < 41 and kept <= {row.key for row in rows}
    several, told = made(num=60, bases=60, motif_length=4, motifs=3)
    assert not any(m in row.content["text"] for row in several if not row.content["label"] for m in motif_of(told).split(", "))
    with pytest.raises(Refused, match="take longer or fewer motifs"):
        made(num=4, bases=8000, motif_length=4)  # 8,000 / 256: 31 times a sequence


def test_how_often_each_base_stands_in_a_sequence_tells_nothing() -> None:
    """Were the other half plain noise, a motif of one base alone would show in counts; here it cannot: it is in both halves."""
    rows, all_of = made(num=4000, bases=24, motif_length=20, motif_seed=3)
    motif = motif_of(all_of)
    base = Counter(motif).most_common(1)[0][0]
    for label in (0, 1):
        counts = [row.content["text"].count(base) for row in rows if row.content["label"] == label]
        expected = motif.count(base) + 4 / 4
        assert abs(sum(counts) / len(counts) - expected) < 0.1  # standard deviation of the mean: sqrt(4 * 3 / 16 / 2000) = 0.02


def test_the_motif_is_of_its_own_seed_and_sequences_of_the_recipes() -> None:
    (one, a), (other, b) = made(0, num=20), made(1, num=20)
    assert motif_of(a) == motif_of(b) and {r.key for r in one}.isdisjoint(r.key for r in other)
    assert motif_of(made(0, num=20, motif_seed=1)[1]) != motif_of(a)


def test_mutated_letters_are_others_as_often_as_is_said() -> None:
    rows, all_of = made(num=400, bases=18, mutate=0.25)
    motif = motif_of(all_of)
    differ = [sum(a != b for a, b in zip(row.content["text"], motif, strict=True)) for row in rows if row.content["label"]]
    assert abs(sum(differ) / (18 * len(differ)) - 0.25) < 0.03  # standard deviation: sqrt(.1875 / 3600) = 0.007


def test_several_motifs_take_turns() -> None:
    rows, all_of = made(num=60, motifs=3)
    motifs = motif_of(all_of).split(", ")
    counts = Counter(next(m for m in motifs if m in row.content["text"]) for row in rows if row.content["label"])
    assert len(motifs) == 3 and set(counts.values()) == {10}


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValidationError, match="at most bases, 10"):
        Motifs(bases=10)
    with pytest.raises(Refused, match="remove held_out"):
        made(held_out="other.fa")
