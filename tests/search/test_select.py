"""The exact selection, against every choice tried out one by one."""

import itertools
import math
import random
import subprocess
import sys

import pytest
import scipy.optimize

from limbeck.errors import Failed, Refused
from limbeck.search.library import Library, Memory, Variant, Workload
from limbeck.search.select import fits, rounded, select

NAMES = ("parameters", "memory_bytes", "seconds")


def tables(layers: int, variants: int, seed: int, names=NAMES):
    """Scores and costs, drawn; the first variant is the best and dearest on average, as the whole model is."""
    draw = random.Random(seed)
    scores = [[j + draw.random() for j in range(variants)] for _ in range(layers)]
    costs = {name: [[(variants - j) * (0.2 + draw.random()) for j in range(variants)] for _ in range(layers)] for name in names}
    return scores, costs


def library(scores, costs, **more):
    named = [
        [Variant(f"{i}.{j}", score, {name: table[i][j] for name, table in costs.items()}) for j, score in enumerate(row)]
        for i, row in enumerate(scores)
    ]
    return Library(named, **more)


def summed(table, choice):
    return math.fsum(row[j] for row, j in zip(table, choice, strict=True))


def brute(scores, costs, limits, earlier=(), differ=1):
    """The least score of all choices within the limits; None where there is none."""
    every = itertools.product(*(range(len(row)) for row in scores))
    return min(
        (
            summed(scores, c)
            for c in every
            if all(summed(costs[name], c) <= most for name, most in limits.items())
            and all(sum(a != b for a, b in zip(c, other, strict=True)) >= differ for other in earlier)
        ),
        default=None,
    )


def between(costs, name, share):
    """A limit between what is least and what is most."""
    low, high = (sum(f(row) for row in costs[name]) for f in (min, max))
    return low + share * (high - low)


@pytest.mark.parametrize("seed", range(8))
def test_six_layers_of_four_variants_equal_brute_force(seed):
    scores, costs = tables(6, 4, seed)
    limits = {name: between(costs, name, 0.05 * seed) for name in NAMES}
    best = brute(scores, costs, limits)
    if best is None:
        with pytest.raises(Refused, match=r"error\[limit\]"):
            select(library(scores, costs), limits)
        return
    found = select(library(scores, costs), limits)
    assert found.score == pytest.approx(best, rel=1e-12) and found.optimal and found.bound == found.score
    assert found.names == tuple(f"{i}.{j}" for i, j in enumerate(found.choice))
    assert found.costs == {name: pytest.approx(summed(costs[name], found.choice), rel=1e-12) for name in NAMES}
    assert all(found.costs[name] <= limits[name] for name in NAMES)


def test_among_the_tables_some_can_be_met_and_some_cannot():
    met = [brute(*(t := tables(6, 4, seed)), {name: between(t[1], name, 0.05 * seed) for name in NAMES}) is not None for seed in range(8)]
    assert 0 < sum(met) < 8


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("share", [0.15, 0.3, 0.6])
def test_four_layers_under_memory_latency_throughput_and_parameters_equal_brute_force_over_all_batches(seed, share):
    scores, costs = tables(4, 4, seed, ("parameters", "weights", "position", "prefill", "decode"))
    prompt, answer, batches = 8, 4, (1, 4, 16)

    def variant(i, j):
        c = {name: table[i][j] for name, table in costs.items()}
        seconds = {  # reading is paid by the row; a step of writing costs the weights once, and a little for each row
            "prefill_seconds": lambda w: w.batch * w.prompt * c["prefill"],
            "decode_seconds": lambda w: w.answer * (c["decode"] + 0.1 * w.batch),
        }
        return Variant("", scores[i][j], {"parameters": c["parameters"], "memory_bytes": Memory(c["weights"], position=c["position"]), **seconds})

    rest = Variant("", costs={"parameters": 3.0, "memory_bytes": 2.0, "prefill_seconds": 1.0})
    made = Library([[variant(i, j) for j in range(4)] for i in range(4)], rest)

    def totals(choice, batch):  # by hand, without a line of the library
        add = {name: summed(table, choice) for name, table in costs.items()}
        seconds = 1.0 + batch * prompt * add["prefill"] + answer * (add["decode"] + 4 * 0.1 * batch)
        return {
            "parameters": 3.0 + add["parameters"],
            "memory_bytes": 2.0 + add["weights"] + batch * (prompt + answer) * add["position"],
            "seconds": seconds,
        }

    every = [(c, b, totals(c, b)) for c in itertools.product(range(4), repeat=4) for b in batches]
    ranked = {name: sorted(t[name] for _, _, t in every) for name in NAMES}
    limits = {name: ranked[name][int(share * len(every))] for name in NAMES}
    rates = sorted(b * (prompt + answer) / t["seconds"] for _, b, t in every)
    limits["throughput"] = rates[int((1 - share) * len(every))]
    within = [
        summed(scores, c)
        for c, b, t in every
        if t["parameters"] <= limits["parameters"]
        and t["memory_bytes"] <= limits["memory_bytes"]
        and t["seconds"] <= min(limits["seconds"], b * (prompt + answer) / limits["throughput"]) * (1 + 1e-12)
    ]
    workloads = [Workload(batch=b, prompt=prompt, answer=answer) for b in batches]
    slack = {**limits, **{name: limits[name] * (1 + 1e-9) for name in NAMES}, "throughput": limits["throughput"] * (1 - 1e-9)}
    if not within:
        with pytest.raises(Refused, match="with 16 at once: "):
            select(made, slack, workloads)
        return
    found = select(made, slack, workloads)
    assert found.score == pytest.approx(min(within), rel=1e-12)
    own = totals(found.choice, found.workload.batch)
    assert found.costs == {name: pytest.approx(own[name], rel=1e-12) for name in NAMES}
    assert fits(made, slack, found.choice, workloads) and not fits(made, {"parameters": own["parameters"] - 1}, found.choice)


@pytest.mark.parametrize("differ", [1, 2, 4])
def test_each_further_choice_is_the_best_of_those_that_differ_enough_from_all_before(differ):
    scores, costs = tables(4, 4, 1)
    limits, earlier = {"parameters": between(costs, "parameters", 0.5)}, []
    for _ in range(4):
        best = brute(scores, costs, limits, earlier, differ)
        if best is None:
            with pytest.raises(Refused, match=f"{differ} layers unlike each of {len(earlier)} earlier choices"):
                select(library(scores, costs), limits, earlier=earlier, differ=differ)
            return
        found = select(library(scores, costs), limits, earlier=earlier, differ=differ)
        assert found.score == pytest.approx(best, rel=1e-12)
        earlier.append(found.choice)
    assert differ == 1 or all(sum(x != y for x, y in zip(a, b, strict=True)) >= differ for a, b in itertools.combinations(earlier, 2))


def test_looser_limits_never_worsen_the_score():
    scores, costs = tables(6, 4, 3)
    others = {name: between(costs, name, 0.6) for name in NAMES[1:]}
    got = [select(library(scores, costs), {"parameters": between(costs, "parameters", x / 20), **others}).score for x in range(6, 21, 2)]
    assert got == sorted(got, reverse=True) and got[0] > got[-1] + 1


def two_layers(*costs):
    """Two layers of the same variants, each with its costs by name."""
    return Library([[Variant("", float(j), cost) for j, cost in enumerate(costs)]] * 2)


def test_a_limit_that_no_choice_meets_is_named_with_the_least_that_can_be_reached():
    made = two_layers({"parameters": 700, "seconds": 3.0}, {"parameters": 617, "seconds": 2.0})
    with pytest.raises(Refused) as error:
        select(made, {"parameters": 1233, "seconds": 5.0})
    assert (error.value.slug, error.value.expected, error.value.got) == (
        "limit",
        "a choice with parameters at most 1,233",
        "parameters at least 1,234",
    )
    assert select(made, {"parameters": 1234, "seconds": 5.0}).choice == (1, 1)
    with pytest.raises(Refused) as error:
        select(made, {"parameters": 0, "seconds": 3.5})
    assert error.value.expected == "a choice with parameters at most 0 and seconds at most 3.5"
    assert error.value.got == "parameters at least 1,234, seconds at least 4"


def test_two_limits_that_can_only_be_met_one_by_one_are_named_and_the_third_is_not():
    # small and slow, or large and fast: 2 and 20, 11 and 11 (one of each), 20 and 2
    made = two_layers({"parameters": 1, "seconds": 10, "memory_bytes": 5}, {"parameters": 10, "seconds": 1, "memory_bytes": 5})
    with pytest.raises(Refused) as error:
        select(made, {"memory_bytes": 10, "seconds": 10, "parameters": 12})
    assert error.value.expected == "a choice with seconds at most 10 and parameters at most 12"
    assert error.value.got == "seconds at least 11, the others met, parameters at least 20, the others met"
    assert select(made, {"memory_bytes": 10, "seconds": 11, "parameters": 12}).costs["parameters"] == 11
    assert select(made, {"memory_bytes": 10, "seconds": 10, "parameters": 20}).costs["parameters"] == 20


def test_three_limits_of_which_any_two_can_be_met_are_all_named():
    # two layers, three variants that each cost in two ways: whichever two are taken, some cost is 2
    made = two_layers({"a": 1, "b": 1, "c": 0}, {"a": 0, "b": 1, "c": 1}, {"a": 1, "b": 0, "c": 1})
    limits = {"c": 1, "a": 1, "b": 1}
    with pytest.raises(Refused) as error:
        select(made, limits)
    assert error.value.expected == "a choice with c at most 1 and a at most 1 and b at most 1"
    assert error.value.got == "c at least 2, the others met, a at least 2, the others met, b at least 2, the others met"
    for name in limits:
        select(made, {other: most for other, most in limits.items() if other != name})


@pytest.mark.parametrize("seed", range(4))
def test_what_is_said_to_be_reachable_is_what_brute_force_reaches(seed):
    scores, costs = tables(4, 4, seed)
    limits = {"parameters": between(costs, "parameters", 0.1), "seconds": between(costs, "seconds", 0.1)}
    costs["seconds"] = [row[::-1] for row in costs["seconds"]]  # what is small is slow
    assert brute(scores, costs, limits) is None
    with pytest.raises(Refused) as error:
        select(library(scores, costs), limits)
    for name, other in (("parameters", "seconds"), ("seconds", "parameters")):
        least = brute(costs[name], costs, {other: limits[other]})
        assert f"{name} at least {rounded(least)}, the others met" in error.value.got
        select(library(scores, costs), {**limits, name: float(rounded(least))})


def test_a_throughput_out_of_reach_is_told_in_tokens_a_second_at_each_batch():
    made = Library([[Variant("", 0.0, {"seconds": lambda w: 1.0 + w.batch / 10, "memory_bytes": Memory(0, position=10)})]])
    workloads = [Workload(batch=1, prompt=6, answer=4), Workload(batch=10, prompt=6, answer=4)]  # 10 tokens in 1.1 seconds; 100 in 2, in 1,000 bytes
    assert select(made, {"throughput": 50}, workloads).workload.batch == 10
    with pytest.raises(Refused) as error:
        select(made, {"throughput": 20, "memory_bytes": 500}, workloads)
    assert error.value.expected == "a choice with throughput at least 20; or memory_bytes at most 500"
    assert error.value.got == "with 1 at once: throughput at most 9.0909; with 10 at once: memory_bytes at least 1,000".replace("9.0909", "9.09090")


def test_a_variant_that_equals_an_earlier_one_is_never_chosen_and_of_equal_scores_the_cheaper_is():
    cheap, dear = {"parameters": 1}, {"parameters": 2}
    made = Library([[Variant("a", 1.0, dear), Variant("b", 1.0, cheap), Variant("c", 1.0, cheap)]] * 3)
    assert select(made, {"parameters": 10}).choice == (1, 1, 1)
    assert select(made, {}).choice == (0, 0, 0)


def test_of_equal_choices_the_same_is_found_every_time_in_whatever_order_limits_are_written():
    made = two_layers(*({"parameters": 2 - j, "seconds": 2 - j} for j in range(2)))
    found = {select(made, limits).choice for limits in ({"parameters": 3, "seconds": 3}, {"seconds": 3, "parameters": 3}) for _ in range(3)}
    assert len(found) == 1 and found <= {(0, 1), (1, 0)}


def test_a_batch_that_allows_a_better_choice_is_taken_and_of_equal_ones_the_first():
    made = Library([[Variant("large", 0.0, {"memory_bytes": Memory(10, row=10)}), Variant("small", 1.0, {"memory_bytes": Memory(5, row=1)})]])
    workloads = [Workload(batch=8, prompt=0, answer=0), Workload(batch=2, prompt=0, answer=0), Workload(batch=1, prompt=0, answer=0)]
    assert select(made, {"memory_bytes": 30}, workloads).workload == Workload(batch=2, prompt=0, answer=0)
    assert select(made, {"memory_bytes": 19}, workloads).names == ("small",)
    assert select(made, {"memory_bytes": 19}, workloads).workload == Workload(batch=8, prompt=0, answer=0)


def hard(seed: int = 0):
    """Twelve things that are worth what they weigh: much quicker to pack than to show that none packs better."""
    draw = random.Random(seed)
    weights = [draw.randint(10**6, 2 * 10**6) for _ in range(12)]
    made = Library([[Variant("in", -float(w), {"a": w, "b": 3 * 10**6 - w}), Variant("out", 0.0, {"a": 0, "b": 0})] for w in weights])
    return made, {"a": sum(weights) // 2, "b": sum(3 * 10**6 - w for w in weights) // 2}


@pytest.mark.parametrize("seed", range(4))
def test_choices_that_are_nearly_as_good_as_the_best_are_not_taken_for_it(seed):
    made, limits = hard(seed)
    scores = [[variant.score for variant in variants] for variants in made.layers]
    costs = {name: [[variant.costs[name] for variant in variants] for variants in made.layers] for name in limits}
    assert select(made, limits).score == brute(scores, costs, limits)


def test_what_is_found_before_the_solver_is_stopped_is_reported_as_such_and_not_lost():
    made, limits = hard()
    found, best = select(made, limits, nodes=1), select(made, limits)
    assert not found.optimal and best.optimal
    assert found.bound <= best.score <= found.score and fits(made, limits, found.choice)


def test_a_solver_that_is_stopped_before_it_finds_anything_says_that_and_not_that_there_is_nothing(monkeypatch):
    made, limits = hard()
    monkeypatch.setattr(scipy.optimize, "milp", lambda *a, **k: scipy.optimize.OptimizeResult(status=1, x=None, mip_dual_bound=-math.inf, message=""))
    with pytest.raises(Failed, match="none in 0.5 seconds, and it is not shown that there is none") as error:
        select(made, limits, seconds=0.5)
    assert (error.value.slug, error.value.code) == ("time", 5)


def test_a_choice_that_only_the_tolerance_of_the_solver_lets_through_is_not_taken(monkeypatch):
    calls, real = [], scipy.optimize.milp
    monkeypatch.setattr(scipy.optimize, "milp", lambda *a, **k: (calls.append(1), real(*a, **k))[1])
    large = 10**13
    made = Library([[Variant("over by one", 0.0, {"bytes": large + 1}), Variant("even", 1.0, {"bytes": large}), Variant("none", 5.0, {"bytes": 0})]])
    assert select(made, {"bytes": large}).names == ("even",)
    assert len(calls) == 2  # or the solver has become exact, and this shows nothing


def test_small_differences_beside_large_ones_decide():
    made = Library([[Variant("", 1e-6 * (2 - j), {"n": j}) for j in range(3)], [Variant("", 100.0, {"n": 0}), Variant("", 0.0, {"n": 1})]])
    assert select(made, {"n": 2}).choice == (1, 1) and select(made, {"n": 3}).choice == (2, 1)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_variant_without_a_finite_score_or_cost_is_never_chosen(bad):
    made = Library([[Variant("broken", bad, {"n": 0}), Variant("dear", 0.0, {"n": bad}), Variant("good", 9.0, {"n": 1})]])
    assert select(made, {"n": 5}).names == ("good",)
    with pytest.raises(Refused) as error:
        select(made, {"n": 0})
    assert error.value.got == "n at least 1"


def test_a_layer_of_variants_without_a_score_is_refused_and_one_without_a_finite_cost_names_the_limit():
    made = Library([[Variant("", 0.0, {"n": 1})], [Variant("", math.nan, {"n": 1}), Variant("", math.inf, {"n": 1})]])
    with pytest.raises(Refused, match=r"layer 1\n  expected  a variant with a finite score"):
        select(made, {"n": 5})
    with pytest.raises(Refused, match="n at least Infinity"):
        select(Library([[Variant("", 0.0, {"n": math.nan})]]), {"n": 5})


@pytest.mark.parametrize(
    "limits, earlier, sentence",
    [
        ({"seconds": 1}, (), "costs: parameters"),
        ({"parametrs": 1}, (), "write parameters"),
        ({"throughput": 5}, (), "a workload of some tokens"),
        ({"parameters": 9}, [(0,)], "a variant for each of 2 layers"),
        ({"parameters": 9}, [(0, 2)], "a variant for each of 2 layers"),
        ({"parameters": 9}, [(0, -1)], "a variant for each of 2 layers"),
    ],
)
def test_limits_and_choices_that_make_no_sense_are_refused(limits, earlier, sentence):
    with pytest.raises(Refused, match=sentence):
        select(two_layers({"parameters": 1}, {"parameters": 2}), limits, earlier=earlier)


@pytest.mark.parametrize("layers, sentence", [([], "no layers"), ([[Variant("")], []], "layer 1 has none")])
def test_a_library_with_an_empty_layer_is_refused(layers, sentence):
    with pytest.raises(Refused, match=sentence):
        Library(layers)


def test_without_scipy_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(Refused, match=r"pip install 'limbeck\[search\]'") as error:
        select(two_layers({"n": 1}), {"n": 5})
    assert (error.value.slug, error.value.code) == ("extra", 3)


def test_importing_the_selection_does_not_import_scipy():
    code = "import sys, limbeck.search.select; print(sorted({'scipy', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_memory_counts_keys_and_values_by_row_and_position_and_seconds_are_reading_and_writing():
    # 100 + 3 rows x 7 + 3 rows x (5 + 2) positions x 11, by hand
    assert Memory(100, row=7, position=11)(Workload(batch=3, prompt=5, answer=2)) == 100 + 21 + 231
    made = Library(
        [[Variant("", costs={"prefill_seconds": lambda w: 0.5 * w.batch, "decode_seconds": 2.0})]], Variant("", costs={"decode_seconds": 1.0})
    )
    assert made.cost((0,), "seconds", Workload(batch=3, prompt=0, answer=0)) == 4.5
    both = Library([[Variant("", costs={"seconds": 3.0})]], Variant("", costs={"seconds": 0.25}))
    assert both.cost((0,), "seconds", Workload(prompt=0, answer=0)) == 3.25


def test_numbers_are_rounded_so_that_they_can_be_reached():
    assert [rounded(x) for x in (1234567.0, 0.1234561, 1234567.01, -0.5)] == ["1,234,567", "0.123457", "1.23457e+6", "-0.5"]
    assert rounded(0.1234569, "ROUND_FLOOR") == "0.123456"
