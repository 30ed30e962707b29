"""The length of the gap between states, by hand; the same base compares what mixers say."""

import math
from collections.abc import Callable

import pytest
import torch

from limbeck.check.models import Trial
from limbeck.component import canonical_json
from limbeck.objective.hidden_cosine import HiddenCosine
from limbeck.objective.hidden_l2 import HiddenL2
from limbeck.objective.hidden_mse import HiddenMSE
from limbeck.signals import Signals

Say = Callable[..., Signals]


def states(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def test_the_value_by_hand_is_the_length_of_the_gap_not_its_square_and_the_mean_over_layers(say: Say) -> None:
    student = say({"hidden.1": states([3, 4], [1, 1]), "hidden.3": states([5, 12], [0, 0])})
    teacher = say({"hidden.1": states([0, 0], [1, 1]), "hidden.3": states([0, 0], [0, 1])})
    said = {"student": student, "teacher": teacher}
    assert HiddenL2(layers=(1, 3)).values(**said).tolist() == pytest.approx([(5 + 13) / 2, (0 + 1) / 2])
    assert HiddenL2(layers=(1, 3), by_width=True).values(**said).tolist() == pytest.approx([9 / math.sqrt(2), 0.5 / math.sqrt(2)])


def test_its_gradient_has_length_one_however_small_the_gap_and_is_zero_where_there_is_none(say: Say) -> None:
    student = states([1, 2], [1, 2 + 1e-9], [1, 9]).requires_grad_()
    loss = HiddenL2()({"student": say({"hidden.-1": student}), "teacher": say({"hidden.-1": states([1, 2], [1, 2], [1, 2])})})
    loss.total.backward()
    assert student.grad is not None and student.grad.tolist() == [[0, 0], [0, pytest.approx(1)], [0, pytest.approx(1)]]


@pytest.mark.parametrize("kind", [HiddenL2, HiddenMSE, HiddenCosine])
def test_what_mixers_say_is_compared_like_what_blocks_say(kind: type[HiddenL2], say: Say) -> None:
    a, b = states([1, 2], [0, 1]), states([2, 2], [3, 1])
    blocks = kind(layers=(2,)).values(say({"hidden.2": a}), say({"hidden.2": b}))
    mixers = kind(layers=(2,), signal="mixer")
    assert mixers.needs == {"student": ("mixer.2",), "teacher": ("mixer.2",)} and kind(layers="all", signal="mixer").needs["student"] == ("mixer.*",)
    assert torch.equal(mixers.values(say({"mixer.2": a, "hidden.2": b}), say({"mixer.2": b, "hidden.2": b})), blocks)
    assert kind(layers="all", signal="mixer").names(say({"mixer.10": a, "hidden.1": a, "mixer.9": a, "mixer.-1": a})) == ["mixer.9", "mixer.10"]


def test_the_mean_squared_error_times_the_width_is_the_square_of_it(say: Say) -> None:
    student, teacher = say({"mixer.1": states([1, 2, 2])}), say({"mixer.1": states([0, 0, 0])})
    squared = HiddenMSE(layers=(1,), signal="mixer", weight=3.0)  # the width: then it is the squared length
    assert squared.weight * squared({"student": student, "teacher": teacher}).total.item() == pytest.approx(9)
    assert HiddenL2(layers=(1,), signal="mixer")({"student": student, "teacher": teacher}).total.item() == pytest.approx(3)


def test_older_kinds_are_written_as_they_were_before_they_could_compare_mixers() -> None:
    plain = '{"kind":"hidden_mse","layers":[-1],"project":true,"revision":1,"seats":{},"tag":null,"weight":1.0}'  # at revision 1606881
    assert canonical_json(HiddenMSE()) == plain and '"signal":"mixer"' in canonical_json(HiddenMSE(signal="mixer"))


def test_layer_by_layer_on_mixers_only_the_mixers_and_the_norms_before_them_learn() -> None:
    trial = Trial(width=16, objective=(HiddenL2(layers=(1, 2), signal="mixer"),), forward="layerwise")
    pieces = trial.whole[0].split([p.numel() for _, p in trial.parameters()])
    moved = {name.split(".", 3)[-1].split(".")[0] for (name, _), g in zip(trial.parameters(), pieces, strict=True) if g.any()}
    assert moved == {"self_attn", "input_layernorm"}
