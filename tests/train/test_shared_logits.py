"""Objectives of a turn that hear the same logits: one run of the head, and the gradient of each by itself."""

from typing import Any, Literal

import pytest
import torch

import limbeck.chunked
from limbeck.check.models import Trial
from limbeck.numerics import kl
from limbeck.objective.base import AbstractDivergence
from limbeck.objective.cross_entropy import CrossEntropy
from limbeck.objective.forward_kl import ForwardKL
from limbeck.objective.reverse_kl import ReverseKL
from limbeck.signals import Loss


class Own(AbstractDivergence):
    """Sums in its own way, which must be heard."""

    kind: Literal["own"] = "own"

    def divergence(self, log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
        return kl(log_p, log_q)

    def __call__(self, said: Any, learned: Any = None) -> Loss:
        found = super().__call__(said, learned)
        return Loss(2 * found.total, found.count)


def gradient(*objectives: Any) -> torch.Tensor:
    return Trial(objective=objectives).gradients()[0]


@pytest.mark.parametrize(
    ("objectives", "walks"),
    [
        ((ForwardKL(), CrossEntropy(weight=0.5)), 1),
        ((ReverseKL(weight=0.1), CrossEntropy(), ForwardKL()), 1),
        ((ForwardKL(per="row"), CrossEntropy()), 1),
        ((ForwardKL(temperature=2.0), CrossEntropy()), 2),
        ((ForwardKL(), CrossEntropy(chunk=3)), 2),
        ((ForwardKL(), CrossEntropy(tag="chosen")), 2),
        ((ForwardKL(), Own()), 2),
    ],
)
def test_the_head_is_run_once_and_the_gradient_is_the_sum(objectives: Any, walks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    apart = sum(gradient(one) for one in objectives)
    walk, seen = limbeck.chunked.walk, []

    def noted(*args: Any) -> Any:
        seen.append(1)
        return walk(*args)

    monkeypatch.setattr(limbeck.chunked, "walk", noted)
    together = gradient(*objectives)
    assert len(seen) == walks
    assert (together - apart).norm() <= 1e-6 * apart.norm()  # norms of blocks are computed in float32
