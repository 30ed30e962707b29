"""The bound, certainty and preference of models that fill in masked tokens: by hand, in float64."""

import math
from typing import Any

import pytest
import torch

from limbeck.errors import Refused
from limbeck.objective.confident_entropy import ConfidentEntropy
from limbeck.objective.elbo_preference import ElboPreference
from limbeck.objective.masked_elbo import MaskedElbo
from limbeck.signals import Head, Logits, Signals


def said(rows: list[int], tags: tuple[str, ...] = ("", ""), group: list[int] | None = None, **values: Any) -> Signals:
    """Signals of targets in these rows."""
    num = len(tags)
    places = {"row": torch.arange(num), "target": torch.tensor(rows)}
    return Signals(values, places, tags, torch.tensor(group or list(range(num))), torch.ones(num))


def test_each_hidden_token_counts_one_over_its_probability_and_rows_count_alike():
    p = torch.tensor([[0.5, 0.5], [0.25, 0.75], [0.1, 0.9]], dtype=torch.float64)
    one = said(
        [0, 0, 1],
        logits=p.log(),
        label=torch.tensor([0, 0, 0]),
        target_weight=torch.tensor([2.0, 2.0, 4.0]),
        maskable=torch.tensor([4.0, 8.0]),
    )
    expected = [2 * (math.log(2) + math.log(4)) / 4, 4 * math.log(10) / 8]
    assert MaskedElbo().values(one).tolist() == pytest.approx(expected, rel=1e-12)
    total, count = MaskedElbo()({"student": one})
    assert count == 2 and float(total) == pytest.approx(sum(expected), rel=1e-12)


def test_a_row_in_which_nothing_was_hidden_counts_as_zero_and_is_counted():
    p = torch.tensor([[0.5, 0.5]], dtype=torch.float64)
    one = said([1], logits=p.log(), label=torch.tensor([0]), target_weight=torch.ones(1), maskable=torch.tensor([3.0, 1.0]))
    total, count = MaskedElbo()({"student": one})
    assert count == 2 and float(total) == pytest.approx(math.log(2))


@pytest.mark.parametrize("chunk", [2, 256])
def test_lazy_logits_give_the_value_and_the_gradient_of_plain_ones(chunk):
    draw = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 5, generator=draw, dtype=torch.float64) for n in (7, 11))
    rest = {
        "label": torch.randint(11, (7,), generator=draw),
        "target_weight": 1 + torch.rand(7, generator=draw, dtype=torch.float64),
        "maskable": torch.tensor([5, 9]),
    }
    gradients = []
    for lazy in (True, False):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        logits = Logits(h, Head(w), True) if lazy else h @ w.T
        MaskedElbo(chunk=chunk)({"student": said([0] * 3 + [1] * 4, logits=logits, **rest)}).total.backward()
        gradients.append((h.grad, w.grad))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_entropy_counts_where_the_best_entry_is_right():
    p = torch.tensor([[0.7, 0.2, 0.1], [0.7, 0.2, 0.1], [0.5, 0.25, 0.25]], dtype=torch.float64)
    one = said([0, 0, 1], logits=p.log(), label=torch.tensor([0, 1, 0]))
    entropy = [-sum(x * math.log(x) for x in row) for row in p.tolist()]
    assert ConfidentEntropy().values(one).tolist() == pytest.approx([entropy[0], 0.0, entropy[2]], rel=1e-12)


def test_a_step_against_the_gradient_makes_what_is_right_more_certain():
    logits = torch.tensor([[1.0, 0.5, 0.0]], dtype=torch.float64, requires_grad=True)
    ConfidentEntropy()({"student": said([0], ("",), logits=logits, label=torch.tensor([0]))}).total.backward()
    moved = (logits - 0.1 * logits.grad).softmax(-1)  # type: ignore[operator]
    assert moved[0, 0] > logits.softmax(-1)[0, 0]


def test_preference_by_hand():
    # gains of the bound: chosen 2 * (0.5) + 1 * (0.1) = 1.1; rejected 4 * (-0.2) = -0.8
    tags, rows, group = ("chosen", "rejected"), [0, 0, 1], [0, 0]
    weight = torch.tensor([2.0, 1.0, 4.0], dtype=torch.float64)
    policy, before = torch.tensor([-1.0, -2.0, -3.0], dtype=torch.float64), torch.tensor([-1.5, -2.1, -2.8], dtype=torch.float64)
    signals = {
        "student": said(rows, tags, group, target_logprob=policy, target_weight=weight),
        "reference": said(rows, tags, group, target_logprob=before),
    }
    total, count = ElboPreference(beta=0.1)(signals)
    assert count == 1 and float(total) == pytest.approx(math.log1p(math.exp(-0.1 * 1.9)), rel=1e-12)
    same = {**signals, "reference": said(rows, tags, group, target_logprob=policy)}
    assert float(ElboPreference()(same).total) == pytest.approx(math.log(2))


@pytest.mark.parametrize("tags", [("chosen", "chosen"), ("chosen", ""), ("rejected", "rejected")])
def test_groups_that_are_no_pairs_are_refused(tags):
    one = torch.zeros(2, dtype=torch.float64)
    reference = said([0, 1], tags, [0, 0], target_logprob=one)
    signals = {"student": said([0, 1], tags, [0, 0], target_logprob=one, target_weight=one), "reference": reference}
    with pytest.raises(Refused, match="a chosen and a rejected row in each group"):
        ElboPreference()(signals)
