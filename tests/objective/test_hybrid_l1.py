"""Shared entries by their divergence, the rest by sorted probabilities: by hand, and never one without the other."""

import math

import pytest
import torch

from limbeck.objective.hybrid_l1 import HybridL1
from limbeck.objective.jsd import JSD
from limbeck.signals import Signals


def said(shared: list[float], rest: list[float], lead: float = 0.0) -> Signals:
    """One chunk: what is shared, made one; the rest, and all that is shared together."""
    every = torch.tensor([*rest, 1 - sum(rest)], dtype=torch.float64)
    values = {
        "chunk_logits": torch.tensor([shared], dtype=torch.float64).log(),
        "rest_logits": every.log()[None].requires_grad_(),
        "lead_logprob": torch.tensor([lead], dtype=torch.float64),
    }
    one = torch.zeros(1, dtype=torch.long)
    return Signals(values, {"chunk": one, "row": one}, ("",), one, torch.ones(1))


def jsd(p: list[float], q: list[float]) -> float:
    m = [(x + y) / 2 for x, y in zip(p, q, strict=True)]
    return 2 * sum(x * math.log(x / z) for x, z in zip(p, m, strict=True)) + 2 * sum(y * math.log(y / z) for y, z in zip(q, m, strict=True))


def value(objective: HybridL1, student: Signals, teacher: Signals) -> float:
    return objective.values(student, teacher).item()


STUDENT, TEACHER = said([0.5, 0.5], [0.3], math.log(0.5)), said([0.8, 0.2], [0.1, 0.2, 0.05])
REST = abs(0.15 - 0.2) + 0.1 + 0.05
"""Of them: 0.3 times what stands before it, against 0.2, 0.1 and 0.05."""


@pytest.mark.parametrize("matched", [0.0, 0.25, 1.0])
def test_the_value_by_hand(matched: float) -> None:
    expected = matched * jsd([0.8, 0.2], [0.5, 0.5]) + (1 - matched) * REST
    assert value(HybridL1(matched=matched), STUDENT, TEACHER) == pytest.approx(expected, rel=1e-10)  # type: ignore[call-arg]


def test_without_a_weight_it_is_the_share_of_the_teachers_vocabulary() -> None:
    expected = 2 / 5 * jsd([0.8, 0.2], [0.5, 0.5]) + 3 / 5 * REST  # 2 of the teacher's 5 entries; of the student's 3 it would be 2/3
    assert value(HybridL1(), STUDENT, TEACHER) == pytest.approx(expected, rel=1e-10)


def test_the_rest_does_not_vanish_because_one_side_has_none() -> None:
    none, some = said([0.5, 0.5], []), said([0.5, 0.5], [0.25, 0.15])
    only = HybridL1(matched=0.0)  # type: ignore[call-arg]
    assert value(only, none, some) == pytest.approx(0.4) and value(only, some, none) == pytest.approx(0.4)
    only.values(some, none).sum().backward()
    gradient = some["rest_logits"].grad[0]
    assert gradient[:2].min() > 0 > gradient[2]  # what the teacher cannot say is unlearnt


def test_all_of_it_matched_is_the_divergence_of_chunks() -> None:
    assert value(HybridL1(matched=1.0, share=0.3), STUDENT, TEACHER) == pytest.approx(  # type: ignore[call-arg]
        JSD(per="chunk", share=0.3).values(STUDENT, TEACHER).item(),  # type: ignore[call-arg]
        rel=1e-12,
    )
