"""Packing: what is written comes back within a stated error, in as many bytes as stated."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.errors import Failed
from limbeck.numerics import RULED_OUT, draws, kl, log_probs, top_k
from limbeck.teacher import _packing
from limbeck.teacher._packing import FEWEST, WHOLE, narrow, pack, unpack
from limbeck.teacher.cached import Cached


def returned(said, bits, other=None):
    """What comes back, and how many bytes an entry takes."""
    tensors, whole = pack(said, bits, other)
    num = len(next(iter(said.values())))
    assert all(len(x) == num for x in tensors.values()) and {name.split("/")[1] for name in whole} <= WHOLE
    return unpack({**tensors, **whole}), sum(x.numel() * x.element_size() for x in tensors.values()) / max(num, 1)


def states(num, dim, seed=0):
    """States whose channels differ in size and lie off zero; one channel is huge, as in real models."""
    random = torch.Generator().manual_seed(seed)
    size = torch.logspace(-1, 1, dim)
    size[dim // 2] = 60
    return torch.randn(num, dim, generator=random) * size + size


def truncated(num, vocab, k, seed=0, scale=4.0):
    log_p = log_probs(scale * torch.randn(num, vocab, generator=torch.Generator().manual_seed(seed)))
    return dict(zip(("ids", "log_probs", "tail"), top_k(log_p, k), strict=True))


def test_32_bits_are_what_was_said_bit_by_bit():
    said = {"hidden": states(5, 64), **truncated(5, 100, 7)}
    found = returned(said, 32)[0]
    assert all(torch.equal(found[name], x) for name, x in said.items())


def test_16_bits_are_float16_but_where_that_cannot_hold_the_numbers():
    x = torch.tensor([[1.0, 3.0001]])
    assert narrow(x).dtype == torch.float16 and narrow(x * 1e6).dtype == torch.bfloat16
    assert returned({"hidden": states(5, 64)}, 16)[1] == 128


def test_8_bits_by_hand():
    """Mean 0 and deviation 1 of the others; the 33rd channel reaches furthest and stays in 16 bits; the largest of the rest has the code 127."""
    other = torch.tensor([[-1.0], [1.0]]).repeat(FEWEST // 2, 33)
    other[0], other[1] = other[0] * 1.0, other[1] * 1.0
    other = other / other.std(0)
    other[:, 32] = torch.tensor([8.0] + [0.0] * (FEWEST - 2) + [-8.0])
    x = torch.zeros(1, 33)
    x[0, 0], x[0, 1], x[0, 32] = 12.7, -5.04, 1000.0
    tensors, whole = pack({"hidden": x}, 8, {"hidden": other})
    assert whole["hidden/far"].tolist() == [32] and tensors["hidden/wide"].tolist() == [[1000.0]]
    assert tensors["hidden/step"].item() == pytest.approx(0.1) and tensors["hidden/codes"][0, :3].tolist() == [127, -50, 0]
    found = unpack({**tensors, **whole})["hidden"]
    assert found[0, [0, 1, 2, 32]].tolist() == pytest.approx([12.7, -5.0, 0.0, 1000.0], abs=1e-5)


def test_8_bits_of_states_take_at_most_a_twentieth_more_than_a_byte_a_channel_and_are_measured_on_other_rows():
    said = {"hidden": states(50, 576), "hidden.6": states(50, 576, seed=2)}
    found, size = returned(said, 8, {"hidden": states(300, 576, seed=1), "hidden.6": states(300, 576, seed=3)})
    assert size / 2 / 576 <= 1.05
    assert size == Cached(model="config:x", bits=8, taps=("hidden.6",)).bytes_a_target(576, 100)
    for name, x in said.items():
        deviation = x.std(0)
        assert ((found[name] - x).abs() / deviation).max() < 0.1 and ((found[name] - x) / deviation).square().mean().sqrt() < 0.02


def test_a_row_that_reaches_further_than_the_others_did_is_not_cut_off():
    other, x = states(200, 64, seed=1), states(1, 64)
    x[0, 3] = 50 * other[:, 3].abs().max()
    found = returned({"hidden": x}, 8, {"hidden": other})[0]["hidden"]
    assert found[0, 3] == pytest.approx(float(x[0, 3]), rel=0.01)


@pytest.mark.parametrize("other", [{}, {"hidden": states(FEWEST - 1, 64, seed=1)}], ids=["none", "few"])
def test_without_enough_other_rows_8_bits_are_16(other):
    assert returned({"hidden": states(5, 64)}, 8, other)[1] == 128


def test_a_channel_that_never_moves_is_kept():
    x, other = torch.full((3, 64), 2.5), torch.full((100, 64), 2.5)
    assert torch.equal(returned({"hidden": x}, 8, {"hidden": other})[0]["hidden"], x)


@pytest.mark.parametrize("bits, bound", [(8, 200), (16, 264)])
def test_64_entries_and_the_tail_make_one_and_take_at_most_so_many_bytes(bits, bound):
    said = truncated(100, 500, 64)
    found, size = returned(said, bits)
    assert size <= bound and size == Cached(model="config:x", keep="top_k", bits=bits).bytes_a_target(576, 500)
    assert torch.equal(found["ids"], said["ids"]) and torch.equal(found["tail"], said["tail"])
    mass = found["log_probs"].double().exp().sum(-1) + found["tail"].double().exp()
    assert (mass - 1).abs().max() < 1e-6
    both = [torch.cat([x["log_probs"], x["tail"][:, None]], -1) for x in (said, found)]
    assert kl(*(x.double() for x in both)).max() < (1e-3 if bits == 8 else 1e-6)
    assert (found["log_probs"].diff(dim=-1) <= 0).all(), "the order of the entries is kept"


def test_ids_take_16_bits_up_to_65536_of_them_and_32_beyond():
    for last, dtype in ((65_535, torch.uint16), (65_536, torch.int32)):
        said = {"ids": torch.tensor([[0, last]]), "log_probs": torch.tensor([[-1.0, -2.0]]), "tail": torch.tensor([-0.69])}
        assert pack(said, 32)[0]["ids"].dtype == dtype
        assert torch.equal(returned(said, 32)[0]["ids"], said["ids"])


def test_draws_are_kept_as_counts_and_come_back_as_they_were():
    log_p = log_probs(torch.randn(20, 50, generator=torch.Generator().manual_seed(0)))
    said = dict(zip(("ids", "log_weights"), draws(log_p, 16, 1.0, torch.Generator().manual_seed(1)), strict=True))
    found, size = returned(said, 8)
    assert size == 16 * 3 and torch.equal(found["ids"], said["ids"])
    torch.testing.assert_close(found["log_weights"], said["log_weights"])
    assert (found["log_weights"] == RULED_OUT).any(), "ids that were drawn twice leave places over"
    bent = dict(zip(("ids", "log_weights"), draws(log_p, 16, 0.5, torch.Generator().manual_seed(1)), strict=True))
    assert torch.equal(returned(bent, 8)[0]["log_weights"], bent["log_weights"])


@pytest.mark.parametrize("bits", [8, 16, 32])
def test_no_entries_at_all_come_back_as_none(bits):
    said = {"hidden": states(0, 64), **truncated(3, 100, 7)}
    said = {name: x[:0] for name, x in said.items()}
    found = returned(said, bits, {"hidden": states(100, 64)})[0]
    assert all(found[name].shape == x.shape for name, x in said.items())


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("name", ["hidden", "log_probs", "ids"])
def test_what_does_not_come_back_is_not_written(bits, name, monkeypatch):
    said = {"hidden": states(5, 64), **truncated(5, 100, 7)}
    good = _packing.unpack
    monkeypatch.setattr(_packing, "unpack", lambda packed: {**(x := good(packed)), name: x[name] + (1 if name == "ids" else x[name].abs().max() / 4)})
    with pytest.raises(Failed) as caught:
        pack(said, bits, {"hidden": states(100, 64, seed=1)})
    assert caught.value.slug == "decode" and name in caught.value.where and caught.value.code == 5


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 12), st.floats(0.01, 30), st.sampled_from([8, 16, 32]))
def test_any_truncated_distribution_comes_back_within_the_error_that_is_stated(seed, vocab, k, scale, bits):
    said = truncated(6, vocab, min(k, vocab), seed, scale)
    found = returned(said, bits)[0]  # raises where it does not
    if bits < 32:
        mass = found["log_probs"].double().exp().sum(-1) + found["tail"].double().exp()
        assert (mass - 1).abs().max() < 1e-5


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 80), st.floats(-6, 6), st.sampled_from([8, 16, 32]))
def test_any_states_come_back_within_the_error_that_is_stated(seed, dim, power, bits):
    size = math.exp(power)
    returned({"hidden": states(7, dim, seed) * size}, bits, {"hidden": states(100, dim, seed + 1) * size})
