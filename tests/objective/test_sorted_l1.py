"""Sorted probabilities of unequal vocabularies: by hand, by brute force, and what they do not see."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.objective.sorted_l1 import SortedL1, sorted_gap
from limbeck.signals import Head, Logits, Signals

P, Q = [0.6, 0.3, 0.1], [0.5, 0.5]


def said(logits: Any, lead: list[float] | None = None) -> Signals:
    """Rows of chunks, a row each."""
    rows = torch.arange(len(logits))
    ahead = torch.zeros(len(logits), dtype=torch.float64) if lead is None else torch.tensor(lead, dtype=torch.float64)
    return Signals({"last_logits": logits, "lead_logprob": ahead}, {"chunk": rows, "row": rows}, ("",) * len(rows), rows, torch.ones(len(rows)))


def rows(*probs: list[float]) -> torch.Tensor:
    return torch.tensor(probs, dtype=torch.float64).log()


def by_brute_force(q: list[float], p: list[float]) -> float:
    """Sorted, padded, compared one by one."""
    num = max(len(q), len(p))
    a, b = (sorted(x, reverse=True) + [0.0] * (num - len(x)) for x in (q, p))
    return sum(abs(x - y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("q, p", [(Q, P), (P, Q)])
def test_the_closed_form_with_the_smaller_vocabulary_padded(q: list[float], p: list[float]) -> None:
    loss = SortedL1()({"student": said(rows(q)), "teacher": said(rows(p))})
    assert loss.total.item() == pytest.approx(0.1 + 0.2 + 0.1, rel=1e-12) and loss.count == 1


def test_each_side_is_softened_by_its_own_temperature() -> None:
    half, square = [1 / (1 + 3**0.5), 3**0.5 / (1 + 3**0.5)], [0.1, 0.9]  # odds 1:3 to the power 1/2, and to the power 2
    loss = SortedL1(student_temperature=2.0, teacher_temperature=0.5)({"student": said(rows([0.25, 0.75])), "teacher": said(rows([0.25, 0.75]))})  # type: ignore[call-arg]
    assert loss.total.item() == pytest.approx(2 * abs(half[1] - square[1]), rel=1e-12)


def test_a_merged_row_weighs_what_stands_before_it_and_is_not_made_one_again() -> None:
    loss = SortedL1()({"student": said(rows(Q), [-1.0]), "teacher": said(rows(P), [-0.25])})
    a, b = ([x * torch.tensor(lead).exp().item() for x in row] for row, lead in ((Q, -1.0), (P, -0.25)))
    assert loss.total.item() == pytest.approx(by_brute_force(a, b), rel=1e-6)


probabilities = st.lists(st.floats(0.01, 1.0), min_size=1, max_size=9).map(lambda x: [v / sum(x) for v in x])


@settings(max_examples=200, deadline=None)
@given(probabilities, probabilities, st.integers(1, 12))
def test_sorting_no_more_than_the_shorter_is_exact_and_fewer_a_lower_bound(q: list[float], p: list[float], top: int) -> None:
    a, b = (torch.tensor([x], dtype=torch.float64) for x in (q, p))
    exact = sorted_gap(a, b).item()
    assert exact == pytest.approx(by_brute_force(q, p), abs=1e-12)
    less = sorted_gap(a, b, top).item()
    assert less <= exact + 1e-12
    if top >= min(len(q), len(p)):
        assert less == exact


@settings(max_examples=50, deadline=None)
@given(st.permutations(range(7)), st.integers(0, 1000))
def test_equal_rows_in_another_order_of_columns_are_at_no_distance(order: list[int], seed: int) -> None:
    logits = torch.randn(3, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    loss = SortedL1()({"student": said(logits[:, order]), "teacher": said(logits)})
    assert loss.total.item() < 1e-14


def test_descent_brings_the_sorted_vectors_together_and_not_the_tokens() -> None:
    teacher = rows([0.7, 0.2, 0.07, 0.03])
    free = torch.tensor([[0.0, 0.1, 0.3, 2.0]], dtype=torch.float64, requires_grad=True)  # as sure as the teacher may be, of the last
    optimiser = torch.optim.SGD([free], 0.5)
    for step in range(2000):
        optimiser.param_groups[0]["lr"] = 0.5 / (1 + step / 20)
        optimiser.zero_grad()
        SortedL1()({"student": said(free), "teacher": said(teacher)}).total.backward()
        optimiser.step()
    q, p = free.detach().softmax(-1)[0], teacher.exp()[0]
    assert (q.sort().values - p.sort().values).abs().max() < 0.01
    assert q.argmax() == 3 != p.argmax() and (q - p).abs().sum() > 1  # a permuted optimum, and the loss is content


def test_logits_are_made_so_many_at_a_time_and_are_what_they_were_afterwards() -> None:
    asked: list[int] = []

    def head(hidden: torch.Tensor) -> torch.Tensor:
        asked.append(len(hidden))
        return hidden @ torch.eye(4, 9, dtype=torch.float64)

    hidden = torch.randn(20, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    whole = SortedL1()({"student": said(hidden @ torch.eye(4, 9, dtype=torch.float64)), "teacher": said(rows(*[P] * 20))})
    loss = SortedL1(chunk=6)({"student": said(Logits(hidden, head, True)), "teacher": said(rows(*[P] * 20))})  # type: ignore[call-arg]
    loss.total.backward()
    assert loss.total.item() == pytest.approx(whole.total.item(), rel=1e-12) and max(asked) == 6 and sum(asked) == 40  # again in the backward pass
    logits = torch.randn(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    before = logits.clone()
    SortedL1()({"student": said(logits), "teacher": said(logits)})
    assert torch.equal(logits, before)  # the published code overwrites them with probabilities


@pytest.mark.parametrize("fields", [{}, {"student_temperature": 2.0, "teacher_temperature": 0.5}, {"top": 2}])
@pytest.mark.parametrize("vocab", [2, 8])
def test_a_head_gives_value_and_gradient_of_dense_logits_in_one_pass(fields: dict[str, Any], vocab: int) -> None:
    """Beside the formula by autograd, row by row, with the factors of rows: the same without a second look at the teacher."""
    draw: Callable[..., torch.Tensor] = torch.randn
    shapes = ((5, 3), (vocab, 3), (5, 6), (5,))
    hidden, weight, theirs, lead = (draw(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(i)) for i, shape in enumerate(shapes))
    leads, asked = (-lead.abs()).tolist(), []

    def teachers_head(states: torch.Tensor) -> torch.Tensor:
        asked.append(len(states))
        return states

    def heard(logits: Any) -> dict[str, Signals]:
        both = {"student": said(logits, leads), "teacher": said(Logits(theirs, teachers_head, False), [-0.5] * 5)}
        return {seat: replace(signals, weights=torch.tensor([1.0, 2.0, 0.5, 0.0, 3.0])) for seat, signals in both.items()}

    a, b = ((hidden.clone().requires_grad_(), weight.clone().requires_grad_()) for _ in range(2))
    folded = SortedL1(chunk=2, **fields)(heard(Logits(a[0], Head(a[1]), True)))  # type: ignore[call-arg]
    folded.total.backward()
    assert sum(asked) == 5  # once each, and not again in the backward pass
    plain = SortedL1(**fields)(heard(b[0] @ b[1].mT))  # type: ignore[call-arg]
    plain.total.backward()
    assert folded.total.item() == pytest.approx(plain.total.item(), rel=1e-6) and folded.count == plain.count == 5
    for ours, expected in zip(a, b, strict=True):
        torch.testing.assert_close(ours.grad, expected.grad, rtol=1e-6, atol=1e-9)


def test_what_stands_before_the_end_of_a_chunk_learns_too() -> None:
    logits, lead = rows(Q), torch.tensor([-1.0], dtype=torch.float64, requires_grad=True)
    student = said(Logits(logits, Head(torch.eye(2, dtype=torch.float64)), True))
    heard = replace(student, values={**student.values, "lead_logprob": lead})
    SortedL1()({"student": heard, "teacher": said(rows(P))}).total.backward()
    inside = [x * math.exp(-1.0) for x in Q]  # both below the teacher's 0.6 and 0.3: moving up is moving nearer
    assert lead.grad is not None and lead.grad.item() == pytest.approx(-sum(inside), rel=1e-9)
