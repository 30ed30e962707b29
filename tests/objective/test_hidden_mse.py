"""Hidden states: mean squared error by hand, and the maps between widths, which all layer losses share."""

from collections.abc import Callable

import pytest
import torch
from pydantic import ValidationError

from limbeck.errors import Refused
from limbeck.objective.hidden_mse import HiddenMSE
from limbeck.signals import Signals

Say = Callable[..., Signals]


def states(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def test_the_value_by_hand_is_the_mean_over_pairs_and_channels(say: Say) -> None:
    student = say({"hidden.1": states([1, 2], [0, 0]), "hidden.3": states([1, 1], [3, 0])})
    teacher = say({"hidden.1": states([1, 0], [0, 4]), "hidden.3": states([0, 1], [0, 0])})
    loss = HiddenMSE(layers=(1, 3))({"student": student, "teacher": teacher})
    assert loss.count == 2 and loss.total.item() == pytest.approx(((4 / 2 + 1 / 2) + (16 / 2 + 9 / 2)) / 2)


def test_equal_widths_need_no_map_and_unequal_ones_get_one_into_the_teachers(say: Say) -> None:
    same, wide = say({"hidden.1": states([1, 2]), "hidden.2": states([1, 2])}), say({"hidden.1": states([1, 2]), "hidden.2": states([1, 2, 3])})
    assert HiddenMSE(layers=(1,)).build({"student": same, "teacher": wide}) is None
    learned = HiddenMSE(layers=(1, 2)).build({"student": same, "teacher": wide})
    assert learned is not None and [tuple(p.shape) for p in learned.parameters()] == [(3, 2)]
    with torch.no_grad():
        next(learned.parameters()).copy_(torch.tensor([[1.0, 0], [0, 1], [1, 1]]))
    loss = HiddenMSE(layers=(1, 2))({"student": same, "teacher": wide}, learned.double())
    assert loss.total.item() == pytest.approx(0.0)  # (1, 2, 1 + 2) is what the teacher says
    loss.total.backward()
    assert next(learned.parameters()).grad is not None


def test_unequal_widths_without_a_map_are_refused(say: Say) -> None:
    narrow, wide = say({"hidden.-1": states([1, 2])}), say({"hidden.-1": states([1, 2, 3])})
    with pytest.raises(Refused) as caught:
        HiddenMSE(project=False).build({"student": narrow, "teacher": wide})
    assert caught.value.where == "hidden_mse.project" and "2 and 3" in caught.value.got


def test_all_layers_are_compared_in_the_order_of_their_numbers(say: Say) -> None:
    names = ("hidden.10", "hidden.2", "hidden.-1", "hidden.0")
    said = say({name: states([1, 2]) for name in names})
    assert HiddenMSE(layers="all").names(said) == ["hidden.0", "hidden.2", "hidden.10"]
    assert HiddenMSE(layers="all").needs["teacher"] == ("hidden.*",)


def test_no_layers_at_all_are_refused() -> None:
    with pytest.raises(ValidationError, match="at least 1 item"):
        HiddenMSE(layers=())


def test_low_precision_is_compared_in_float32(say: Say) -> None:
    a, b = torch.full((1, 512), 1.0).bfloat16(), torch.full((1, 512), 1.0078125).bfloat16()
    loss = HiddenMSE()({"student": say({"hidden.-1": a}), "teacher": say({"hidden.-1": b})})
    assert loss.total.dtype == torch.float32 and loss.total.item() == pytest.approx(0.0078125**2)
