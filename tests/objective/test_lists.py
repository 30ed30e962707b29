"""Pairs, ranks and smooth ranks within ragged lists, and what each objective over lists computes."""

import math

import pytest
import torch
from torch import Tensor

from limbeck.objective._lists import Lists
from limbeck.objective.adr_mse import AdrMSE
from limbeck.objective.approx_mrr import ApproxMRR
from limbeck.objective.approx_ndcg import ApproxNDCG
from limbeck.objective.info_nce import InfoNCE
from limbeck.objective.listwise_kl import ListwiseKL
from limbeck.objective.margin_mse import MarginMSE
from limbeck.objective.pearson import Pearson
from limbeck.objective.pointwise_bce import PointwiseBCE
from limbeck.objective.pointwise_hinge import PointwiseHinge
from limbeck.objective.rank_net import RankNet
from ranked_lists import lists

GROUP = [0, 1, 0, 1, 1, 2, 0]
"""Two lists of three, not side by side, and a list of one."""
SCORES = [0.3, -1.2, 2.0, 0.7, 0.1, 5.0, -0.4]
TEACHER = [1.0, 2.0, -1.0, 0.5, 0.5, 3.0, 0.2]
RELEVANT = [1, 0, 0, 1, 0, 0, 0]


def members() -> list[list[int]]:
    """The rows of each list."""
    return [[i for i, g in enumerate(GROUP) if g == n] for n in range(3)]


def said(**more) -> dict:
    return {"student": lists(GROUP, score=SCORES, relevance=RELEVANT, **more), "teacher": lists(GROUP, score=TEACHER)}


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def close(found: Tensor, expected: list[float]) -> None:
    torch.testing.assert_close(found, torch.tensor(expected, dtype=found.dtype), rtol=1e-12, atol=1e-12)


def test_pairs_stay_within_their_list_and_are_complete():
    first, second = Lists(torch.tensor(GROUP)).pairs
    assert sorted(zip(first.tolist(), second.tolist(), strict=True)) == sorted((i, j) for rows in members() for i in rows for j in rows if i != j)


def test_smooth_ranks_are_ranks_for_a_narrow_step_and_all_alike_for_a_wide_one_and_always_add_up_to_the_same():
    of, scores = Lists(torch.tensor(GROUP)), torch.tensor(SCORES, dtype=torch.float64)
    by_hand = torch.zeros(len(GROUP), dtype=torch.float64)
    for rows in members():
        by_hand[rows] = 1.0 + (-scores[rows]).argsort().argsort().double()
    torch.testing.assert_close(of.soft_ranks(scores, 1e-4), by_hand)
    middle = torch.tensor([(len([g for g in GROUP if g == n]) + 1) / 2 for n in GROUP], dtype=torch.float64)
    torch.testing.assert_close(of.soft_ranks(scores, 1e6), middle, atol=1e-5, rtol=0)
    for width in (0.1, 1.0, 7.0):
        torch.testing.assert_close(of.sum(of.soft_ranks(scores, width)), torch.tensor([6.0, 6.0, 1.0], dtype=torch.float64))  # n (n + 1) / 2


def test_ties_share_the_mean_of_their_ranks_and_places_take_each_once():
    of, values = Lists(torch.zeros(4, dtype=torch.long)), torch.tensor([1.0, 3.0, 1.0, 0.0], dtype=torch.float64)
    assert of.ranks(values).tolist() == [2.5, 1.0, 2.5, 4.0] and of.places(values).tolist() == [2.0, 1.0, 3.0, 4.0]


def test_rank_net_is_the_mean_of_a_loop_over_pairs_and_a_list_without_one_gives_a_zero_that_is_connected():
    scores = torch.tensor(SCORES, dtype=torch.float64, requires_grad=True)
    found = RankNet().values(lists(GROUP, score=scores), lists(GROUP, score=TEACHER))
    expected = []
    for rows in members():
        pairs = [softplus(SCORES[j] - SCORES[i]) for i in rows for j in rows if TEACHER[i] > TEACHER[j]]
        expected.append(sum(pairs) / len(pairs) if pairs else 0.0)
    close(found, expected)
    found[2].backward()  # the list of one: no error, no gradient
    assert scores.grad is not None and not scores.grad.any()


@pytest.mark.parametrize("objective", [RankNet(against="rank"), AdrMSE(against="rank")])
def test_of_ranks_one_is_the_best(objective):
    scores = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    objective.values(lists([0, 0, 0], score=scores, rank=[2, 1, 3])).sum().backward()
    assert scores.grad is not None
    up = -scores.grad
    assert up[1] > up[0] > up[2], "a step against the gradient must lift what has rank 1, and lower what has rank 3"


def test_ranks_and_scores_of_one_order_give_the_same_loss():
    ranks = [1, 3, 2]
    by_rank = [o.values(lists([0] * 3, score=[0.2, 0.5, -1.0], rank=ranks)) for o in (RankNet(against="rank"), AdrMSE(against="rank"))]
    teacher = lists([0] * 3, score=[9.0, -2.0, 0.5])
    by_score = [o.values(lists([0] * 3, score=[0.2, 0.5, -1.0]), teacher) for o in (RankNet(), AdrMSE())]
    assert [x.item() for x in by_rank] == [x.item() for x in by_score]


@pytest.mark.parametrize("discount, weight", [("log2", lambda r: 1 / math.log2(r + 1)), ("reciprocal", lambda r: 1 / r), ("none", lambda r: 1.0)])
def test_adr_mse_is_the_mean_of_a_loop_over_a_list(discount, weight):
    found = AdrMSE(discount=discount, width=0.7).values(lists(GROUP, score=SCORES), lists(GROUP, score=TEACHER))
    expected = []
    for rows in members():
        total = 0.0
        for i in rows:
            rank = 1 + sum((TEACHER[j] > TEACHER[i]) + (TEACHER[j] == TEACHER[i]) / 2 for j in rows if j != i)
            soft = 1 + sum(sigmoid((SCORES[j] - SCORES[i]) / 0.7) for j in rows if j != i)
            total += weight(rank) * (rank - soft) ** 2
        expected.append(total / len(rows))
    close(found, expected)


def test_adr_mse_vanishes_for_scores_far_apart_in_the_teachers_order_and_the_order_of_rows_that_tie_does_not_matter():
    far = AdrMSE().values(lists([0] * 3, score=[100.0, 0.0, 50.0]), lists([0] * 3, score=[3.0, 1.0, 2.0]))
    assert far.item() < 1e-12
    one = AdrMSE().values(lists([0] * 3, score=[0.1, 0.9, 0.4]), lists([0] * 3, score=[1.0, 1.0, 0.0]))
    other = AdrMSE().values(lists([0] * 3, score=[0.9, 0.1, 0.4]), lists([0] * 3, score=[1.0, 1.0, 0.0]))
    assert one.item() == pytest.approx(other.item(), rel=1e-12)


@pytest.mark.parametrize("pairs", ["ordered", "labelled"])
def test_margin_mse_is_the_mean_of_a_loop_over_pairs(pairs):
    found = MarginMSE(pairs=pairs).values(**said())
    expected = []
    for rows in members():
        picked = [
            ((SCORES[i] - SCORES[j]) - (TEACHER[i] - TEACHER[j])) ** 2
            for i in rows
            for j in rows
            if (TEACHER[i] > TEACHER[j] if pairs == "ordered" else RELEVANT[i] > RELEVANT[j])
        ]
        expected.append(sum(picked) / len(picked) if picked else 0.0)
    close(found, expected)


def test_margin_mse_does_not_hear_a_constant_that_is_added_to_all_scores():
    moved = lists(GROUP, score=[x + 13.0 for x in TEACHER])
    torch.testing.assert_close(MarginMSE().values(lists(GROUP, score=TEACHER), moved), torch.zeros(3, dtype=torch.float64))


def test_info_nce_is_minus_the_log_share_of_the_relevant_one_and_lists_without_one_give_nothing():
    found = InfoNCE().values(said()["student"])
    expected = [0.0, 0.0, 0.0]
    for n, rows in enumerate(members()):
        good = [i for i in rows if RELEVANT[i]]
        if good:
            expected[n] = -math.log(math.exp(SCORES[good[0]]) / sum(math.exp(SCORES[i]) for i in rows))
    close(found, expected)


def test_several_relevant_candidates_do_not_push_each_other_down():
    scores = torch.tensor([1.0, 2.0, 0.0], dtype=torch.float64, requires_grad=True)
    found = InfoNCE().values(lists([0] * 3, score=scores, relevance=[1, 2, 0]))
    rest = math.exp(0.0)
    by_hand = [-math.log(math.exp(s) / (math.exp(s) + rest)) for s in (1.0, 2.0)]
    assert found.item() == pytest.approx(sum(by_hand) / 2, rel=1e-12)
    found.sum().backward()
    assert scores.grad is not None and (scores.grad[:2] < 0).all() and scores.grad[2] > 0


def test_scores_of_any_size_give_finite_values_and_gradients():
    for objective in (InfoNCE(), ListwiseKL(against="given_score"), RankNet(against="given_score"), PointwiseBCE()):
        scores = torch.tensor([3e4, -3e4, 0.0], requires_grad=True)
        found = objective.values(lists([0] * 3, score=scores, relevance=[0, 1, 0], given_score=torch.tensor([-2e4, 2e4, 0.0])))
        found.sum().backward()
        assert found.isfinite().all() and scores.grad is not None and scores.grad.isfinite().all(), objective.kind


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_listwise_kl_is_that_of_torch_list_by_list(temperature):
    found, expected = ListwiseKL(temperature=temperature).values(lists(GROUP, score=SCORES), lists(GROUP, score=TEACHER)), []
    for rows in members():
        q, p = (torch.log_softmax(torch.tensor(x, dtype=torch.float64)[rows] / temperature, -1) for x in (SCORES, TEACHER))
        expected.append(float(torch.nn.functional.kl_div(q, p, log_target=True, reduction="sum")) * temperature**2)
    close(found, expected)


def test_pointwise_losses_are_those_of_torch_list_by_list():
    bce, hinge = PointwiseBCE().values(said()["student"]), PointwiseHinge().values(said()["student"])
    for n, rows in enumerate(members()):
        x, y = torch.tensor(SCORES, dtype=torch.float64)[rows], torch.tensor(RELEVANT, dtype=torch.float64)[rows]
        torch.testing.assert_close(bce[n], torch.nn.functional.binary_cross_entropy_with_logits(x, y))
        torch.testing.assert_close(hinge[n], torch.clamp(1 - (2 * y - 1) * x, min=0).mean())


def test_pearson_is_one_minus_numpys_correlation_and_says_nothing_where_the_teacher_tells_none_apart():
    import numpy as np

    scores = torch.tensor(SCORES[:3] * 2, dtype=torch.float64, requires_grad=True)
    found = Pearson().values(lists([0, 0, 0, 1, 1, 1], score=scores), lists([0, 0, 0, 1, 1, 1], score=[3.0, -1.0, 0.5, 2.0, 2.0, 2.0]))
    assert found[0].item() == pytest.approx(1 - np.corrcoef(SCORES[:3], [3.0, -1.0, 0.5])[0, 1], rel=1e-9)
    assert found[1].item() == pytest.approx(1.0)
    found.sum().backward()
    assert scores.grad is not None and scores.grad.isfinite().all() and not scores.grad[3:].any()


def test_smooth_metrics_are_the_metrics_for_a_narrow_step():
    from sklearn.metrics import ndcg_score

    grades, scores = [2, 0, 1, 0], [0.1, 0.9, 0.5, -1.0]
    mine = lists([0] * 4, score=scores, relevance=grades)
    assert 1 - ApproxNDCG(width=1e-3).values(mine).item() == pytest.approx(ndcg_score([[2**g - 1 for g in grades]], [scores]), rel=1e-9)
    assert 1 - ApproxMRR(width=1e-3).values(mine).item() == pytest.approx(1 / 2)  # the second place holds the first relevant one
    nothing = lists([0] * 4, score=scores, relevance=[0] * 4)
    assert ApproxNDCG().values(nothing).item() == ApproxMRR().values(nothing).item() == 0.0


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_from_ranks_alone_rank_net_finds_the_hidden_scorer_and_regression_of_ranks_finds_it_less_well(seed):
    from scipy.stats import kendalltau

    stream = torch.Generator().manual_seed(seed)
    hidden, features = torch.randn(8, generator=stream), torch.randn(60, 8, 8, generator=stream)
    ranks = 1 + (-(features @ hidden)).argsort(-1).argsort(-1)
    group = torch.arange(40).repeat_interleave(8).tolist()

    def tau(loss) -> float:
        weight = torch.zeros(8, requires_grad=True)
        optimiser = torch.optim.Adam([weight], 0.05)
        for _ in range(200):
            optimiser.zero_grad()
            loss(features[:40] @ weight).backward()
            optimiser.step()
        scores = (features[40:] @ weight).detach()
        return sum(kendalltau(s, -r).statistic for s, r in zip(scores.tolist(), ranks[40:].tolist(), strict=False) for r in [torch.tensor(r)]) / 20

    ours = tau(lambda s: RankNet(against="rank").values(lists(group, score=s.flatten(), rank=ranks[:40].flatten())).mean())
    plain = tau(lambda s: (s - (1 - ranks[:40] / 8)).square().mean())
    assert ours > 0.9 and ours > plain
