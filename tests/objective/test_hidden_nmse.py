"""Squared error over the size of the target, by hand, row by row."""

import pytest
import torch

from limbeck.objective.hidden_nmse import HiddenNMSE


def states(*rows):
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("scale", [1.0, 1e3, 1e-4])
def test_the_value_by_hand_is_a_ratio_of_sums_over_each_row_whatever_the_size_of_states(say, scale):
    student, teacher = states([1, 0], [0, 2], [3, 3]), states([3, 0], [0, 2], [3, 4])
    got = HiddenNMSE(layers=(1,)).values(say({"hidden.1": scale * student}, (2, 1)), say({"hidden.1": scale * teacher}, (2, 1)))
    assert got.tolist() == pytest.approx([4 / 13, 1 / 25], rel=1e-12)  # (2 squared + 0) over 9 + 4; 1 over 9 + 16


def test_layers_weigh_alike_however_large_their_states_are(say):
    student, teacher = states([2, 0]), states([1, 1])
    both = {"hidden.1": student, "hidden.2": 1e6 * student}, {"hidden.1": teacher, "hidden.2": 1e6 * teacher}
    assert HiddenNMSE(layers=(1, 2)).values(*(say(one) for one in both)).tolist() == pytest.approx([1.0])


def test_a_student_that_says_nothing_is_at_one_and_one_that_agrees_at_zero(say):
    teacher = states([3, -1], [0.5, 2])
    for student, expected in ((torch.zeros_like(teacher), 1.0), (teacher, 0.0)):
        assert HiddenNMSE(layers=(1,)).values(say({"hidden.1": student}), say({"hidden.1": teacher})).tolist() == [expected]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_target_of_zeros_divides_nothing_and_its_gradient_is_that_of_the_plain_error(say, dtype):
    student = torch.tensor([[1.0, 3.0], [0.0, 2.0]], dtype=dtype, requires_grad=True)
    loss = HiddenNMSE(layers=(1,))({"student": say({"hidden.1": student}), "teacher": say({"hidden.1": torch.zeros(2, 2, dtype=dtype)})})
    assert loss.total.item() == pytest.approx((10 / 2 + 4 / 2) / 2)  # mean over the two positions of the mean square
    loss.total.backward()
    assert student.grad.tolist() == [[0.5, 1.5], [0.0, 1.0]]  # 2 x / 4
