"""The numeric rules, against plain Python numbers and brute force in double precision."""

import math
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.numerics import (
    RULED_OUT,
    Streams,
    coarsen,
    kl,
    log1mexp,
    log_probs,
    masked_log_softmax,
    mix,
    segment_mean,
    segment_sum,
    top_k,
    upcast,
)

P, Q = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), torch.tensor([0.1, 0.6, 0.3], dtype=torch.float64)


def close(a: torch.Tensor, b: object, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(a, torch.as_tensor(b, dtype=a.dtype), rtol=tolerance, atol=tolerance)


def random_logits(*shape: int, scale: float = 3.0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


def test_low_precision_is_raised_and_high_precision_stays() -> None:
    assert [upcast(torch.zeros(1, dtype=d)).dtype for d in (torch.bfloat16, torch.float16, torch.float32, torch.float64)] == [torch.float32] * 3 + [
        torch.float64
    ]


def test_log_probabilities_divide_by_the_temperature_before_the_softmax() -> None:
    x = [1.0, 2.0, 4.0]
    by_hand = [v / 2 - math.log(sum(math.exp(w / 2) for w in x)) for v in x]
    close(log_probs(torch.tensor(x, dtype=torch.float64), 2.0), by_hand)


def test_ruled_out_entries_have_no_mass_a_finite_value_and_no_gradient() -> None:
    x = torch.tensor([0.0, -math.inf, 1.0], requires_grad=True)
    found = log_probs(x)
    assert found[1] == RULED_OUT and found.exp()[1] == 0 and found.isfinite().all()
    (found.exp() * found).sum().backward()
    assert x.grad is not None and x.grad.isfinite().all() and x.grad[1] == 0
    close(found[[0, 2]].detach().double(), [-math.log(1 + math.e), 1 - math.log(1 + math.e)], 1e-6)


def test_logits_of_ten_thousand_do_not_overflow() -> None:
    close(log_probs(torch.tensor([1e4, 0.0, -1e4])), [0.0, -1e4, -2e4])
    close(log_probs(torch.tensor([1e4, 1e4], dtype=torch.bfloat16)), [-math.log(2)] * 2, 1e-6)


def test_bfloat16_logits_give_the_log_softmax_of_what_they_hold_not_a_rounded_one() -> None:
    x = random_logits(5, 40, dtype=torch.float32).bfloat16()
    close(log_probs(x), torch.log_softmax(x.double(), -1).float(), 1e-6)


@pytest.mark.parametrize("share", [0.0, 1e-6, 0.1, 0.5, 0.999, 1.0])
def test_a_mixture_is_the_log_of_the_mixed_probabilities(share: float) -> None:
    a, b = log_probs(random_logits(7, 11)), log_probs(random_logits(7, 11).flip(0))
    close(mix(a, b, share), (share * a.exp() + (1 - share) * b.exp()).log(), 1e-11)


def test_a_mixture_keeps_a_half_that_the_other_rules_out_with_finite_gradients() -> None:
    a = torch.tensor([-math.inf, 0.0, 0.0], dtype=torch.float64, requires_grad=True)
    b = torch.tensor([0.0, 0.0, -math.inf], dtype=torch.float64, requires_grad=True)
    found = mix(log_probs(a), log_probs(b), 0.25)
    close(found.exp(), [0.75 * 0.5, 0.25 * 0.5 + 0.75 * 0.5, 0.25 * 0.5])
    found.sum().backward()
    assert a.grad is not None and b.grad is not None and a.grad.isfinite().all() and b.grad.isfinite().all()


def test_kl_by_hand() -> None:
    close(kl(P.log(), Q.log()), 0.5 * math.log(5) + 0.3 * math.log(0.5) + 0.2 * math.log(2 / 3))
    close(kl(Q.log(), P.log()), 0.1 * math.log(0.2) + 0.6 * math.log(2) + 0.3 * math.log(1.5))


def test_kl_of_what_neither_says_is_zero_and_of_what_only_p_says_is_large_but_finite() -> None:
    none, both = log_probs(torch.tensor([0.0, -math.inf])), log_probs(torch.tensor([0.0, 0.0]))
    assert kl(none, none) == 0 and kl(none, both) == pytest.approx(math.log(2))
    assert kl(both, none).isfinite() and kl(both, none) > 1e29


def test_kl_leads_uphill_from_q_towards_p() -> None:
    logits = Q.log().requires_grad_()
    kl(P.log(), log_probs(logits)).backward()
    assert logits.grad is not None
    close(logits.grad, Q - P)  # the gradient of cross-entropy with soft labels


@pytest.mark.parametrize("x", [-1e-3, -0.1, -math.log(2), -1.0, -20.0, -700.0, -1e30])
def test_log_of_one_minus_exp_equals_pythons_in_value_and_gradient(x: float) -> None:
    t = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    found = log1mexp(t)
    found.backward()
    close(found.detach(), math.log(-math.expm1(x)) if x > -1 else math.log1p(-math.exp(x)))
    assert t.grad is not None
    close(t.grad, -math.exp(x) / -math.expm1(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("x", [0.0, -0.0, 1e-6, -1e-30, -math.inf, RULED_OUT])
def test_log_of_one_minus_exp_is_finite_at_its_ends(x: float, dtype: torch.dtype) -> None:
    t = torch.tensor(x, dtype=dtype, requires_grad=True)
    found = log1mexp(t)
    found.backward()
    assert t.grad is not None and found.isfinite() and t.grad.isfinite()
    assert found == 0 if x < -1 else found.item() == pytest.approx(math.log(1e-7), rel=1e-3)


@pytest.mark.parametrize("k", [1, 3, 10])
def test_the_tail_of_the_best_entries_is_the_mass_of_all_others(k: int) -> None:
    log_p = log_probs(random_logits(6, 50, scale=8.0))
    ids, best, tail = top_k(log_p, k)
    order = log_p.sort(-1, descending=True)
    close(best, order.values[:, :k])
    assert torch.equal(ids, order.indices[:, :k])
    close(tail, [math.log(math.fsum(row[k:].exp().tolist())) for row in order.values], 1e-12)


def test_the_tail_is_exact_where_one_minus_the_rest_would_be_nothing() -> None:
    log_p = log_probs(torch.tensor([[0.0, -40.0, -41.0]]))  # float32: 1 - exp(log_p[0]) is 0
    close(top_k(log_p, 1)[2].double(), [-40 + math.log1p(math.exp(-1))], 1e-6)


def test_the_tail_of_all_entries_is_nothing_and_finite() -> None:
    assert (top_k(log_probs(random_logits(2, 4)), 4)[2] == RULED_OUT).all()


def test_a_distribution_seen_through_some_entries_adds_up_to_one() -> None:
    log_q, ids = log_probs(random_logits(6, 50)), torch.tensor([[3, 9, 4]]).expand(6, 3)
    found = coarsen(log_q, ids)
    others = [math.log(math.fsum(x for i, x in enumerate(row) if i not in (3, 9, 4))) for row in log_q.exp().tolist()]
    close(found, torch.cat([log_q[:, [3, 9, 4]], torch.tensor(others, dtype=torch.float64)[:, None]], -1), 1e-10)
    close(found.exp().sum(-1), [1.0] * 6)


def test_segments_are_summed_in_order_and_minus_one_is_left_out() -> None:
    x, segment = torch.tensor([1.0, 2.0, 4.0, 8.0]), torch.tensor([2, 0, -1, 2])
    assert segment_sum(x, segment, 4).tolist() == [2, 0, 9, 0] and segment_mean(x, segment, 4).tolist() == [2, 0, 4.5, 0]


def test_segments_of_low_precision_are_summed_in_float32() -> None:
    ones = torch.ones(1000, dtype=torch.bfloat16)  # in bfloat16 the sum stays at 256
    assert segment_sum(ones, torch.zeros(1000, dtype=torch.long), 1).item() == 1000


def test_an_empty_segment_has_a_mean_of_zero_that_lets_gradients_pass() -> None:
    x = torch.ones(2, requires_grad=True)
    segment_mean(x, torch.tensor([-1, -1]), 1).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [0, 0]
    assert segment_mean(x[:0], torch.zeros(0, dtype=torch.long), 2).requires_grad


def test_what_is_not_allowed_has_no_mass_and_no_gradient() -> None:
    scores = torch.tensor([1.0, 5.0, 2.0], requires_grad=True)
    found = masked_log_softmax(scores, torch.tensor([True, False, True]))
    close(found.detach()[[0, 2]], [-math.log1p(math.e), 1 - math.log1p(math.e)], 1e-6)
    found[2].backward()
    assert found[1] == RULED_OUT and scores.grad is not None and scores.grad[1] == 0 and scores.grad.isfinite().all()


PLACES: list[tuple[object, ...]] = [("noise", 3), ("order", 0, "train.0"), ("x", True, None, 1.5, ("nested", 2))]


def test_a_stream_is_a_function_of_its_place_in_every_process() -> None:
    code = (
        f"from limbeck.numerics import Streams; import torch; s = Streams(7); "
        f"print([(s.number(*p), torch.rand(2, generator=s(*p)).tolist()) for p in {PLACES!r}])"
    )
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ | {"PYTHONHASHSEED": seed})
    here = Streams(7)
    assert done.stdout == f"{[(here.number(*p), torch.rand(2, generator=here(*p)).tolist()) for p in PLACES]}\n"


def test_a_stream_starts_anew_each_time_and_touches_no_global_state() -> None:
    before = torch.random.get_rng_state()
    streams = Streams(1)
    assert torch.equal(torch.rand(3, generator=streams("a")), torch.rand(3, generator=streams("a")))
    assert torch.equal(torch.random.get_rng_state(), before)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 3), st.text(max_size=3), st.integers(0, 5)), unique=True, min_size=2, max_size=30))
def test_different_places_have_different_numbers_below_two_to_the_56(places: list[tuple[int, str, int]]) -> None:
    numbers = [Streams(seed).number(*place) for seed, *place in places]
    assert len(set(numbers)) == len(numbers) and all(0 <= n < 2**56 for n in numbers)
