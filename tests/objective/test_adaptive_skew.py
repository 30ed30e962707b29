"""Shares of a mixture that follow the gap of each row: by hand, with the reference of the first window, and without a gradient."""

from collections.abc import Callable
from math import exp, log
from typing import Any

import pytest
import torch

from limbeck.objective._skew import Reference
from limbeck.objective.skew_kl import SkewKL
from limbeck.objective.skew_reverse_kl import SkewReverseKL
from limbeck.signals import Signals

P = [[0.8, 0.2], [0.5, 0.5], [0.6, 0.4]]
Q = [[0.5, 0.5], [0.4, 0.6], [0.1, 0.9]]
LABELS = [0, 0, 0]
ROWS = (2, 1)  # targets of each row
Say = Callable[..., Signals]


def said(say: Say, p: Any = P, q: Any = Q, labels: Any = LABELS) -> dict[str, Signals]:
    student, teacher = (torch.tensor(x, dtype=torch.float64).log() for x in (q, p))
    return {
        "student": say({"logits": student.requires_grad_(), "label": torch.tensor(labels)}, target=ROWS),
        "teacher": say({"logits": teacher}, target=ROWS),
    }


def gaps() -> list[float]:
    """Of both rows by hand: geometric means of the probabilities of the labels, teacher's minus student's."""
    return [exp((log(0.8) + log(0.5)) / 2) - exp((log(0.5) + log(0.4)) / 2), 0.6 - 0.1]


def known(m: float) -> Reference:
    """As after a first window whose gaps are m on average."""
    reference = Reference()
    reference.hear(torch.tensor([m]))
    SkewKL(adaptive=True).follow(reference)
    return reference


def test_shares_by_hand(say: Say) -> None:
    objective, m = SkewKL(adaptive=True, alpha=0.5), 0.2
    shares = objective.shares(said(say)["student"], said(say)["teacher"], known(m))
    expected = [min(0.5, max(0.01, 1 - 0.5 * m / (gap + 1e-5))) for gap in gaps()]
    assert shares.tolist() == pytest.approx(expected, rel=1e-6) and 0.01 < expected[0] < 0.5 == expected[1]


def test_the_nearer_a_row_is_the_smaller_is_its_share_but_never_below_the_least(say: Say) -> None:
    objective = SkewKL(adaptive=True, alpha=0.5)
    near = said(say, q=[[0.79, 0.21], [0.5, 0.5], [0.59, 0.41]])
    assert objective.shares(near["student"], near["teacher"], known(0.4)).tolist() == pytest.approx([0.01, 0.01])
    beyond = said(say, p=Q, q=P)  # it is ahead of its teacher: no gap to close
    assert objective.shares(beyond["student"], beyond["teacher"], known(0.4)).tolist() == [0.5, 0.5]


def test_texts_of_the_student_have_their_gap_the_other_way_round(say: Say) -> None:
    one, other = said(say), said(say, p=Q, q=P)
    of_teacher = SkewKL(adaptive=True, alpha=0.5).shares(one["student"], one["teacher"], known(0.2))
    of_student = SkewReverseKL(adaptive=True, alpha=0.5).shares(other["student"], other["teacher"], known(0.2))
    assert torch.equal(of_teacher, of_student)


def test_the_value_is_that_of_each_row_with_its_own_share(say: Say) -> None:
    for kind in (SkewKL, SkewReverseKL):
        objective, reference = kind(adaptive=True, alpha=0.5), known(0.2)
        signals = said(say)
        shares = objective.shares(signals["student"], signals["teacher"], reference).tolist()
        fixed = [kind(alpha=share)(signals) for share in shares]
        each = [kind(alpha=share).values(**{k: s for k, s in signals.items()}) for share in shares]
        assert objective(signals, reference).total.item() == pytest.approx((each[0][:2].sum() + each[1][2]).item(), rel=1e-6)
        assert fixed[0].count == objective(signals, reference).count == 3
        of_rows = kind(adaptive=True, alpha=0.5, per="row")(signals, reference)  # a long answer weighs no more than a short one
        assert of_rows.total.item() == pytest.approx((each[0][:2].mean() + each[1][2]).item(), rel=1e-6) and of_rows.count == 2


@pytest.mark.parametrize("kind", [SkewKL, SkewReverseKL])
def test_no_gradient_flows_through_the_share(kind: Any, say: Say) -> None:
    swap = {"p": Q, "q": P} if kind is SkewReverseKL else {}
    signals, reference = said(say, **swap), known(0.2)
    objective = kind(adaptive=True, alpha=0.5)
    objective(signals, reference).total.backward()
    found = signals["student"]["logits"].grad
    shares = objective.shares(signals["student"], signals["teacher"], reference).tolist()
    assert 0.01 < shares[0] < 0.5  # inside of the clip, where a share that is not cut off would move
    expected = torch.zeros_like(found)
    for share, here in zip(shares, (slice(0, 2), slice(2, 3)), strict=True):
        again = said(say, **swap)
        kind(alpha=share)(again).total.backward()
        expected[here] = again["student"]["logits"].grad[here]
    assert torch.allclose(found, expected, atol=1e-7)


def test_the_reference_is_the_mean_of_the_first_window_however_it_is_cut(say: Say) -> None:
    objective = SkewKL(adaptive=True)
    whole, cut = objective.build(None), objective.build(None)
    signals = said(say)
    objective(signals, whole)
    for row in (0, 1):
        objective({seat: s.at(torch.tensor([row])) for seat, s in signals.items()}, cut)
    assert whole is not None and cut is not None
    assert float(whole.total / whole.num) == pytest.approx(sum(gaps()) / 2, rel=1e-6) == float(cut.total / cut.num)
    objective.follow(whole)
    objective(said(say, p=Q, q=P), whole)  # a later window changes nothing
    assert float(whole.total / whole.num) == pytest.approx(sum(gaps()) / 2, rel=1e-6)


def test_in_the_first_window_the_share_is_the_greatest(say: Say) -> None:
    signals, objective = said(say), SkewKL(adaptive=True, alpha=0.3)
    assert objective(signals, objective.build(None)).total.item() == pytest.approx(SkewKL(alpha=0.3)(signals).total.item(), rel=1e-6)


def test_a_step_in_which_nothing_was_counted_leaves_the_reference_open() -> None:
    objective, reference = SkewKL(adaptive=True), Reference()
    objective.follow(reference)
    assert not reference.whole


def test_of_chunks_it_is_refused() -> None:
    with pytest.raises(ValueError, match="target or row"):
        SkewKL(adaptive=True, per="chunk")
