import math

import pytest
import torch
from torch import Tensor

from limbeck.objective.target_aware_ce import TargetAwareCE
from limbeck.signals import Signals


def said(q: Tensor, p: Tensor, label: Tensor) -> dict[str, Signals]:
    rows = {"row": torch.arange(len(q)), "target": torch.arange(len(q))}

    def signals(**values: Tensor) -> Signals:
        return Signals(values, rows, ("",) * len(q), torch.arange(len(q)), torch.ones(len(q)))

    return {"student": signals(logits=q, label=label), "teacher": signals(logits=p)}


def loss(gamma: float, q: Tensor, p: Tensor, label: Tensor) -> float:
    total, count = TargetAwareCE(gamma=gamma)(said(q, p, label))
    return total.item() / count


Q, P = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64).log(), torch.tensor([[0.7, 0.2, 0.1]], dtype=torch.float64).log()


# by hand: -[((.7 + 1)^g - 1) ln .5 + .2^g ln .3 + .1^g ln .2]
@pytest.mark.parametrize(("gamma", "expected"), [(1.0, 0.88694), (1.5, 1.00182), (2.0, 1.37430)])
def test_three_classes_by_hand(gamma: float, expected: float) -> None:
    by_hand = -((1.7**gamma - 1) * math.log(0.5) + 0.2**gamma * math.log(0.3) + 0.1**gamma * math.log(0.2))
    assert loss(gamma, Q, P, torch.tensor([0])) == pytest.approx(by_hand, abs=1e-12) == pytest.approx(expected, abs=5e-6)


def test_at_power_one_it_is_the_soft_cross_entropy_of_torch() -> None:
    torch.manual_seed(0)
    q, p, label = torch.randn(16, 7, dtype=torch.float64), torch.randn(16, 7, dtype=torch.float64), torch.randint(7, (16,))
    expected = torch.nn.functional.cross_entropy(q, p.softmax(-1)).item()
    assert loss(1.0, q, p, label) == pytest.approx(expected, abs=1e-6)


def test_mixed_labels_weigh_what_each_class_alone_would_give() -> None:
    torch.manual_seed(0)
    q, p, share = torch.randn(4, 5, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64), 0.3
    one, other = torch.tensor([0, 1, 2, 3]), torch.tensor([4, 1, 0, 2])
    each = torch.eye(5, dtype=torch.float64)
    mixed = share * each[one] + (1 - share) * each[other]
    expected = share * loss(1.7, q, p, one) + (1 - share) * loss(1.7, q, p, other)
    assert loss(1.7, q, p, mixed) == pytest.approx(expected, rel=1e-12)


def test_large_gaps_of_logits_stay_finite_where_the_log_of_a_softmax_would_not() -> None:
    q = torch.tensor([[200.0, 0.0]], requires_grad=True)
    assert (torch.softmax(q, -1).log() == -math.inf).any()  # what is avoided
    total, _ = TargetAwareCE(gamma=1.5)(said(q, torch.tensor([[0.0, 1.0]]), torch.tensor([1])))
    total.backward()
    assert total.isfinite() and q.grad is not None and q.grad.isfinite().all()


def test_a_student_that_says_what_the_teacher_says_does_not_reach_zero() -> None:
    assert loss(1.5, P, P, torch.tensor([0])) > 0.1


def test_a_power_above_one_pulls_harder_towards_the_right_class() -> None:
    pulls = []
    for gamma in (1.0, 2.0):
        q = Q.clone().requires_grad_()
        TargetAwareCE(gamma=gamma)(said(q, P, torch.tensor([0])))[0].backward()
        assert q.grad is not None
        pulls.append(-q.grad[0, 0].item())
    assert pulls[1] > 2 * pulls[0] > 0
