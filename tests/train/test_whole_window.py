"""Objectives that compare rows of the whole window: a micro-batch at a time in memory, and the gradient of the window in one piece."""

from typing import Any, Literal

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from limbeck.check.contract import NotClaimed
from limbeck.check.models import ALONE, Trial
from limbeck.check.window import SAME, accumulation, ranks
from limbeck.numerics import upcast
from limbeck.objective.base import Objective
from limbeck.objective.forward_kl import ForwardKL
from limbeck.signals import Logits, TopK, joined


def row_sums(x: Tensor, row: Tensor, num: int) -> Tensor:
    return x.new_zeros(num, x.shape[-1]).index_add(0, row, x)


class Contrast(Objective):
    """Each row of the student is to be nearest to the same row of the teacher, among all rows of the window."""

    @property
    def unit(self) -> str:
        return "row"

    @property
    def needs(self) -> Any:
        return {"student": ("hidden.-1",), "teacher": ("hidden.-1",)}

    def values(self, student: Any, teacher: Any) -> Float[Tensor, " row"]:
        a, b = (row_sums(upcast(said["hidden.-1"]), said.rows["pos"], said.num("row")) for said in (student, teacher))
        return -(a @ b[:, : a.shape[1]].T).log_softmax(-1).diagonal()


class AmongRows(Contrast):
    """That, as it should be."""

    kind: Literal["among_rows"] = "among_rows"
    whole = True


class Apart(Contrast):
    """The same, which does not say that it must see the whole window."""

    kind: Literal["apart"] = "apart"


@pytest.fixture(scope="module")
def trial() -> Trial:
    return Trial(width=16, objective=(AmongRows(), ForwardKL()))  # type: ignore[call-arg]


@pytest.mark.parametrize("micro", [2, 3, ALONE])
def test_cut_into_micro_batches_it_has_the_gradient_of_the_window_in_one_piece(trial: Trial, micro: int) -> None:
    (expected, losses), (found, same) = trial.whole, trial.gradients(micro=micro)
    assert (found - expected).norm() <= SAME[0] * expected.norm() + SAME[1]
    assert [x.count for x in same] == [x.count for x in losses]
    torch.testing.assert_close(torch.stack([x.total for x in same]), torch.stack([x.total for x in losses]), rtol=1e-6, atol=0)


def test_one_that_keeps_quiet_about_it_is_caught_by_the_contract() -> None:
    with pytest.raises(AssertionError, match="2 micro-batches against one"):
        accumulation(Apart())  # type: ignore[call-arg]


def test_its_rows_are_not_shared_out_to_ranks() -> None:
    with pytest.raises(NotClaimed, match="the whole window"):
        ranks(AmongRows())  # type: ignore[call-arg]


def test_a_micro_batch_is_run_twice_and_only_one_is_alive_at_a_time(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    body, sizes, alive, most = trial.models["student"].module.model, [], [0], [0]

    def run(_: Any, args: Any, kwargs: Any, out: Any) -> None:
        sizes.append(kwargs["input_ids"].numel())

    def pack(x: Tensor) -> Any:
        alive[0] += 1
        most[0] = max(most[0], alive[0])
        return Kept(x, alive)

    handle = body.register_forward_hook(run, with_kwargs=True)
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.x):
            trial.gradients()
            whole, most[0] = most[0], 0
            count = len(sizes)
            trial.gradients(micro=ALONE)
    finally:
        handle.remove()
    positions = len(trial.batch.view("student").inputs["ids"])
    assert count == 1 and sizes[0] == positions
    assert sum(sizes[1:]) == 2 * positions and max(sizes[1:]) < positions
    assert most[0] < whole


class Kept:
    """A tensor that autograd keeps, counted while it does."""

    def __init__(self, x: Tensor, alive: list[int]):
        self.x, self.alive = x, alive

    def __del__(self) -> None:
        self.alive[0] -= 1


def test_dropout_is_the_same_when_a_micro_batch_is_run_again() -> None:
    one = Trial(width=16, objective=(AmongRows(),))  # type: ignore[call-arg]
    for layer in one.models["student"].module.model.layers:
        layer.mlp.register_forward_hook(lambda module, args, out: torch.nn.functional.dropout(out, 0.5, module.training))
    torch.manual_seed(0)
    found = one.gradients(micro=2)[0]
    torch.manual_seed(0)
    with torch.no_grad():
        expected = by_differences(one, found)
    torch.testing.assert_close(torch.dot(found, found) / found.norm(), expected, rtol=1e-3, atol=0)


def by_differences(one: Trial, direction: Tensor, by: float = 1e-4) -> Tensor:
    """The slope of the loss along a direction, from two losses whose dropout is alike."""
    named, values = one.parameters(), []
    for sign in (1, -1):
        pieces = direction.split([p.numel() for _, p in named])
        for (_, p), piece in zip(named, pieces, strict=True):
            p.add_(sign * by * piece.view_as(p) / direction.norm())
        torch.manual_seed(0)
        with torch.enable_grad():
            (loss,) = one.gradients(micro=2)[1]
        values.append(loss.total / loss.count)
        for (_, p), piece in zip(named, pieces, strict=True):
            p.sub_(sign * by * piece.view_as(p) / direction.norm())
    return (values[0] - values[1]) / (2 * by)


def test_lazy_logits_stay_lazy_and_truncated_ones_keep_their_tail_when_parts_are_joined() -> None:
    head = torch.nn.Linear(3, 5)
    lazy = [Logits(torch.full((n, 3), float(n)), head, True) for n in (1, 2)]
    few = [TopK(torch.full((n, 2), n), torch.full((n, 2), -float(n)), torch.zeros(n)) for n in (1, 2)]
    both = joined([{"logits": a, "top_logits": b} for a, b in zip(lazy, few, strict=True)])
    assert both["logits"].head is head and both["logits"].hidden[:, 0].tolist() == [1, 2, 2]
    assert both["top_logits"].ids[:, 0].tolist() == [1, 2, 2] and len(both["top_logits"].tail) == 3
