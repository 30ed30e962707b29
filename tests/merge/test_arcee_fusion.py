"""Fusion of two models: worked by hand, asymmetric, exact and the same again whatever the size."""

import math

import pytest
import torch
from torch import Tensor

from limbeck.merge.arcee_fusion import ArceeFusion

BASE = torch.tensor([[0.0, 1.0, 2.0, 3.0], [1.0, 1.0, 1.0, 1.0], [0.5, -0.5, 0.25, 0.0]], dtype=torch.float64)
CANDIDATE = torch.tensor([[0.0, 1.5, 2.0, 2.0], [1.0, 3.0, 1.0, 1.0], [0.5, -0.5, 0.25, 0.125]], dtype=torch.float64)


def fuse(*tensors: Tensor) -> Tensor:
    return ArceeFusion()("w", tensors, None)


def by_loops(base: Tensor, candidate: Tensor) -> Tensor:
    """The formula of the sheet, number by number, with a whole sorted list."""
    width = base.shape[-1]
    importance: list[float] = []
    for b, c in zip(base.reshape(-1, width).tolist(), candidate.reshape(-1, width).tolist(), strict=True):
        p, q = ([math.exp(x - max(row)) for x in row] for row in (c, b))
        r = sum(x / sum(p) * math.log(x / sum(p) / (y / sum(q))) for x, y in zip(p, q, strict=True))
        importance += [abs(y - x) * r for x, y in zip(b, c, strict=True)]
    ordered = sorted(importance)
    low, middle, high = (ordered[math.floor(q * (len(ordered) - 1))] for q in (0.25, 0.5, 0.75))
    threshold = middle + 1.5 * (high - low)
    pairs = zip(importance, base.flatten().tolist(), candidate.flatten().tolist(), strict=True)
    return base.new_tensor([c if i >= threshold else b for i, b, c in pairs]).reshape(base.shape)


def test_a_tensor_of_three_rows_worked_by_hand() -> None:
    """Row divergences 0.177441, 0.468011, 0.001404; importances 0.088721, 0.177441, 0.936021, 0.000176 and eight 0: the quartiles are 0, 0 and
    0.000176, the threshold is 0.000263, and all but the last change are taken."""
    expected = torch.tensor([[0.0, 1.5, 2.0, 2.0], [1.0, 3.0, 1.0, 1.0], [0.5, -0.5, 0.25, 0.0]], dtype=torch.float64)
    assert torch.equal(fuse(BASE, CANDIDATE), expected)


def test_the_first_is_the_base_and_the_other_way_round_is_another_model() -> None:
    """b into c: importances 0.0394, 0.0789, 0.8415, 0.1052, 0.0064, 0.0064 and three 0, threshold 0.1247; c into b: 0.1054."""
    b = torch.tensor([[0.0, 1.0, 2.0], [1.0, 1.0, 1.0], [0.5, -0.5, 0.25]], dtype=torch.float64)
    c = torch.tensor([[0.5, 1.0, 3.0], [1.0, 3.0, 1.25], [0.25, -0.5, 0.5]], dtype=torch.float64)
    into_b, into_c = b.clone(), c.clone()
    into_b[1, 1], into_c[1, 1] = 3.0, 1.0
    assert torch.equal(fuse(b, c), into_b)
    assert torch.equal(fuse(c, b), into_c)


@pytest.mark.parametrize("shape", [(7,), (5, 9), (3, 4, 5), (1, 1), (6, 1)])
def test_any_shape_is_as_the_formula_number_by_number(shape: tuple[int, ...]) -> None:
    random = torch.Generator().manual_seed(len(shape))
    base = torch.randn(shape, generator=random, dtype=torch.float64)
    candidate = base + 0.3 * torch.randn(shape, generator=random, dtype=torch.float64) ** 3
    torch.testing.assert_close(fuse(base, candidate), by_loops(base, candidate) if shape[-1] > 1 else base, rtol=0, atol=0)


def test_a_number_alone_and_an_empty_tensor_stay_those_of_the_base() -> None:
    assert torch.equal(fuse(torch.tensor(1.0), torch.tensor(2.0)), torch.tensor(1.0))
    assert fuse(torch.zeros(0, 3), torch.zeros(0, 3)).shape == (0, 3)


def test_where_the_threshold_is_zero_only_what_is_important_is_taken() -> None:
    """A row that is moved as a whole has no divergence: with I >= 0 it would be taken."""
    base = torch.tensor([[0.0, 1.0, 2.0, 3.0]] * 4)
    candidate = base.clone()
    candidate[0] += 1
    candidate[2, 1] = 0.0
    expected = base.clone()
    expected[2, 1] = 0.0
    assert torch.equal(fuse(base, candidate), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_small_changes_are_picked_as_in_float64(dtype: torch.dtype) -> None:
    """In bfloat16 the reference keeps a set with a Jaccard index of 0.29 with the right one, with rows below 0."""
    random = torch.Generator().manual_seed(0)
    base = (0.02 * torch.randn(64, 128, generator=random)).to(dtype)
    candidate = (base.float() + 1e-3 * torch.randn(64, 128, generator=random)).to(dtype)
    expected = fuse(base.double(), candidate.double())
    assert torch.equal(fuse(base, candidate).double(), expected) and not torch.equal(expected, base.double())
    torch.testing.assert_close(expected, by_loops(base.double(), candidate.double()), rtol=0, atol=0)


def test_above_a_million_numbers_the_quartiles_are_exact_and_two_merges_are_equal_to_the_bit() -> None:
    random = torch.Generator().manual_seed(0)
    base = 0.02 * torch.randn(1100, 1000, generator=random)
    candidate = base + 1e-3 * torch.randn(1100, 1000, generator=random)
    one = fuse(base, candidate)
    torch.manual_seed(1)
    assert torch.equal(one, fuse(base, candidate))
    log_p, log_q = candidate.double().log_softmax(-1), base.double().log_softmax(-1)
    importance = (candidate.double() - base.double()).abs() * (log_p.exp() * (log_p - log_q)).sum(-1, keepdim=True)
    ordered = importance.flatten().sort().values
    low, middle, high = (ordered[math.floor(q * (ordered.numel() - 1))] for q in (0.25, 0.5, 0.75))
    taken = importance >= middle + 1.5 * (high - low)
    assert torch.equal(one, torch.where(taken, candidate, base)) and 0.005 < taken.double().mean() < 0.2


def test_of_three_the_last_is_fused_into_the_one_before_and_that_into_the_first() -> None:
    random = torch.Generator().manual_seed(0)
    code, science, maths = (torch.randn(6, 8, generator=random) for _ in range(3))
    assert torch.equal(fuse(code, science, maths), fuse(code, fuse(science, maths)))
    assert not torch.equal(fuse(code, science, maths), fuse(fuse(code, science), maths))
