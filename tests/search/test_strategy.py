"""Strategies: what they ask, what they find, and that a stop in between changes nothing."""

import itertools
import json
import math
import random

import pytest

from limbeck.errors import Refused
from limbeck.search.library import Library, Variant
from limbeck.search.strategy import Addition, Exhaustive, Random, ReplaceOne, search

SIZES = (3, 2, 4)


def drawn(sizes, seed=0):
    """A score for every choice, without any structure."""
    draw = random.Random(seed)
    return {choice: draw.random() for choice in itertools.product(*map(range, sizes))}


def additive(costs, layers=4, variants=3, seed=0):
    """A library of parameters, the whole model first, and scores that add up exactly: quarters of whole numbers."""
    draw = random.Random(seed)
    made = Library([[Variant(f"{i}.{j}", costs={"parameters": costs[j]}) for j in range(variants)] for i in range(layers)])
    each = [[0.0, *(draw.randint(1, 40) / 4 for _ in range(variants - 1))] for _ in range(layers)]
    return made, lambda choice: 0.5 + sum(row[j] for row, j in zip(each, choice, strict=True))


MADE = {
    "exhaustive": lambda: Exhaustive(SIZES),
    "random": lambda: Random(SIZES, num=12, seed=3),
    "addition": lambda: Addition(SIZES, (0, 0, 0), (2, 1, 3), num=2),
    "addition, rescored": lambda: Addition(SIZES, (0, 0, 0), (2, 1, 3), num=2, rescored=True),
    "replace one": lambda: ReplaceOne(additive((8, 4, 1), 3)[0], (0, 0, 0), {"parameters": 12}, num=3),
}


@pytest.fixture(params=MADE)
def make(request):
    return MADE[request.param]


def asked_by(strategy, score, at_once=1):
    seen = []
    search(strategy, lambda choice: (seen.append(choice), score(choice))[1], at_once)
    return seen


def score(choice):
    return math.sin(sum((i + 2) * 7**j for i, j in enumerate(choice)))


def test_no_strategy_asks_twice_and_all_end(make):
    seen = asked_by(make(), score)
    assert len(set(seen)) == len(seen) > 3
    strategy = make()
    assert search(strategy, score) in seen and strategy.ask(5) == []


@pytest.mark.parametrize("at_once", [2, 3, 100])
def test_how_many_are_asked_at_once_changes_nothing(make, at_once):
    one, many = make(), make()
    assert asked_by(one, score) == asked_by(many, score, at_once) and one.best == many.best
    assert one.state() == many.state()


@pytest.mark.parametrize("stop", [0, 1, 4, 7])
def test_a_search_that_was_stopped_goes_on_as_one_that_was_not(make, stop):
    whole = asked_by(make(), score)
    first, seen = make(), []
    for _ in range(stop):
        for choice in first.ask():
            seen.append(choice)
            first.tell(choice, score(choice))
    lost = first.ask(3)  # asked, and never measured
    second = make()
    second.load(json.loads(json.dumps(first.state(), allow_nan=False)))
    assert second.state() == first.state() and second.best == first.best
    rest = asked_by(second, score)
    assert rest[: len(lost)] == lost and seen + rest == whole
    end = make()
    assert search(end, score) == second.best and end.state() == second.state()


def test_one_that_measures_in_another_order_finds_the_same(make):
    a, b = make(), make()
    search(a, score, at_once=4)
    while choices := b.ask(4):
        for choice in reversed(choices):
            b.tell(choice, score(choice))
    assert a.best == b.best and list(a.asked) == list(b.asked)


def test_while_some_are_being_measured_a_strategy_that_needs_them_waits():
    strategy = Addition(SIZES, (0, 0, 0), (2, 1, 3), num=2)
    assert strategy.ask(9) == [(2, 0, 0), (0, 1, 0), (0, 0, 3)] and strategy.ask(9) == [] and strategy.best is None
    for choice, value in (((2, 0, 0), 1.0), ((0, 1, 0), 3.0)):
        strategy.tell(choice, value)
    assert strategy.ask(9) == []
    strategy.tell((0, 0, 3), 2.0)
    assert strategy.ask(9) == [(2, 0, 3)] and strategy.best is None
    strategy.tell((2, 0, 3), 9.0)
    assert strategy.best == (2, 0, 3) and strategy.ask(9) == []


def test_exhaustive_finds_the_least_of_all_and_asks_only_what_is_allowed():
    scores = drawn(SIZES)
    assert search(Exhaustive(SIZES), scores.__getitem__) == min(scores, key=scores.__getitem__)
    assert asked_by(Exhaustive(SIZES), scores.__getitem__) == list(scores)
    even = {choice: value for choice, value in scores.items() if sum(choice) % 2 == 0}
    assert asked_by(Exhaustive(SIZES, lambda choice: sum(choice) % 2 == 0), even.__getitem__) == list(even)


def test_random_choices_are_different_end_with_all_there_are_and_depend_on_the_seed():
    scores = drawn(SIZES)
    every = asked_by(Random(SIZES, num=100, seed=0), scores.__getitem__)
    assert sorted(every) == sorted(scores) and every != sorted(every)
    assert every[:6] == asked_by(Random(SIZES, num=6, seed=0), scores.__getitem__) != asked_by(Random(SIZES, num=6, seed=1), scores.__getitem__)
    allowed = asked_by(Random(SIZES, num=100, seed=0, allowed=lambda choice: choice[1] == 1), scores.__getitem__)
    assert sorted(allowed) == sorted(choice for choice in scores if choice[1] == 1)


def test_each_variant_is_drawn_as_often_as_any_other():
    # 200 seeds, 2 draws each of 3 variants: each 133 times, standard deviation sqrt(400 * 1/3 * 2/3) = 9.4; within four of them
    first = [choice[0] for seed in range(200) for choice in Random((3, 50), num=2, seed=seed).ask(2)]
    assert all(abs(first.count(j) - 400 / 3) < 38 for j in range(3))


def test_addition_takes_the_layers_that_help_most_alone_and_rescoring_looks_again():
    # layers 0 and 1 help alike, and either makes the other needless; 2 helps less, whatever else is there
    def doubled(choice):
        return 10 - 6 * max(choice[0], choice[1]) - 3 * choice[2] - choice[3]

    ends = ((0, 0, 0, 0), (1, 1, 1, 1))
    once, again = Addition((2,) * 4, *ends, num=2), Addition((2,) * 4, *ends, num=2, rescored=True)
    assert asked_by(once, doubled) == [(1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1), (1, 1, 0, 0)] and once.best == (1, 1, 0, 0)
    assert len(asked_by(again, doubled)) == 4 + 3 and again.best == (1, 0, 1, 0)


def test_addition_from_the_other_end_finds_what_can_be_given_up_and_layers_alike_at_both_ends_stay():
    strategy = Addition((2, 3, 2), start=(1, 2, 1), end=(0, 2, 0), num=1)
    assert search(strategy, lambda choice: 5.0 - 2 * choice[0] - choice[2]) == (1, 2, 0)


def test_a_score_that_is_not_a_number_is_the_worst():
    strategy = Addition((2, 2), (0, 0), (1, 1), num=1)
    assert search(strategy, lambda choice: math.nan if choice == (1, 0) else 1e30) == (0, 1)
    assert json.loads(json.dumps(strategy.state(), allow_nan=False))["told"] == [[[1, 0], None], [[0, 1], 1e30]]


@pytest.mark.parametrize("num", [0, 3])
def test_more_layers_than_differ_cannot_be_added(num):
    with pytest.raises(Refused, match="1 to 2, the layers in which start and end differ"):
        Addition((2, 2, 2), (0, 0, 1), (1, 1, 1), num=num)


@pytest.mark.parametrize("choice", [(0, 0), (0, 0, 4), (0, -1, 0), (0, 0, 0, 0)])
def test_a_choice_of_other_layers_is_refused(choice):
    with pytest.raises(Refused, match="a number for each of 3 layers"):
        Exhaustive(SIZES).tell(choice, 1.0)


def test_what_was_told_is_not_told_otherwise_and_not_asked():
    strategy = Exhaustive(SIZES)
    strategy.tell((0, 0, 1), 2.0)
    strategy.tell((0, 0, 1), 2.0)
    with pytest.raises(Refused, match="the score it was told before, 2"):
        strategy.tell((0, 0, 1), 2.5)
    assert strategy.ask(2) == [(0, 0, 0), (0, 0, 2)] and strategy.best == (0, 0, 1)


def test_a_choice_told_after_a_stop_is_not_asked_again():
    first, second = Exhaustive(SIZES), Exhaustive(SIZES)
    first.ask(2)
    second.load(first.state())
    second.tell((0, 0, 0), 1.0)
    assert second.ask(2) == [(0, 0, 1), (0, 0, 2)]


def test_replace_one_measures_every_variant_alone_and_then_what_it_selects():
    made, true = additive((8, 4, 1))
    strategy = ReplaceOne(made, (0,) * 4, {"parameters": 14})
    seen = asked_by(strategy, true)
    assert seen[0] == (0,) * 4 and sorted(seen[1:9]) == sorted({tuple(j if i == k else 0 for k in range(4)) for i in range(4) for j in (1, 2)})
    within = [c for c in itertools.product(range(3), repeat=4) if sum((8, 4, 1)[j] for j in c) <= 14]
    assert len(seen) == 10 and true(strategy.best) == min(map(true, within))
    assert strategy.foretold(strategy.best) == true(strategy.best)  # they add up, by construction


def test_where_scores_do_not_add_up_the_best_that_was_measured_is_found_and_not_the_best_foretold():
    made, true = additive((8, 4, 1))
    first = search(ReplaceOne(made, (0,) * 4, {"parameters": 14}), true)

    def spoilt(choice):  # the choice that sums foretell is much worse than they say
        return 99.0 if choice == first else true(choice)

    strategy = ReplaceOne(made, (0,) * 4, {"parameters": 14}, num=3, differ=2)
    found = search(strategy, spoilt)
    assert strategy.selected[0] == first != found and found in strategy.selected
    assert all(sum(a != b for a, b in zip(x, y, strict=True)) >= 2 for x, y in itertools.combinations(strategy.selected, 2))
    assert spoilt(found) == min(map(spoilt, strategy.selected))


def test_scores_are_counted_from_that_of_the_whole_model():
    made, true = additive((8, 4, 1))
    strategy = ReplaceOne(made, (0,) * 4, {"parameters": 14})
    search(strategy, true)
    assert strategy.told[strategy.whole] == 0.5 and all(row[0].score == 0 for row in strategy.scored().layers)


def test_limits_that_cannot_be_met_are_refused_and_too_few_further_choices_end_the_search():
    made, true = additive((8, 4, 1), layers=2)
    with pytest.raises(Refused, match="parameters at least 2"):
        search(ReplaceOne(made, (0, 0), {"parameters": 1}), true)
    strategy = ReplaceOne(made, (0, 0), {"parameters": 5}, num=9)
    search(strategy, true)
    assert sorted(strategy.selected) == [(1, 2), (2, 1), (2, 2)]  # 4 + 1, 1 + 4, 1 + 1


def test_a_selection_that_was_measured_alone_already_is_not_measured_twice():
    made, true = additive((8, 4, 1))
    strategy = ReplaceOne(made, (0,) * 4, {"parameters": 28})  # one layer at 4: four such choices, measured alone
    seen = asked_by(strategy, true)
    assert len(seen) == 9 and strategy.best in seen and sorted(strategy.best) == [0, 0, 0, 1]
