"""Whole numbers of few bits, by hand and by a naive loop."""

import pytest
import torch

from limbeck.formats.integer import Integer


def test_a_group_of_four_bits_by_hand():
    codes = Integer(4, 8).encode(torch.tensor([[7.5, -7.5, 0.5, 1.5, 2.5, -0.4, 3.0, 0.0]]))
    # steps of 7.5 / 7.5 = 1; 8 is clamped to 7; halves to even; -8 is the code 0: 15, 0, 8, 10, 10, 8, 11, 8, the first of two in the lower half
    assert codes.scale.tolist() == [[1.0]] and codes.packed.tolist() == [[0x0F, 0xA8, 0x8A, 0x8B]]
    assert Integer(4, 8).decode(codes).tolist() == [[7.0, -8.0, 0.0, 2.0, 2.0, 0.0, 3.0, 0.0]]


def test_a_row_of_eight_bits_by_hand():
    codes = Integer(8).encode(torch.tensor([[127.5, -127.5, 0.5, 1.5, -64.4], [0.0, 0.0, 0.0, 0.0, 0.0]]))
    assert codes.packed.dtype == torch.int8 and codes.packed.tolist() == [[127, -128, 0, 2, -64], [0] * 5]
    assert codes.scale.tolist() == [[1.0], [0.0]]


@pytest.mark.parametrize("how", [Integer(8), Integer(8, 16), Integer(4, 16)], ids=str)
def test_it_is_a_naive_loop_in_double_precision(how):
    x = torch.randn(5, 48, generator=torch.Generator().manual_seed(0))
    half, out, largest = 2 ** (how.bits - 1), [], []
    for row in x.double().tolist():
        size = how.group or len(row)
        for start in range(0, len(row), size):
            group = row[start : start + size]
            step = max(map(abs, group)) / (half - 0.5)
            out += [step * min(max(round(v / step), -half), half - 1) for v in group]
            largest += [abs(v) == max(map(abs, group)) for v in group]
    expected, tie = torch.tensor(out, dtype=torch.float64), torch.tensor(largest)  # the largest lies between two codes: either is right
    torch.testing.assert_close(how.fake(x).double().flatten()[~tie], expected[~tie], rtol=2e-7, atol=0)
    assert 5 * 48 / (how.group or 48) == tie.sum()


@pytest.mark.parametrize("how", [Integer(8), Integer(4, 32)], ids=str)
def test_no_number_is_off_by_more_than_half_a_step(how):
    x = torch.randn(32, 64, generator=torch.Generator().manual_seed(1))
    step = how.encode(x).scale.repeat_interleave(how.group or 64, -1)
    assert float(((how.fake(x) - x).abs() / step).max()) <= 0.5 + 1e-4  # rounding of x / step in float32


def test_four_bits_in_groups_of_64_take_four_and_a_half_bits():
    codes = Integer(4, 64).encode(torch.randn(8, 512))
    assert 8 * sum(t.numel() * t.element_size() for t in codes.tensors) == 4.5 * 8 * 512


def test_beyond_a_frozen_scale_numbers_are_clamped():
    out = Integer(8).fake(torch.tensor([1e9, -1e9, 1.0]), Integer(8).frozen(127.5))
    assert out.tolist() == [127.0, -128.0, 1.0]
