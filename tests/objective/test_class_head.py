"""The class of a row from the states of the student."""

from dataclasses import replace
from typing import Any

import pytest

from limbeck.check.example import build, say
from limbeck.check.models import clips, hearing_model
from limbeck.errors import Refused
from limbeck.objective.class_head import ClassHead
from limbeck.signals import Row


def test_it_is_the_cross_entropy_of_a_linear_map_of_mean_states() -> None:
    objective = ClassHead(classes=11)
    said = say(objective)
    learned: Any = build(objective, said)
    got, x = objective.values(**said, learned=learned), said["student"]["hidden.-1"]
    for i, (first, last) in enumerate(((0, 4), (4, 9), (9, 12), (12, 16), (16, 22), (22, 25))):  # positions of the example's six rows
        logits = learned.weight @ x[first:last].mean(0) + learned.bias
        expected = logits.logsumexp(0) - logits[said["student"]["class"][i]]
        assert float((got[i] - expected).detach()) == pytest.approx(0, abs=1e-12)


def test_classes_beyond_those_that_are_stated_are_refused() -> None:
    objective = ClassHead(classes=2)
    said = say(objective)
    learned: Any = build(objective, said)
    assert int(said["student"]["class"].max()) > 1
    with pytest.raises(Refused, match="a class from 0 to 1"):
        objective.values(**said, learned=learned)


def test_a_class_below_0_is_not_answered_with_more_classes() -> None:
    objective = ClassHead(classes=11)
    said = say(objective)
    learned: Any = build(objective, said)
    wrong = said["student"]["class"].clone()
    wrong[0] = -1
    student = replace(said["student"], values={**said["student"].values, "class": wrong})
    with pytest.raises(Refused, match="got +class -1") as caught:
        objective.values(student, learned=learned)
    assert "from 0" in caught.value.do and "write classes" not in caught.value.do


def test_rows_without_a_class_are_refused() -> None:
    role, rows = hearing_model(), clips()[:2]
    assert role.says(role.view(rows), ("class",), {})["class"].tolist() == [0, 1]
    plain: list[Row] = [replace(row, content={"wave": row.content["wave"], "rate": row.content["rate"]}) for row in rows]
    with pytest.raises(Refused, match="a class of each row"):
        role.says(role.view(plain), ("class",), {})
