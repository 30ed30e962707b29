"""Layer maps: every pair list written out, and what numbers mean once there is a map."""

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from limbeck.align.base import expanded, raw
from limbeck.align.layer_map import MAPS, LayerMap, Pairs
from limbeck.errors import Refused
from limbeck.model.base import Models, Role
from limbeck.objective.hidden_mse import HiddenMSE
from limbeck.signals import Batch, Signals, View

# (teacher layers, student layers) -> map -> pairs (student, teacher); 1 is the first block, 0 the embedding
BY_HAND: dict[tuple[int, int], dict[str, Pairs]] = {
    (12, 6): {
        "last": ((6, 12),),
        "last_k": ((1, 7), (2, 8), (3, 9), (4, 10), (5, 11), (6, 12)),
        "uniform": ((1, 2), (2, 4), (3, 6), (4, 8), (5, 10), (6, 12)),
        "uniform_consecutive": (
            (1, 0),
            (1, 1),
            (1, 2),
            (2, 2),
            (2, 3),
            (2, 4),
            (3, 4),
            (3, 5),
            (3, 6),
            (4, 6),
            (4, 7),
            (4, 8),
            (5, 8),
            (5, 9),
            (5, 10),
            (6, 10),
            (6, 11),
            (6, 12),
        ),
        "uniform_plus_last": ((1, 2), (1, 7), (2, 4), (2, 8), (3, 6), (3, 9), (4, 8), (4, 10), (5, 10), (5, 11), (6, 12)),
    },
    (12, 4): {
        "last": ((4, 12),),
        "last_k": ((1, 9), (2, 10), (3, 11), (4, 12)),
        "uniform": ((1, 3), (2, 6), (3, 9), (4, 12)),
        "uniform_consecutive": (
            (1, 0),
            (1, 1),
            (1, 2),
            (1, 3),
            (2, 3),
            (2, 4),
            (2, 5),
            (2, 6),
            (3, 6),
            (3, 7),
            (3, 8),
            (3, 9),
            (4, 9),
            (4, 10),
            (4, 11),
            (4, 12),
        ),
        "uniform_plus_last": ((1, 3), (1, 9), (2, 6), (2, 10), (3, 9), (3, 11), (4, 12)),
    },
    (24, 6): {
        "last": ((6, 24),),
        "last_k": ((1, 19), (2, 20), (3, 21), (4, 22), (5, 23), (6, 24)),
        "uniform": ((1, 4), (2, 8), (3, 12), (4, 16), (5, 20), (6, 24)),
        "uniform_consecutive": (
            (1, 0),
            (1, 1),
            (1, 2),
            (1, 3),
            (1, 4),
            (2, 4),
            (2, 5),
            (2, 6),
            (2, 7),
            (2, 8),
            (3, 8),
            (3, 9),
            (3, 10),
            (3, 11),
            (3, 12),
            (4, 12),
            (4, 13),
            (4, 14),
            (4, 15),
            (4, 16),
            (5, 16),
            (5, 17),
            (5, 18),
            (5, 19),
            (5, 20),
            (6, 20),
            (6, 21),
            (6, 22),
            (6, 23),
            (6, 24),
        ),
        "uniform_plus_last": ((1, 4), (1, 19), (2, 8), (2, 20), (3, 12), (3, 21), (4, 16), (4, 22), (5, 20), (5, 23), (6, 24)),
    },
    (30, 8): {
        "last": ((8, 30),),
        "last_k": ((1, 23), (2, 24), (3, 25), (4, 26), (5, 27), (6, 28), (7, 29), (8, 30)),
        "uniform": ((1, 3), (2, 7), (3, 11), (4, 15), (5, 18), (6, 22), (7, 26), (8, 30)),
        "uniform_consecutive": (
            (1, 0),
            (1, 1),
            (1, 2),
            (1, 3),
            (1, 4),
            (2, 4),
            (2, 5),
            (2, 6),
            (2, 7),
            (2, 8),
            (3, 8),
            (3, 9),
            (3, 10),
            (3, 11),
            (3, 12),
            (4, 12),
            (4, 13),
            (4, 14),
            (4, 15),
            (4, 16),
            (5, 16),
            (5, 17),
            (5, 18),
            (5, 19),
            (5, 20),
            (6, 20),
            (6, 21),
            (6, 22),
            (6, 23),
            (6, 24),
            (7, 24),
            (7, 25),
            (7, 26),
            (7, 27),
            (7, 28),
            (8, 28),
            (8, 29),
            (8, 30),
        ),
        "uniform_plus_last": (
            (1, 3),
            (1, 23),
            (2, 7),
            (2, 24),
            (3, 11),
            (3, 25),
            (4, 15),
            (4, 26),
            (5, 18),
            (5, 27),
            (6, 22),
            (6, 28),
            (7, 26),
            (7, 29),
            (8, 30),
        ),
    },
}


def models(student: int, teacher: int) -> Models:
    """Roles that have a depth and nothing else."""
    made = Models({"student": Role(nn.Identity()), "teacher": Role(nn.Identity()), "critic": Role(nn.Identity())})
    made["student"].num_layers, made["teacher"].num_layers = student, teacher
    return made


@pytest.mark.parametrize("name", list(MAPS))
@pytest.mark.parametrize("depths", list(BY_HAND))
def test_every_map_gives_the_pairs_written_out_by_hand(depths: tuple[int, int], name: str) -> None:
    teacher, student = depths
    settled = LayerMap(map=name).settle(models(student, teacher))  # type: ignore[arg-type]
    assert settled == LayerMap(map="explicit", pairs=BY_HAND[depths][name])


def test_models_of_one_depth_stand_beside_each_other() -> None:
    same = tuple((i, i) for i in range(1, 5))
    assert all(LayerMap(map=name).settle(models(4, 4)).pairs == same for name in ("uniform", "last_k", "uniform_plus_last"))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["last_k", "uniform_plus_last"])
def test_a_map_that_runs_out_of_teacher_layers_is_refused_and_does_not_go_on_at_the_last(name: str) -> None:
    with pytest.raises(Refused) as caught:
        LayerMap(map=name).settle(models(6, 4))  # type: ignore[arg-type]
    assert caught.value.slug == "layer" and "(1, -1)" in caught.value.got and caught.value.do == "map: uniform"


@pytest.mark.parametrize("pair, role", [((1, 13), "teacher"), ((7, 1), "student"), ((1, -13), "teacher"), ((-7, 1), "student")])
def test_a_pair_beyond_a_model_is_refused(pair: tuple[int, int], role: str) -> None:
    with pytest.raises(Refused) as caught:
        LayerMap(map="explicit", pairs=((1, 1), pair)).settle(models(6, 12))
    assert caught.value.expected.endswith(f"of {role}") and str(pair) in caught.value.got


@pytest.mark.parametrize("fields", [{"map": "explicit"}, {"map": "last", "pairs": ((1, 2),)}, {"pairs": ((1, 2),)}])
def test_pairs_are_given_if_and_only_if_the_map_is_explicit(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="if, and only if"):
        LayerMap.model_validate(fields)


def test_numbers_are_those_of_pairs_and_negative_ones_count_from_the_last_pair() -> None:
    settled = LayerMap(map="explicit", pairs=((1, 4), (2, -1)))
    assert settled.requires("student", ("hidden.0", "query.-1", "logits", "label")) == ("hidden.1", "query.2", "logits", "label")
    assert settled.requires("teacher", ("hidden.0", "query.-1")) == ("hidden.4", "query.-1")
    assert settled.requires("critic", ("hidden.0",)) == ("hidden.0",)
    assert expanded((settled,), ("hidden.*", "logits")) == ("hidden.0", "hidden.1", "logits")
    with pytest.raises(Refused, match="a pair of the layer map, from 0 to 1"):
        settled.requires("student", ("hidden.2",))


def test_a_layer_in_two_pairs_is_asked_for_once_and_heard_twice() -> None:
    settled = LayerMap(map="explicit", pairs=((1, 2), (1, 4)))
    assert raw((settled,), "student", ("hidden.0", "hidden.1")) == ("hidden.1",)
    assert raw((settled,), "teacher", ("hidden.0", "hidden.1")) == ("hidden.2", "hidden.4")
    batch = Batch({"student": View({"ids": torch.arange(2)}, torch.tensor([2]))}, ("",), torch.tensor([0]), ("k",), torch.ones(1))

    def said(role: str, values: dict[str, torch.Tensor]) -> Signals:
        return settled(role, batch.signals(role, values), batch)

    one, two, four = torch.zeros(2, 3), torch.ones(2, 3), torch.full((2, 3), 3.0)
    student, teacher = said("student", {"hidden.1": one, "logits": one}), said("teacher", {"hidden.2": two, "hidden.4": four})
    assert student["hidden.0"] is student["hidden.1"] is one and student["logits"] is one
    assert teacher["hidden.0"] is two and teacher["hidden.1"] is four and teacher["hidden.-1"] is four
    loss = HiddenMSE(layers="all")({"student": student, "teacher": teacher})
    assert loss.count == 2 and loss.total.item() == 2 * (1 + 9) / 2


def test_roles_of_other_names_can_stand_in_a_pair() -> None:
    made = models(2, 4)
    made["critic"].num_layers = 2
    settled = LayerMap(student="critic").settle(made)
    assert settled.pairs == ((1, 2), (2, 4)) and settled.requires("critic", ("hidden.0",)) == ("hidden.1",)
    assert settled.requires("student", ("hidden.0",)) == ("hidden.0",)
