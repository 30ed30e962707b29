"""Cross-entropy against torch's, for hard and for mixed labels."""

from collections.abc import Callable

import pytest
import torch

from limbeck.objective.cross_entropy import CrossEntropy
from limbeck.signals import Signals

Say = Callable[..., Signals]


def logits(*shape: int) -> torch.Tensor:
    return (3 * torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).requires_grad_()


@pytest.mark.parametrize("chunk", [2, 256])
@pytest.mark.parametrize("soft", [False, True])
def test_value_and_gradient_equal_torchs(soft: bool, chunk: int, say: Say) -> None:
    ours, theirs = logits(5, 7), logits(5, 7)
    label = torch.rand(5, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64).softmax(-1) if soft else torch.tensor([0, 6, 3, 3, 1])
    loss = CrossEntropy(chunk=chunk)({"student": say({"logits": ours, "label": label})})
    expected = torch.nn.functional.cross_entropy(theirs, label, reduction="sum")
    loss.total.backward()
    expected.backward()
    torch.testing.assert_close(loss.total, expected, rtol=1e-12, atol=1e-12)
    assert loss.count == 5 and ours.grad is not None and theirs.grad is not None
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-10, atol=1e-12)


def test_a_soft_label_that_is_sure_equals_the_hard_one(say: Say) -> None:
    hard = torch.tensor([0, 6, 3, 3, 1])
    soft = torch.nn.functional.one_hot(hard, 7).double()
    assert all(
        abs(
            CrossEntropy()({"student": say({"logits": logits(5, 7), "label": label})}).total.item()
            - torch.nn.functional.cross_entropy(logits(5, 7), hard, reduction="sum").item()
        )
        < 1e-12
        for label in (hard, soft)
    )


def test_mean_over_a_row(say: Say) -> None:
    label = torch.tensor([0, 6, 3, 3, 1])
    loss = CrossEntropy(per="row")({"student": say({"logits": logits(5, 7), "label": label}, target=(1, 4))})
    each = torch.nn.functional.cross_entropy(logits(5, 7), label, reduction="none")
    assert loss.count == 2 and loss.total.item() == pytest.approx((each[0] + each[1:].mean()).item(), rel=1e-12)


def test_a_ruled_out_entry_costs_a_soft_label_nothing_where_it_gives_it_nothing(say: Say) -> None:
    said = say({"logits": torch.tensor([[0.0, -torch.inf]]), "label": torch.tensor([[1.0, 0.0]])})
    assert CrossEntropy()({"student": said}).total == 0
