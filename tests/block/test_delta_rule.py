"""The gated delta rule in three forms, against a loop over numbers in float64, closed forms and a case by hand."""

import math

import pytest
import torch
from transformers.models.qwen3_next.modeling_qwen3_next import torch_recurrent_gated_delta_rule

from limbeck.block._delta_rule import delta_matrix, gated_delta_rule, gated_delta_rule_steps
from limbeck.block._linear_recurrence import linear_recurrence
from recurrence import EXACT, same, slopes, work

B, H, K, V = 2, 2, 3, 4


def drawn(length, dtype=torch.float64, seed=0, scale=1.0, keys=K):
    """q, k of length 1, v, beta within [0, 1], the log of the decay and a state, of numbers that float32 holds exactly."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    q, k = (torch.nn.functional.normalize(draw(B, length, H, keys), dim=-1) for _ in range(2))
    values = q, k, draw(B, length, H, V), draw(B, length, H).sigmoid(), -scale * draw(B, length, H).abs(), draw(B, H, keys, V)
    return tuple(x.to(dtype) for x in values)


def by_loops(q, k, v, beta, a, state=None):
    """S_t = alpha_t S_{t-1} (I - beta_t k_t k_t') + beta_t v_t k_t' with the value's index in rows, head by head, in float64."""
    q, k, v, beta = q.double(), k.double(), v.double(), beta.double()
    decay = torch.ones_like(beta) if a is None else a.double().exp()
    outs, ends, size = [], [], k.shape[-1]
    for b in range(q.shape[0]):
        for h in range(q.shape[2]):
            s = torch.zeros(v.shape[-1], size, dtype=torch.float64) if state is None else state[b, h].double().T
            said = []
            for t in range(q.shape[1]):
                forget = torch.eye(size, dtype=torch.float64) - beta[b, t, h] * torch.outer(k[b, t, h], k[b, t, h])
                s = decay[b, t, h] * s @ forget + beta[b, t, h] * torch.outer(v[b, t, h], k[b, t, h])
                said.append(s @ q[b, t, h])
            outs.append(torch.stack(said))
            ends.append(s.T)
    o = torch.stack(outs).unflatten(0, (q.shape[0], q.shape[2])).transpose(1, 2)
    return o, torch.stack(ends).unflatten(0, (q.shape[0], q.shape[2]))


@pytest.mark.parametrize("dtype", EXACT, ids=str)
@pytest.mark.parametrize("length, chunk", [(1, 64), (2, 64), (7, 4), (16, 4), (21, 5), (21, 64)])
def test_chunks_and_steps_say_what_the_loop_says_from_any_state_with_all_gradients(dtype, length, chunk):
    values = drawn(length, dtype)
    wanted = slopes(by_loops, values)
    same(slopes(lambda *x: gated_delta_rule(*x, chunk=chunk), values), wanted, **EXACT[dtype])
    same(slopes(gated_delta_rule_steps, values), wanted, **EXACT[dtype])


@pytest.mark.parametrize("dtype", EXACT, ids=str)
@pytest.mark.parametrize("length", [1, 2, 13])
def test_the_matrix_times_the_values_is_what_the_loop_says_with_all_gradients(dtype, length):
    values = drawn(length, dtype)[:5]

    def by_matrix(q, k, v, beta, a):
        return ((delta_matrix(q, k, beta, a) @ v.transpose(1, 2)).transpose(1, 2),)

    wanted = slopes(lambda *x: by_loops(*x)[:1], values)
    same(slopes(by_matrix, values), wanted, **EXACT[dtype])
    same(slopes(lambda *x: gated_delta_rule(*x, chunk=4)[:1], values), wanted, **EXACT[dtype])
    assert (delta_matrix(*values[:2], *values[3:]).triu(1) == 0).all()


@pytest.mark.parametrize("seed", range(5))
def test_two_parts_in_turn_say_what_the_whole_says(seed):
    length = 19
    *values, state = drawn(length, seed=seed)
    cut = int(torch.randint(0, length + 1, (), generator=torch.Generator().manual_seed(seed)))

    def in_two(*values):
        one, middle = gated_delta_rule(*(x[:, :cut] for x in values[:5]), values[5], chunk=4)
        two, end = gated_delta_rule(*(x[:, cut:] for x in values[:5]), middle, chunk=4)
        return torch.cat([one, two], 1), end

    same(slopes(in_two, (*values, state)), slopes(by_loops, (*values, state)), **EXACT[torch.float64])


def test_two_tokens_by_hand():
    # one head, two channels of keys, one of values; S has one row. First token: k = (1, 0), v = 4, beta = 1: S = (4, 0), read by (1, 1): 4.
    # The second keeps a half and rewrites half of what k = (0.6, 0.8) reads: 0.5 (4, 0) = (2, 0); (2, 0).k = 1.2; v = 3.2, beta = 0.5:
    # S = (2, 0) + 0.5 (3.2 - 1.2) (0.6, 0.8) = (2.6, 0.8), read by (1, 2): 4.2.
    q = torch.tensor([[1.0, 1.0], [1.0, 2.0]]).view(1, 2, 1, 2)
    k = torch.tensor([[1.0, 0.0], [0.6, 0.8]]).view(1, 2, 1, 2)
    v = torch.tensor([4.0, 3.2]).view(1, 2, 1, 1)
    beta, a = (torch.tensor(x).view(1, 2, 1) for x in ([1.0, 0.5], [0.0, math.log(0.5)]))
    for form in (gated_delta_rule, gated_delta_rule_steps):
        o, state = form(q, k, v, beta, a)
        assert o.flatten().tolist() == pytest.approx([4.0, 4.2], rel=1e-6)
        assert state.flatten().tolist() == pytest.approx([2.6, 0.8], rel=1e-6)
    # Of the first value the second reads (1, 2).0.5 ((1, 0) - 0.5 * 0.6 (0.6, 0.8)) = (1, 2).(0.41, -0.12) = 0.17, of the second 0.5 (0.6 + 1.6).
    assert delta_matrix(q, k, beta, a).flatten().tolist() == pytest.approx([1.0, 0.0, 0.17, 1.1], rel=1e-5)


def test_a_token_changes_nothing_before_it():
    values, others = drawn(21), drawn(21, seed=1)
    before = gated_delta_rule(*values, chunk=8)[0]
    for t in (0, 3, 7, 8, 15, 20):
        changed = [torch.cat([x[:, :t], y[:, t:]], 1) for x, y in zip(values[:5], others[:5], strict=True)]
        after = gated_delta_rule(*changed, values[5], chunk=8)[0]
        assert torch.equal(after[:, :t], before[:, :t]) and not torch.isclose(after[:, t], before[:, t]).any()


def test_no_decay_is_a_decay_of_zero():
    q, k, v, beta, a, state = drawn(13)
    wanted = by_loops(q, k, v, beta, torch.zeros_like(a), state)
    for form in (gated_delta_rule, gated_delta_rule_steps):
        same(form(q, k, v, beta, None, state), wanted, **EXACT[torch.float64])
    assert torch.equal(delta_matrix(q, k, beta, None), delta_matrix(q, k, beta, torch.zeros_like(a)))


def test_with_beta_one_what_is_read_under_a_key_is_what_was_last_written_under_it():
    # keys of an orthonormal basis, in any order, no decay: a table of as many rows, of which each write replaces one
    _, _, v, beta, _, _ = drawn(40, keys=4)
    basis = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3)))[0]
    which, asked = torch.randint(4, (2, 40), generator=torch.Generator().manual_seed(4))
    k, q = (basis[index].view(1, 40, 1, 4).expand(B, 40, H, 4) for index in (which, asked))
    o, state = gated_delta_rule(q, k, v, torch.ones_like(beta), None, chunk=8)
    table = torch.zeros(4, B, H, V, dtype=torch.float64)
    for t in range(40):
        table[which[t]] = v[:, t]
        torch.testing.assert_close(o[:, t], table[asked[t]], rtol=0, atol=1e-12)
    torch.testing.assert_close(torch.einsum("ik,bhkv->ibhv", basis, state), table, rtol=0, atol=1e-12)


def test_with_beta_one_a_token_reads_its_own_value_under_its_key_whatever_was_there():
    _, k, v, beta, a, state = drawn(40)
    k = torch.nn.functional.normalize(k, dim=-1)  # to the last digit of float64
    o, _ = gated_delta_rule(k, k, v, torch.ones_like(beta), a, state, chunk=8)
    torch.testing.assert_close(o, v, rtol=0, atol=1e-12)


def test_with_beta_zero_nothing_is_written_and_the_state_fades():
    q, k, v, beta, a, state = drawn(21)
    o, end = gated_delta_rule(q, k, v, torch.zeros_like(beta), a, state, chunk=8)
    kept = a.cumsum(1).exp()
    torch.testing.assert_close(o, torch.einsum("bthk,bhkv->bthv", q, state) * kept[..., None], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(end, state * kept[:, -1, :, None, None], rtol=1e-12, atol=1e-12)


def test_keys_that_do_not_meet_are_linear_attention():
    # orthogonal keys, each used once, with no state before: nothing is replaced
    _, _, v, beta, a, _ = drawn(8, keys=8)
    q = torch.randn(B, 8, H, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    k = torch.eye(8, dtype=torch.float64).view(1, 8, 1, 8).expand(B, 8, H, 8)
    same(gated_delta_rule(q, k, v, beta, a, chunk=4), linear_recurrence(q, k, beta[..., None] * v, a, chunk=4), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("log_decay", [-50.0, -1e4, -math.inf])
def test_where_nothing_is_left_each_token_reads_itself_and_no_gradient_is_lost(log_decay):
    q, k, v, beta, a, _ = drawn(150, torch.float32)
    (o, state), gradients = slopes(lambda *x: gated_delta_rule(*x), (q, k, v, beta, torch.full_like(a, log_decay)))
    torch.testing.assert_close(o, (q * k).sum(-1, keepdim=True) * beta[..., None] * v, rtol=1e-5, atol=1e-6)  # e^-50 is 2e-22
    torch.testing.assert_close(state, k[:, -1, :, :, None] * (beta[..., None] * v)[:, -1, :, None, :])
    assert all(x.isfinite().all() for x in gradients) and gradients[4].abs().max() < 1e-20


def test_a_mild_decay_after_strong_ones_keeps_its_digits():
    # Sums of the whole chunk reach thousands, of which float32 has no digits for what is asked of the mild ones: 1e-5.
    q, k, v, beta, a, state = drawn(96, torch.float32, scale=0.02)
    strong = torch.rand(a.shape, generator=torch.Generator().manual_seed(5)) < 0.4
    values = q, k, v, beta, torch.where(strong, -200.0, a), state
    same(slopes(gated_delta_rule, values), slopes(by_loops, values), **EXACT[torch.float32])


def test_the_same_key_8192_times_over_is_a_geometric_series():
    # n = |k|^2, as float32 has it: what is read under k is o_t = f o_{t-1} + beta n with f = alpha (1 - beta n), so beta n (1 - f^t) / (1 - f).
    length, a = 8192, torch.tensor(-1e-3)
    k = torch.tensor([0.6, 0.8]).expand(1, length, 1, 2)
    steps = torch.arange(1, length + 1, dtype=torch.float64)
    for beta in (0.01, 0.5, 1.0, 1.9):
        o, _ = gated_delta_rule(k, k, torch.ones(1, length, 1, 1), torch.full((1, length, 1), beta), a.expand(1, length, 1))
        n, beta = k[0, 0, 0].double().square().sum(), torch.tensor(beta).double()
        factor = a.double().exp() * (1 - beta * n)
        torch.testing.assert_close(o.flatten().double(), beta * n * (1 - factor**steps) / (1 - factor), rtol=1e-5, atol=1e-5)


def test_of_no_token_nothing_is_said_and_the_state_stays():
    q, k, v, beta, a, state = drawn(0)
    o, after = gated_delta_rule(q, k, v, beta, a, state)
    assert o.shape == (B, 0, H, V) and torch.equal(after, state)
    assert torch.equal(gated_delta_rule(q, k, v, beta, a)[1], torch.zeros(B, H, K, V, dtype=torch.float64))
    assert delta_matrix(q, k, beta, a).shape == (B, H, 0, 0)


@pytest.mark.parametrize("form", [gated_delta_rule, gated_delta_rule_steps])
@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_comes_in_and_goes_out_and_between_is_float32(form, autocast):
    q, k, v, beta, a, state = drawn(40, torch.bfloat16)
    wanted = by_loops(q, k, v, beta, a, state)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        o, end = form(q, k, v, beta, a, state)
        matrix = delta_matrix(q, k, beta, a)
    assert (o.dtype, end.dtype, matrix.dtype) == (torch.bfloat16, torch.float32, torch.float32)
    same(end, wanted[1], **EXACT[torch.float32])
    torch.testing.assert_close(o.double(), wanted[0], rtol=2**-8, atol=1e-5)  # bfloat16 has 8 bits: rounding is at most 2**-9 of a number
    torch.testing.assert_close(matrix @ v.float().transpose(1, 2), by_loops(q, k, v, beta, a)[0].transpose(1, 2).float(), **EXACT[torch.float32])


def test_shapes_are_known_without_numbers():
    values = [x.to("meta") for x in drawn(21)]
    o, state = gated_delta_rule(*values, chunk=8)
    assert o.shape == (B, 21, H, V) and state.shape == (B, H, K, V)
    assert delta_matrix(*values[:2], *values[3:5]).shape == (B, H, 21, 21)


def test_twice_the_tokens_are_twice_the_work_forward_and_backward():
    few, many = (work(lambda *x: gated_delta_rule(*x, chunk=8), drawn(length)) for length in (256, 512))
    assert many / few == pytest.approx(2, abs=0.05)


def test_it_is_the_rule_of_transformers():
    # its queries are divided by the root of their channels, and it computes in float32
    q, k, v, beta, a, state = drawn(21, torch.float32)
    o, end = torch_recurrent_gated_delta_rule(q * K**0.5, k, v, a, beta, initial_state=state, output_final_state=True)
    same(gated_delta_rule(q, k, v, beta, a, state, chunk=8), (o, end), **EXACT[torch.float32])
