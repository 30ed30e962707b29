"""Forward KL, and what all divergences share: temperature, chunks, mean over a row, tags, weights, truncated teachers."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from limbeck.numerics import log_probs, top_k
from limbeck.objective.forward_kl import ForwardKL
from limbeck.signals import Logits, Signals, TopK

P, Q = [0.5, 0.3, 0.2], [0.1, 0.6, 0.3]
Say = Callable[..., Signals]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_value_and_gradient_by_hand(solve: Callable[..., Any]) -> None:
    value, gradient = solve(ForwardKL(), P, Q)
    assert value == pytest.approx(sum(p * math.log(p / q) for p, q in zip(P, Q, strict=True)), rel=1e-12)
    assert gradient.tolist() == pytest.approx([q - p for p, q in zip(P, Q, strict=True)], abs=1e-12)


def test_the_teacher_is_p_and_the_student_q(solve: Callable[..., Any]) -> None:
    there, _ = solve(ForwardKL(), [0.9, 0.1], [0.5, 0.5])
    back, _ = solve(ForwardKL(), [0.5, 0.5], [0.9, 0.1])
    assert there == pytest.approx(0.9 * math.log(1.8) + 0.1 * math.log(0.2)) and back == pytest.approx(0.5 * math.log(5 / 9) + 0.5 * math.log(5))


def test_temperature_softens_both_and_is_squared_back(solve: Callable[..., Any]) -> None:
    def soft(x: list[float]) -> list[float]:
        powers = [v ** (1 / 3) for v in x]  # the softmax of log(x) / 3
        return [v / sum(powers) for v in powers]

    value, gradient = solve(ForwardKL(temperature=3.0), P, Q)
    assert value == pytest.approx(9 * sum(p * math.log(p / q) for p, q in zip(soft(P), soft(Q), strict=True)), rel=1e-12)
    assert gradient.tolist() == pytest.approx([3 * (q - p) for p, q in zip(soft(P), soft(Q), strict=True)], abs=1e-12)


def test_it_equals_torchs_kl_div(say: Say) -> None:
    student, teacher = random(7, 11), random(7, 11, seed=1)
    loss = ForwardKL()({"student": say({"logits": student}), "teacher": say({"logits": teacher})})
    expected = torch.nn.functional.kl_div(student.log_softmax(-1), teacher.log_softmax(-1), reduction="sum", log_target=True)
    torch.testing.assert_close(loss.total, expected, rtol=1e-12, atol=1e-12)
    assert loss.count == 7


def test_chunks_of_lazy_logits_change_neither_value_nor_gradient(say: Say) -> None:
    found = []
    for chunk in (1, 3, 4, 7, 256):
        hidden, weight, teacher = random(7, 5).requires_grad_(), random(5, 11, seed=2).requires_grad_(), random(7, 11, seed=1)
        lazy = Logits(hidden, lambda h, weight=weight: h @ weight, True)
        loss = ForwardKL(chunk=chunk)({"student": say({"logits": lazy}), "teacher": say({"logits": teacher})})
        loss.total.backward()
        assert hidden.grad is not None and weight.grad is not None
        found.append((loss.total.detach(), hidden.grad, weight.grad))
    for other in found[:-1]:
        for a, b in zip(other, found[-1], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_mean_over_a_row_weighs_rows_alike_and_an_empty_row_is_a_connected_zero(say: Say) -> None:
    student, teacher = random(4, 6).requires_grad_(), random(4, 6, seed=1)
    said = {"student": say({"logits": student}, target=(1, 0, 3)), "teacher": say({"logits": teacher}, target=(1, 0, 3))}
    each = [
        ForwardKL()({"student": say({"logits": student[i : i + 1]}), "teacher": say({"logits": teacher[i : i + 1]})}).total.item() for i in range(4)
    ]
    loss = ForwardKL(per="row")(said)
    assert loss.count == 3 and loss.total.item() == pytest.approx(each[0] + sum(each[1:]) / 3) and loss.total.requires_grad
    assert ForwardKL()(said).count == 4 and ForwardKL()(said).total.item() == pytest.approx(sum(each))


def test_a_tag_selects_rows_and_weights_are_factors_that_leave_the_count(say: Say) -> None:
    student, teacher = random(4, 6), random(4, 6, seed=1)
    each = [
        ForwardKL()({"student": say({"logits": student[i : i + 1]}), "teacher": say({"logits": teacher[i : i + 1]})}).total.item() for i in range(4)
    ]
    shape = {"target": (1, 2, 1), "tags": ("a", "b", "a"), "weights": (2.0, 1.0, 0.5)}
    said = {"student": say({"logits": student}, **shape), "teacher": say({"logits": teacher}, **shape)}
    loss = ForwardKL(tag="a")(said)
    assert loss.count == 2 and loss.total.item() == pytest.approx(2 * each[0] + 0.5 * each[3])
    assert ForwardKL(tag="c")(said).count == 0 and ForwardKL(tag="c")(said).total.item() == 0


def test_seats_say_who_sits_where(say: Say) -> None:
    said = {
        "peer": say({"logits": torch.tensor([Q], dtype=torch.float64).log()}),
        "student": say({"logits": torch.tensor([P], dtype=torch.float64).log()}),
    }
    loss = ForwardKL(seats={"student": "peer", "teacher": "student"})(said)
    assert loss.total.item() == pytest.approx(sum(p * math.log(p / q) for p, q in zip(P, Q, strict=True)))


def test_a_truncated_teacher_is_the_kl_of_coarse_events(say: Say) -> None:
    student, teacher = random(5, 30), random(5, 30, seed=1)
    ids, best, tail = top_k(log_probs(teacher), 4)
    loss = ForwardKL()({"student": say({"logits": student}), "teacher": say({"top_logits": TopK(ids, best, tail)})})
    by_hand = 0.0
    for t in range(5):
        p, q = teacher[t].softmax(-1).tolist(), student[t].softmax(-1).tolist()
        kept = ids[t].tolist()
        events = [(p[i], q[i]) for i in kept] + [
            (math.fsum(p[i] for i in range(30) if i not in kept), math.fsum(q[i] for i in range(30) if i not in kept))
        ]
        by_hand += math.fsum(a * math.log(a / b) for a, b in events)
    assert loss.total.item() == pytest.approx(by_hand, rel=1e-10) and loss.count == 5


def test_a_truncated_teacher_tends_to_the_whole_one(say: Say) -> None:
    student, teacher = random(5, 30), random(5, 30, seed=1)
    said = {"student": say({"logits": student})}
    whole = ForwardKL()(said | {"teacher": say({"logits": teacher})}).total.item()
    coarse = [ForwardKL()(said | {"teacher": say({"top_logits": TopK(*top_k(log_probs(teacher), k))})}).total.item() for k in (1, 4, 16, 29, 30)]
    assert coarse == sorted(coarse) and coarse[0] < whole and coarse[-2:] == pytest.approx([whole, whole], rel=1e-9)


def test_a_truncated_teacher_cannot_be_softened(say: Say) -> None:
    top = TopK(*top_k(log_probs(random(2, 9)), 3))
    with pytest.raises(ValueError, match="temperature 1 only"):
        ForwardKL(temperature=2.0)({"student": say({"logits": random(2, 9)}), "teacher": say({"top_logits": top})})
