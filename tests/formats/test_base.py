"""What every number format keeps: codes and back, gradients, zeros, what is not finite, and groups that come out even."""

import pytest
import torch

from limbeck.errors import Refused
from limbeck.formats.base import Ranges
from limbeck.formats.binary import Binary
from limbeck.formats.fp8 import FP8
from limbeck.formats.integer import Integer
from limbeck.formats.nvfp4 import NVFP4

FORMATS = (NVFP4(), FP8(), Integer(8), Integer(8, 32), Integer(4, 32), Integer(4), Binary(32), Binary())
FROZEN = (NVFP4(), FP8(), Integer(8))
RANGED = FORMATS[:-2]
every = pytest.mark.parametrize("how", FORMATS, ids=str)
every_frozen = pytest.mark.parametrize("how", FROZEN, ids=str)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def bits(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_codes_decode_to_what_is_faked_bit_by_bit_in_the_dtype_that_came(how, dtype):
    for x in (drawn(24, 64), drawn(24, 64) * torch.logspace(-4, 3, 24)[:, None], -drawn(3, 5, 64).abs()):
        fake, codes = how.fake(x.to(dtype)), how.encode(x.to(dtype))
        assert fake.dtype == dtype and fake.shape == x.shape
        assert torch.equal(bits(how.decode(codes, dtype)), bits(fake))


@every_frozen
def test_so_do_codes_of_a_frozen_scale(how):
    x = drawn(24, 64)
    assert torch.equal(bits(how.decode(how.encode(x, how.frozen(1.5)))), bits(how.fake(x, how.frozen(1.5))))


@every
def test_scales_are_computed_in_float32_whatever_comes(how):
    x = drawn(8, 64).bfloat16()
    assert all(torch.equal(a, b) for a, b in zip(how.encode(x).tensors, how.encode(x.double()).tensors, strict=True))


@every
def test_zeros_stay_zeros(how):
    x = drawn(4, 64)
    x[1], x[2, :32] = 0, 0
    out = how.fake(x)
    assert not out[1].any() and out.isfinite().all()
    assert how.size not in (16, 32) or not out[2, :32].any()
    assert not how.fake(torch.zeros(4, 64)).any()


@every
def test_a_measured_scale_lets_every_gradient_through(how):
    x = drawn(16, 64).requires_grad_()
    gradient = drawn(16, 64, seed=1)
    how.fake(x).backward(gradient)
    assert torch.equal(x.grad, gradient)


@every_frozen
def test_a_frozen_scale_lets_the_gradient_through_inside_of_its_range_alone(how):
    x = torch.tensor([[1.5, -1.5, 1.4999, 1.5001, -1.6, 40.0, 0.0, 1.5 + 2**-20] + [0.1] * 56], requires_grad=True)
    how.fake(x, how.frozen(1.5)).sum().backward()
    assert x.grad[0, :8].tolist() == [1, 1, 1, 0, 0, 0, 1, 0] and x.grad[0, 8:].all()


@every_frozen
@pytest.mark.parametrize("seed", range(20))
def test_what_a_scale_was_measured_on_is_inside_however_it_was_rounded(how, seed):
    x = (10 * drawn(1, 64, seed=seed)).requires_grad_()
    how.fake(x, how.frozen(float(x.detach().abs().max()))).sum().backward()
    assert x.grad.all()


def by_autograd(how, x, amax, growth):
    """What is said, as the chain of its operations, where a rounding counts as a straight line and a clip as a clip."""

    def straight(exact, rounded):
        return exact + (rounded - exact).detach()

    groups, each = how.groups(x), (amax * growth.exp())[..., None]
    if isinstance(how, NVFP4):
        whole = 448 * 6 / amax.max()
        scale = each / 6 * whole
        step = scale / scale.detach() * scale.detach().clamp(2.0**-6, 448).to(torch.float8_e4m3fn).float() / whole  # straight in its logarithm
    else:
        step = each / (448 if isinstance(how, FP8) else how.half - 0.5)
    inside = groups.abs() <= each
    v = torch.where(inside, groups / step, (groups / step).detach())
    return (step * straight(v, how.levels((groups / step).detach()))).flatten(-2)


@pytest.mark.parametrize("how", RANGED, ids=str)
def test_ranges_that_learn_have_the_gradient_of_a_step_that_is_learned(how):
    x, gradient = drawn(16, 64), drawn(16, 64, seed=1)
    amax = how.groups(x).abs().amax(-1)
    start = 0.3 * drawn(*amax.shape, seed=2)  # about half of the groups clip some of theirs
    one, two = ([x.clone().requires_grad_(), start.clone().requires_grad_()] for _ in range(2))
    said = how.fake(one[0], ranges=Ranges(amax, growth=one[1]))
    expected = by_autograd(how, two[0], amax, two[1])
    torch.testing.assert_close(said, expected, rtol=1e-5, atol=1e-6)
    said.backward(gradient)
    expected.backward(gradient)
    torch.testing.assert_close(one[0].grad, two[0].grad, rtol=1e-5, atol=1e-6)
    assert not one[0].grad.all() and one[0].grad.any(), "some are clipped, and not all"
    torch.testing.assert_close(one[1].grad, two[1].grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("how", RANGED, ids=str)
def test_ranges_of_what_was_measured_say_the_same_bit_by_bit_and_are_kept_in_codes(how):
    x = drawn(24, 64)
    amax = how.groups(x).abs().amax(-1)
    for ranges in (Ranges(amax), Ranges(amax, growth=torch.zeros_like(amax)), Ranges(amax.max()[None], each=False)):
        if ranges.each or isinstance(how, NVFP4):
            assert torch.equal(how.fake(x, ranges=ranges), how.fake(x))
    wide = Ranges(amax, growth=0.3 * drawn(*amax.shape, seed=2))
    for y in (x, 1.7 * x, x.bfloat16()):
        codes = how.encode(y, ranges=wide)
        assert torch.equal(bits(how.decode(codes, y.dtype)), bits(how.fake(y, ranges=wide)))
        assert not torch.equal(codes.packed, how.encode(y).packed), "made for what is measured they would be others"


@pytest.mark.parametrize("how", RANGED, ids=str)
def test_what_grows_out_of_its_range_is_clipped_and_learns_no_further(how):
    x = drawn(4, 64)
    ranges = Ranges(how.groups(x).abs().amax(-1))
    most = ranges.amax.repeat_interleave(64 // ranges.amax.shape[-1], -1)
    grown = (3 * x).requires_grad_()
    said = how.fake(grown, ranges=ranges)
    said.sum().backward()
    beyond = (3 * x).abs() > 1.001 * most
    assert beyond.any() and not grown.grad[beyond].any() and grown.grad[(3 * x).abs() < 0.999 * most].all()
    # the largest level lies half a step of Integer, and a sixteenth of E4M3, beside the range at most
    reach = {NVFP4: 17 / 16, FP8: 1}.get(type(how)) or how.half / (how.half - 0.5)
    assert (said.abs() <= reach * most * (1 + 1e-6)).all() and (said[beyond].abs() > 0.9 * most[beyond]).all()
    x[1, 3] = float("nan")
    assert how.fake(x, ranges=ranges).isnan()[1, 3]


def test_what_the_rounding_of_a_scale_clips_keeps_its_gradient():
    # 6 * 0.5312 / (448 * 6): of E4M3, 0.53125 is nearer to 0.5 than to 0.5625, so that the block's largest number lies beyond 6 steps
    x = torch.tensor([6 * 0.5312] + [0.0] * 15 + [448 * 6.0] + [0.0] * 15, requires_grad=True)
    out = NVFP4().fake(x)
    assert out[0].item() == 3.0 < x[0].item()
    out.sum().backward()
    assert x.grad.all()


@every
@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_makes_all_that_share_its_scale_nan_and_has_no_code(how, wrong):
    x = drawn(4, 64)
    x[2, 40] = wrong
    size = how.size or 64
    spoilt = torch.zeros(4, 64, dtype=torch.bool)
    spoilt[2, 40 // size * size : (40 // size + 1) * size] = True
    nan = how.fake(x).isnan()
    assert torch.equal(nan, torch.ones_like(nan) if isinstance(how, NVFP4) else spoilt)
    with pytest.raises(Refused) as caught:
        how.encode(x)
    assert caught.value.slug == "finite"


@every_frozen
@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
def test_under_a_frozen_scale_it_stays_nan_where_it_stands(how, wrong):
    x = drawn(4, 64)
    x[2, 40] = wrong
    nan = how.fake(x, how.frozen(2.0)).isnan()
    assert nan[2, 40] and nan.sum() == (16 if isinstance(how, NVFP4) else 1)


@pytest.mark.parametrize("how", [NVFP4(), Integer(8, 32), Integer(4, 32), Binary(32)], ids=str)
def test_rows_that_groups_do_not_divide_are_refused(how):
    for act in (how.fake, how.encode):
        with pytest.raises(Refused) as caught:
            act(drawn(2, 40))
        assert caught.value.slug == "group" and "40" in caught.value.got and str(how.size) in caught.value.expected


@every
def test_groups_lie_on_the_last_axis(how):
    x = drawn(64, 64) * torch.logspace(-3, 3, 64)[:, None]
    along, across = (float((out - x).norm(dim=1).div(x.norm(dim=1)).median()) for out in (how.fake(x), how.fake(x.mT).mT))
    assert along < across, "rows of one size are told better by scales of their own"


def test_signs_have_no_frozen_scale():
    for act in (lambda: Binary(8).fake(drawn(2, 8), 1.0), lambda: Binary(8).frozen(1.0), lambda: Binary(8).reach(1.0)):
        with pytest.raises(Refused) as caught:
            act()
        assert caught.value.slug == "scale"


@every
def test_it_runs_on_shapes_alone(how):
    assert how.fake(torch.empty(4, 64, device="meta")).shape == (4, 64)
