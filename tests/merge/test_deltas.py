"""Merges of changes, worked by hand: task arithmetic, TIES, SCE and DARE."""

import pytest
import torch
from torch import Tensor

from limbeck.merge._deltas import AbstractDeltas
from limbeck.merge.dare import Dare
from limbeck.merge.sce import Sce
from limbeck.merge.task_arithmetic import TaskArithmetic
from limbeck.merge.ties import Ties


def apply(how: AbstractDeltas, base: list[float], *deltas: list[float], name: str = "w") -> list[float]:
    start = torch.tensor(base, dtype=torch.float64)
    return how(name, [start + torch.tensor(delta, dtype=torch.float64) for delta in deltas], start).tolist()


ONES = [1.0, 1.0, 1.0, 1.0]


def test_task_arithmetic_adds_weighted_changes() -> None:
    assert apply(TaskArithmetic(), ONES, [1.0, 0.0, -2.0, 4.0], [2.0, 1.0, 0.0, 4.0]) == [4.0, 2.0, -1.0, 9.0]
    how = TaskArithmetic(weights=(1.0, -0.5), scale=0.5)
    assert apply(how, ONES, [1.0, 0.0, -2.0, 4.0], [2.0, 1.0, 0.0, 4.0]) == [1.0, 0.75, 0.0, 2.0]


A, B = [4.0, -1.0, 2.0, 0.5], [-2.0, 3.0, 0.25, -0.5]


@pytest.mark.parametrize(
    "how, expected",
    [
        (Ties(density=0.5), [5.0, 4.0, 3.0, 1.0]),  # trimmed to 4, 0, 2, 0 and -2, 3, 0, 0; signs + + +
        (Ties(density=0.5, weights=(1.0, 3.0)), [-1.0, 4.0, 3.0, 1.0]),  # 4 - 6 is below 0
        (Ties(density=0.25, scale=0.5), [3.0, 2.5, 1.0, 1.0]),
        (Ties(density=0.01), [5.0, 4.0, 1.0, 1.0]),  # one is kept at least
        (Ties(density=1), [5.0, 4.0, 2.125, 1.5]),  # the last cancel: upwards counts
    ],
)
def test_ties_trims_elects_and_averages_those_that_agree(how: Ties, expected: list[float]) -> None:
    assert apply(how, ONES, A, B) == expected


def test_ties_leaves_what_was_trimmed_out_of_the_mean() -> None:
    """Below 0 too: a change of 0 agrees with no sign."""
    assert apply(Ties(density=0.5), [0.0, 0.0], [-3.0, 1.0], [-1.0, -5.0]) == [-3.0, -5.0]


def test_ties_keeps_all_that_is_as_large_as_the_smallest_that_is_kept() -> None:
    assert apply(Ties(density=0.5), [0.0] * 4, [2.0, -2.0, 2.0, 1.0]) == [2.0, -2.0, 2.0, 0.0]


C, D = [3.0, 1.0, 0.0, 2.0], [-1.0, 1.0, 0.0, 2.5]


def test_sce_selects_by_variance_weighs_by_squares_and_erases_the_smaller_sign() -> None:
    """Variances 4, 0, 0, 1/16: of the two that differ one is kept; squares 9 and 1, and the sum 2 is above 0."""
    assert apply(Sce(density=0.5), ONES, C, D) == [4.0, 1.0, 1.0, 1.0]
    all_of_it = apply(Sce(density=1, scale=2), ONES, C, D)
    assert all_of_it == pytest.approx([7.0, 3.0, 1.0, 1 + 2 * (14 * 2 + 8.25 * 2.5) / 22.25], rel=1e-15)


@pytest.mark.parametrize("density", [0.5, 1.0])
@pytest.mark.parametrize("size", [1e-6, 1e-12])
def test_sce_merges_small_changes_as_it_merges_large_ones(density: float, size: float) -> None:
    """A fallback to equal weights below an absolute size would change the second merge by a third."""
    large = torch.tensor(apply(Sce(density=density), [0.0] * 4, C, D))
    small = torch.tensor(apply(Sce(density=density), [0.0] * 4, [size * x for x in C], [size * x for x in D]))
    torch.testing.assert_close(small / size, large, rtol=1e-6, atol=0)


def test_sce_of_models_that_changed_alike_keeps_that_change_only_at_a_density_of_one() -> None:
    assert apply(Sce(density=0.5), ONES, C, C) == ONES
    assert apply(Sce(density=1), ONES, C, C) == [4.0, 2.0, 1.0, 3.0]


def drawn(how: Dare, *deltas: Tensor, name: str = "w") -> Tensor:
    return how(name, list(deltas), torch.zeros_like(deltas[0]))


ONE = torch.ones(40_000, dtype=torch.float64)


def test_dare_keeps_its_share_and_divides_it_by_the_density() -> None:
    out = drawn(Dare(density=0.25), ONE)
    assert set(out.tolist()) == {0.0, 4.0}
    assert abs(out.mean().item() - 1) < 5 * (3 / 40_000) ** 0.5  # five standard errors
    assert set(drawn(Dare(density=0.25, weights=(0.5,), scale=3.0), ONE).tolist()) == {0.0, 6.0}


def test_dare_with_the_l1_norm_keeps_the_absolute_sum_of_each_tensor() -> None:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(1000, generator=random, dtype=torch.float64) ** 3
    by_density, by_norm = drawn(Dare(density=0.3), x), drawn(Dare(density=0.3, rescale="l1_norm"), x)
    torch.testing.assert_close(by_norm.abs().sum(), x.abs().sum())
    assert torch.equal(by_density != 0, by_norm != 0) and not torch.allclose(by_density, by_norm)
    torch.testing.assert_close(by_density[by_density != 0], x[by_density != 0] / 0.3)
    assert not drawn(Dare(rescale="l1_norm"), torch.zeros(3)).any() and drawn(Dare(rescale="l1_norm"), torch.zeros(0)).numel() == 0


def test_what_dare_drops_depends_on_seed_tensor_and_place_alone() -> None:
    pair = drawn(Dare(weights=(1.0, 0.0)), ONE, ONE), drawn(Dare(weights=(0.0, 1.0)), ONE, ONE)
    assert torch.equal(pair[0], drawn(Dare(), ONE)), "another model beside it changes nothing"
    others = (pair[1], drawn(Dare(seed=1), ONE), drawn(Dare(), ONE, name="v"))
    for other in others:  # independent: both keep a quarter of the places
        assert abs(((other > 0) & (pair[0] > 0)).double().mean().item() - 0.25) < 0.02
    torch.manual_seed(5)
    assert torch.equal(drawn(Dare(), ONE), pair[0])


def test_dare_elects_signs_as_ties_does() -> None:
    random = torch.Generator().manual_seed(0)
    a, b = (torch.randn(200, generator=random, dtype=torch.float64) for _ in range(2))
    torch.testing.assert_close(drawn(Dare(density=1, signs="elect"), a, b), Ties(density=1)("w", [a, b], torch.zeros_like(a)))
    torch.testing.assert_close(drawn(Dare(density=1), a, b), a + b)
    kept = [drawn(Dare(weights=weights), a, b) for weights in ((1.0, 0.0), (0.0, 1.0))]
    torch.testing.assert_close(drawn(Dare(signs="elect"), a, b), Ties(density=1)("w", kept, torch.zeros_like(a)))
