"""The recurrence of linear attention in three forms, against a loop over numbers in float64, closed forms and a case by hand."""

import math

import pytest
import torch

from limbeck.block._linear_recurrence import linear_matrix, linear_recurrence, linear_recurrence_steps
from recurrence import EXACT, same, slopes, work

B, H, K, V = 2, 2, 3, 4
DECAYS = ("none", "head", "channel")


def drawn(length, decay, dtype=torch.float64, seed=0, scale=1.0):
    """q, k, v, the log of the decay and a state, of numbers that float32 holds exactly."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator).to(dtype)

    q, k, v, state = draw(B, length, H, K) / 2, draw(B, length, H, K) / 2, draw(B, length, H, V), draw(B, H, K, V)
    a = {"none": None, "head": -scale * draw(B, length, H).abs(), "channel": -scale * draw(B, length, H, K).abs()}[decay]
    return q, k, v, a, state


def by_loops(q, k, v, a, state=None):
    """The recurrence, head by head and position by position, in float64."""
    q, k, v = q.double(), k.double(), v.double()
    state = torch.zeros(*k.shape[:1], *k.shape[2:], v.shape[-1], dtype=torch.float64) if state is None else state.double()
    outs, ends = [], []
    for b in range(q.shape[0]):
        for h in range(q.shape[2]):
            s, said = state[b, h], []
            for t in range(q.shape[1]):
                kept = torch.ones(k.shape[-1], dtype=torch.float64) if a is None else a[b, t, h].double().exp().expand(k.shape[-1])
                s = torch.diag(kept) @ s + torch.outer(k[b, t, h], v[b, t, h])
                said.append(q[b, t, h] @ s)
            outs.append(torch.stack(said))
            ends.append(s)
    o = torch.stack(outs).unflatten(0, (q.shape[0], q.shape[2])).transpose(1, 2)
    return o, torch.stack(ends).unflatten(0, (q.shape[0], q.shape[2]))


@pytest.mark.parametrize("dtype", EXACT, ids=str)
@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("length, chunk", [(1, 64), (2, 64), (7, 4), (16, 4), (21, 5), (21, 64)])
def test_chunks_and_steps_say_what_the_loop_says_from_any_state_with_all_gradients(dtype, decay, length, chunk):
    values = drawn(length, decay, dtype)
    wanted = slopes(by_loops, values)
    same(slopes(lambda *x: linear_recurrence(*x, chunk=chunk), values), wanted, **EXACT[dtype])
    same(slopes(linear_recurrence_steps, values), wanted, **EXACT[dtype])


@pytest.mark.parametrize("dtype", EXACT, ids=str)
@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("length", [1, 2, 13])
def test_the_matrix_times_the_values_is_what_the_loop_says_with_all_gradients(dtype, decay, length):
    q, k, v, a, _ = drawn(length, decay, dtype)

    def by_matrix(q, k, v, a):
        return ((linear_matrix(q, k, a) @ v.transpose(1, 2)).transpose(1, 2),)

    wanted = slopes(lambda *x: by_loops(*x)[:1], (q, k, v, a))
    same(slopes(by_matrix, (q, k, v, a)), wanted, **EXACT[dtype])
    same(slopes(lambda *x: linear_recurrence(*x, chunk=4)[:1], (q, k, v, a)), wanted, **EXACT[dtype])
    assert (linear_matrix(q, k, a).triu(1) == 0).all()


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("seed", range(5))
def test_two_parts_in_turn_say_what_the_whole_says(decay, seed):
    length = 19
    q, k, v, a, state = drawn(length, decay, seed=seed)
    cut = int(torch.randint(0, length + 1, (), generator=torch.Generator().manual_seed(seed)))

    def in_two(q, k, v, a, state):
        one, middle = linear_recurrence(*(None if x is None else x[:, :cut] for x in (q, k, v, a)), state, chunk=4)
        two, end = linear_recurrence(*(None if x is None else x[:, cut:] for x in (q, k, v, a)), middle, chunk=4)
        return torch.cat([one, two], 1), end

    same(slopes(in_two, (q, k, v, a, state)), slopes(by_loops, (q, k, v, a, state)), **EXACT[torch.float64])


def test_two_tokens_by_hand():
    # one head, two channels of keys, one of values. First token: k = (1, 2), v = 3, so S = (3, 6) and o = q.S = (1, 1).(3, 6) = 9.
    # The second keeps a half of channel 0 and a quarter of channel 1: S = (1.5, 1.5) + (2, -1) * 5 = (11.5, -3.5); q = (2, 4): o = 23 - 14 = 9.
    q = torch.tensor([[1.0, 1.0], [2.0, 4.0]]).view(1, 2, 1, 2)
    k = torch.tensor([[1.0, 2.0], [2.0, -1.0]]).view(1, 2, 1, 2)
    v = torch.tensor([3.0, 5.0]).view(1, 2, 1, 1)
    a = torch.tensor([[0.5, 0.5], [0.5, 0.25]]).log().view(1, 2, 1, 2)
    for form in (linear_recurrence, linear_recurrence_steps):
        o, state = form(q, k, v, a)
        assert o.flatten().tolist() == pytest.approx([9.0, 9.0], rel=1e-6)
        assert state.flatten().tolist() == pytest.approx([11.5, -3.5], rel=1e-6)
    # M[1, 0] = 2 * 1 / 2 + 4 * 2 / 4 = 3 and M[1, 1] = 2 * 2 - 4 = 0: o = 3 * 3 + 0 * 5
    assert linear_matrix(q, k, a).flatten().tolist() == pytest.approx([3.0, 0.0, 3.0, 0.0], rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("decay", DECAYS)
def test_a_token_changes_nothing_before_it(decay):
    values = drawn(21, decay)
    others = drawn(21, decay, seed=1)
    before = linear_recurrence(*values, chunk=8)[0]
    for t in (0, 3, 7, 8, 15, 20):
        changed = [None if x is None else torch.cat([x[:, :t], y[:, t:]], 1) for x, y in zip(values[:4], others[:4], strict=True)]
        after = linear_recurrence(*changed, values[4], chunk=8)[0]
        assert torch.equal(after[:, :t], before[:, :t]) and not torch.isclose(after[:, t], before[:, t]).any()


@pytest.mark.parametrize("decay", ["head", "channel"])
def test_no_decay_is_a_decay_of_zero(decay):
    q, k, v, a, state = drawn(13, decay)
    same(linear_recurrence(q, k, v, None, state, chunk=4), linear_recurrence(q, k, v, torch.zeros_like(a), state, chunk=4), rtol=1e-13, atol=1e-13)
    same(linear_matrix(q, k, None), linear_matrix(q, k, torch.zeros_like(a)), rtol=1e-13, atol=1e-13)


def test_one_decay_for_all_channels_is_one_for_the_head():
    q, k, v, a, state = drawn(21, "head")
    wide = a[..., None].expand(*a.shape, K)
    same(linear_recurrence(q, k, v, wide, state, chunk=8), linear_recurrence(q, k, v, a, state, chunk=8), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("decay", ["head", "channel"])
@pytest.mark.parametrize("log_decay", [-50.0, -1e4, -math.inf])
def test_where_nothing_is_left_each_token_reads_itself_and_no_gradient_is_lost(decay, log_decay):
    q, k, v, a, _ = drawn(150, decay, torch.float32)
    (o, state), gradients = slopes(lambda *x: linear_recurrence(*x), (q, k, v, torch.full_like(a, log_decay)))
    torch.testing.assert_close(o, (q * k).sum(-1, keepdim=True) * v, rtol=1e-5, atol=1e-6)  # e^-50 is 2e-22
    torch.testing.assert_close(state, k[:, -1, :, :, None] * v[:, -1, :, None, :])
    assert all(x.isfinite().all() for x in gradients) and gradients[3].abs().max() < 1e-20


@pytest.mark.parametrize("decay", ["head", "channel"])
def test_a_mild_decay_after_strong_ones_keeps_its_digits(decay):
    # Sums of the whole chunk reach thousands, of which float32 has no digits for what is asked of the mild ones: 1e-5.
    values = drawn(96, decay, torch.float32, scale=0.02)
    strong = torch.rand(values[3].shape, generator=torch.Generator().manual_seed(5)) < 0.4
    values = (*values[:3], torch.where(strong, -200.0, values[3]), values[4])
    wanted = slopes(by_loops, values)
    same(slopes(linear_recurrence, values), wanted, **EXACT[torch.float32])
    same(linear_matrix(*values[:2], values[3]) @ values[2].transpose(1, 2), by_loops(*values[:4])[0].transpose(1, 2), **EXACT[torch.float32])


@pytest.mark.parametrize("decay", ["head", "channel"])
def test_a_mild_decay_over_8192_steps_is_a_geometric_series(decay):
    # k = v = q = 1: the state after t steps is (1 - r^t) / (1 - r).
    length, a = 8192, torch.tensor(-1e-3)
    ones = torch.ones(1, length, 1, 2)
    log_decay = a.expand(1, length, 1, *([2] if decay == "channel" else []))
    o, state = linear_recurrence(ones, ones, ones[..., :1], log_decay)
    steps = torch.arange(1, length + 1, dtype=torch.float64)
    series = torch.expm1(a.double() * steps) / torch.expm1(a.double())
    torch.testing.assert_close(o.flatten().double(), 2 * series, rtol=1e-5, atol=0)
    torch.testing.assert_close(state.flatten().double(), series[-1:].expand(2), rtol=1e-5, atol=0)


@pytest.mark.parametrize("decay", DECAYS)
def test_of_no_token_nothing_is_said_and_the_state_stays(decay):
    q, k, v, a, state = drawn(0, decay)
    o, after = linear_recurrence(q, k, v, a, state)
    assert o.shape == (B, 0, H, V) and torch.equal(after, state)
    assert torch.equal(linear_recurrence(q, k, v, a)[1], torch.zeros(B, H, K, V, dtype=torch.float64))
    assert linear_matrix(q, k, a).shape == (B, H, 0, 0)


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("form", [linear_recurrence, linear_recurrence_steps])
@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_comes_in_and_goes_out_and_between_is_float32(decay, form, autocast):
    q, k, v, a, state = drawn(40, decay, torch.bfloat16)
    wanted = by_loops(q, k, v, a, state)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        o, end = form(q, k, v, a, state)
        matrix = linear_matrix(q, k, a)
    assert (o.dtype, end.dtype, matrix.dtype) == (torch.bfloat16, torch.float32, torch.float32)
    same(end, wanted[1], **EXACT[torch.float32])
    torch.testing.assert_close(o.double(), wanted[0], rtol=2**-8, atol=1e-5)  # bfloat16 has 8 bits: rounding is at most 2**-9 of a number
    torch.testing.assert_close(matrix @ v.float().transpose(1, 2), by_loops(q, k, v, a)[0].transpose(1, 2).float(), **EXACT[torch.float32])


@pytest.mark.parametrize("decay", DECAYS)
def test_shapes_are_known_without_numbers(decay):
    values = [None if x is None else x.to("meta") for x in drawn(21, decay)]
    o, state = linear_recurrence(*values, chunk=8)
    assert o.shape == (B, 21, H, V) and state.shape == (B, H, K, V) and linear_matrix(*values[:2], values[3]).shape == (B, H, 21, 21)


@pytest.mark.parametrize("decay", DECAYS)
def test_twice_the_tokens_are_twice_the_work_forward_and_backward(decay):
    few, many = (work(lambda *x: linear_recurrence(*x, chunk=8), drawn(length, decay)) for length in (256, 512))
    assert many / few == pytest.approx(2, abs=0.05)
