"""Ranks of several ways: against scipy, the closed form, and numbers worked out by hand."""

import math
import random

import pytest

from limbeck.errors import Refused
from limbeck.significance import STUDENTIZED, compare


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("ties", [False, True])
def test_friedmans_test_is_that_of_scipy_with_and_without_ties(seed: int, ties: bool) -> None:
    from scipy.stats import friedmanchisquare, rankdata

    draw = random.Random(seed)
    values = {name: [draw.randint(0, 3) if ties else draw.random() for _ in range(9)] for name in "abcd"}
    found, theirs = compare(values), friedmanchisquare(*values.values())
    assert found.statistic == pytest.approx(theirs.statistic, rel=1e-9) and found.p_value == pytest.approx(theirs.pvalue, rel=1e-9)
    ranks = [rankdata([-each[i] for each in values.values()]) for i in range(9)]
    assert list(found.mean.values()) == pytest.approx([sum(r[j] for r in ranks) / 9 for j in range(4)])


def test_the_critical_difference_is_its_closed_form_with_the_quantiles_of_scipy() -> None:
    from scipy.stats import studentized_range

    for level, table in STUDENTIZED.items():
        for k in (2, 6, 10):
            assert table[k - 2] == pytest.approx(studentized_range.ppf(1 - level, k, math.inf) / math.sqrt(2), abs=2e-6)
    values = {name: [float(ord(name) + i) for i in range(14)] for name in "abcd"}
    assert compare(values).critical_difference == pytest.approx(2.569 * math.sqrt(4 * 5 / (6 * 14)), abs=1e-3)  # Demšar 2006, section 3.2.2: 1.25


def test_ways_in_one_order_on_every_block_lie_apart_and_shuffled_labels_do_not() -> None:
    steady = {name: [float(i)] * 8 for i, name in enumerate("abcd")}
    found = compare(steady)
    assert found.mean == {"a": 4.0, "b": 3.0, "c": 2.0, "d": 1.0} and found.p_value < 1e-4
    assert found.apart() == [("d", "b"), ("d", "a"), ("c", "a")]  # two ranks apart exceed 1.66, one does not
    draw, pairs = random.Random(0), []
    for _ in range(20):
        blocks = [draw.sample(range(4), 4) for _ in range(8)]
        pairs += compare({name: [block[j] for block in blocks] for j, name in enumerate("abcd")}).apart()
    assert len(pairs) <= 3, "at a level of 5 %, about one of twenty comparisons finds something"


def test_less_is_better_turns_the_ranks_round_and_equal_figures_differ_in_nothing() -> None:
    values = {"a": [1.0, 2.0], "b": [3.0, 4.0]}
    assert compare(values, greater=False).mean == {"a": 1.0, "b": 2.0} and compare(values).mean == {"a": 2.0, "b": 1.0}
    same = compare({"a": [1.0, 1.0], "b": [1.0, 1.0]})
    assert (same.statistic, same.p_value, same.mean) == (0.0, 1.0, {"a": 1.5, "b": 1.5}) and same.apart() == []


@pytest.mark.parametrize("values", [{}, {"a": [1.0]}, {"a": [1.0], "b": []}, {"a": [], "b": []}, {"a": [math.nan], "b": [1.0]}])
def test_what_cannot_be_compared_is_refused(values: dict[str, list[float]]) -> None:
    with pytest.raises(Refused, match="2 to 10 ways"):
        compare(values)
