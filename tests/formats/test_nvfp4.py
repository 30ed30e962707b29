"""NVFP4 by hand, by naive loops in double precision, and at its edges."""

import math

import pytest
import torch

from limbeck.formats.nvfp4 import LEVELS, NVFP4, SMALLEST_SCALE

FORMAT = NVFP4()
E4M3 = sorted({m / 8 * 2.0**-6 for m in range(8)} | {(1 + m / 8) * 2.0 ** (e - 7) for e in range(1, 16) for m in range(8) if (e, m) != (15, 7)})
"""All numbers of E4M3 from 0, by its definition: bias 7, the code 15, 7 is NaN."""


def nearest(x: float, numbers: list[float]) -> int:
    """The place of the nearest number, ties to the even place."""
    return min(range(len(numbers)), key=lambda i: (abs(numbers[i] - x), i % 2))


def naive(x: torch.Tensor) -> tuple[list[list[int]], list[list[float]], float]:
    """Codes, block scales and scale of the whole tensor, one number after the other, as the format is defined."""
    whole = float(x.abs().max()) / (448 * 6)
    codes, scales = [], []
    for row in x.double().tolist():
        codes.append([])
        scales.append([])
        for start in range(0, len(row), 16):
            block = row[start : start + 16]
            scale = E4M3[nearest(min(max(max(map(abs, block)) / 6 / whole, 2.0**-6), 448.0), E4M3)]
            scales[-1].append(scale)
            for number in block:
                code = nearest(min(abs(number) / (scale * whole), 6.0), list(LEVELS))
                codes[-1].append(code + 8 * (math.copysign(1, number) < 0))
    return codes, scales, whole


def with_scale_one(numbers: list[float]) -> torch.Tensor:
    """Numbers in a block whose step is 1: its greatest magnitude is 6, and that of the tensor 448 * 6."""
    assert len(numbers) < 16
    return torch.tensor([*numbers, 6.0] + [0.0] * (15 - len(numbers)) + [448 * 6.0] + [0.0] * 15)


def said(numbers: list[float]) -> list[float]:
    return FORMAT.fake(with_scale_one(numbers))[: len(numbers)].tolist()


def test_ties_go_to_the_even_code():
    ties = {0.25: 0.0, 0.75: 1.0, 1.25: 1.0, 1.75: 2.0, 2.5: 2.0, 3.5: 4.0, 5.0: 4.0}  # IEEE 754, the last bit of the mantissa is 0
    assert said(list(ties)) == list(ties.values()) and said([-x for x in ties]) == [-y for y in ties.values()]


def test_numbers_beside_a_tie_go_to_their_own_side():
    below = [0.2499, 0.7499, 1.2499, 1.7499, 2.499, 3.499, 4.999]
    assert said(below) == [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0]
    assert said([0.2501, 0.7501, 1.2501, 1.7501, 2.501, 3.501, 5.001]) == [0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]


def test_codes_of_one_block_by_hand():
    codes = FORMAT.encode(with_scale_one([0.5, -1.0, 3.0, -0.1, 0.0]))
    # 0.5 is 1, -1 is 8 + 2, 3 is 5, -0.1 rounds to the code 8 of -0, 0 is 0, 6 is 7: the first of each two in the lower half
    assert codes.packed[:3].tolist() == [0xA1, 0x85, 0x70]
    assert codes.scale.float().tolist() == [1.0, 448.0] and codes.whole is not None and codes.whole.tolist() == [1.0]


def test_it_is_the_definition_number_by_number():
    x = torch.randn(6, 64, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 1, 6)[:, None]
    codes, scales, whole = naive(x)
    got = FORMAT.encode(x)
    assert got.scale.float().tolist() == scales and got.whole is not None
    assert torch.stack([got.packed & 15, got.packed >> 4], -1).flatten(-2).tolist() == codes
    assert got.whole.item() == pytest.approx(1 / whole, rel=2e-7)
    values = [[math.copysign(LEVELS[c % 8], 8 - c - 0.5) * s * whole for c, s in zip(row, [s for s in scale for _ in range(16)], strict=True)]
              for row, scale in zip(codes, scales, strict=True)]  # fmt: skip
    torch.testing.assert_close(FORMAT.decode(got).double(), torch.tensor(values, dtype=torch.float64), rtol=4e-7, atol=0)


def test_no_block_has_a_smaller_scale_than_the_smallest_normal_one():
    assert SMALLEST_SCALE == 2.0**-6 == torch.finfo(torch.float8_e4m3fn).tiny
    # a block of 6 * 2^-8 beside 448 * 6: with the other floor that is about, 2^-9, its scale would be 2^-8, and 2^-8 and 3 * 2^-8 would both stay
    x = torch.tensor([6 * 2.0**-8, 3 * 2.0**-8, 2.0**-8, 2.0**-9] + [0.0] * 12 + [448 * 6.0] + [0.0] * 15)
    codes = FORMAT.encode(x)
    assert codes.scale.float().tolist() == [2.0**-6, 448.0]
    assert FORMAT.decode(codes)[:4].tolist() == [1.5 * 2.0**-6, 2.0**-6, 0.0, 0.0]  # 1.5, 0.75 (a tie), 0.25 (a tie), 0.125 in steps of 2^-6


def test_levels_times_scales_that_can_be_told_are_fixed_points():
    scales = torch.tensor([s for s in E4M3 if 2.0**-6 <= s < 448])
    blocks = torch.tensor([*LEVELS, *(-x for x in LEVELS)]) * scales[:, None]
    x = torch.cat([blocks, torch.full((1, 16), 448 * 6.0)])
    assert len(scales) == 14 * 8 + 6 and torch.equal(FORMAT.fake(x), x)


@pytest.mark.parametrize("power", [-40, -3, 5, 60])
def test_scaling_by_a_power_of_two_commutes(power):
    x = torch.randn(8, 48, generator=torch.Generator().manual_seed(1))
    assert torch.equal(FORMAT.fake(x * 2.0**power), FORMAT.fake(x) * 2.0**power)
    assert torch.equal(FORMAT.encode(x * 2.0**power).packed, FORMAT.encode(x).packed)


def test_gaussian_numbers_lose_nine_to_ten_percent_of_their_norm():
    x = torch.randn(256, 256, generator=torch.Generator().manual_seed(2))
    assert 0.09 < float((FORMAT.fake(x) - x).norm() / x.norm()) < 0.10  # known of four bits with scales for 16


def test_it_takes_four_and_a_half_bits():
    codes = FORMAT.encode(torch.randn(64, 512))
    assert codes.packed.dtype == torch.uint8 and codes.scale.dtype == torch.float8_e4m3fn
    assert 8 * sum(t.numel() * t.element_size() for t in codes.tensors) == 4.5 * 64 * 512 + 32


@pytest.mark.parametrize("size, error", [(1e-38, 1.0), (1e-31, 0.11), (1e-20, 0.11), (1e20, 0.11), (1e37, 0.11), (1e38, 0.7)])
def test_no_size_of_numbers_makes_it_leave_float32(size, error):
    x = size * torch.randn(4, 32, generator=torch.Generator().manual_seed(3))  # up to 2.5 times that
    out = FORMAT.fake(x)
    assert out.isfinite().all() and float((out - x).double().norm() / x.double().norm()) <= error


def test_a_frozen_scale_clips_what_lies_beyond_what_it_was_measured_on():
    frozen = FORMAT.frozen(2.0)
    x = torch.tensor([100.0, 1.0] + [0.0] * 14 + [1.0] * 16)
    out, codes = FORMAT.fake(x, frozen), FORMAT.encode(x, frozen)
    assert codes.scale.float().tolist()[0] == 448.0, "the scale of its block is clamped before it is cast"
    assert out[0].item() == pytest.approx(2.0, rel=1e-6) and out[16].item() == pytest.approx(1.0, rel=1e-6)
    assert FORMAT.reach(frozen) == pytest.approx(2.0, rel=1e-6)


def test_blocks_of_a_frozen_scale_are_still_measured():
    x = torch.cat([torch.full((16,), 1.0), torch.full((16,), 0.01)])
    torch.testing.assert_close(FORMAT.fake(x, FORMAT.frozen(3.0)), x, rtol=0.07, atol=0)  # half a step of E4M3 is a sixteenth
