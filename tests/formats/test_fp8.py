"""FP8 by hand, and by the definition of E4M3."""

import pytest
import torch

from limbeck.formats.fp8 import FP8

E4M3 = sorted({m / 8 * 2.0**-6 for m in range(8)} | {(1 + m / 8) * 2.0 ** (e - 7) for e in range(1, 16) for m in range(8) if (e, m) != (15, 7)})
"""All numbers of E4M3 from 0, by its definition: bias 7, the code 15, 7 is NaN."""


def test_the_greatest_number_of_a_row_is_the_largest_code():
    x = torch.tensor([[448.0, 1.0, -2.0], [44.8, 0.1, -0.2]])
    codes = FP8().encode(x)
    assert codes.scale.tolist() == [[1.0], [pytest.approx(0.1)]]
    assert codes.packed.float().tolist() == [[448.0, 1.0, -2.0]] * 2 and codes.whole is None


def test_ties_go_to_the_even_mantissa():
    # between 16 and 32 numbers stand 2 apart, between 256 and 448 they stand 32 apart
    x = torch.tensor([[448.0, 17.0, 19.0, 21.0, 272.0, 304.0]])
    assert FP8().fake(x).tolist() == [[448.0, 16.0, 20.0, 20.0, 256.0, 320.0]]


def test_it_is_the_nearest_number_of_e4m3():
    x = torch.randn(8, 40, generator=torch.Generator().manual_seed(0))
    x[:, 0] = 448.0  # so that the scale is 1
    expected = [[min(E4M3, key=lambda n: abs(n - abs(v))) * (1 if v >= 0 else -1) for v in row] for row in x.tolist()]
    assert FP8().fake(x).tolist() == expected


def test_a_normal_number_is_off_by_a_sixteenth_at_most():
    x = torch.rand(4, 1000, generator=torch.Generator().manual_seed(1)) * 447 + 1
    x[:, 0] = 448
    assert float(((FP8().fake(x) - x).abs() / x).max()) <= 2.0**-4  # half of the last of three bits of mantissa


@pytest.mark.parametrize("x", [3.0, 1e6, -1e30])
def test_beyond_a_frozen_scale_is_the_largest_number_and_never_nan(x):
    out = FP8().fake(torch.tensor([x]), FP8().frozen(2.0)).item()
    assert out == pytest.approx(2.0 if x > 0 else -2.0)
