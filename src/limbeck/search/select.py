r"""Which variant of each layer: the least sum of scores within limits, solved exactly as an integer program.

$$ \min_x \sum_{ij} s_{ij} x_{ij}, \quad \sum_j x_{ij} = 1, \quad \sum_{ij} c^n_{ij} x_{ij} \le C^n, \quad x_{ij} \in \{0, 1\} $$

Scores are those of variants put in alone, so their sum only foretells the score of a choice: measure the model that is put together.

References:
    Bercovich et al., Puzzle: Distillation-Based NAS for Inference-Optimized LLMs, 2024, arXiv:2411.19146.
"""

import math
import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Context
from typing import Any

import numpy as np

from limbeck.errors import Failed, Refused
from limbeck.search.library import NOTHING, Choice, Library, Workload

WHERE = "search.select"
SCALE = 1e5
"""Largest number that the solver sees in an objective or a limit: its absolute tolerances, of 1e-6, are then one part in 1e11."""
OPTIMAL, INFEASIBLE = 0, 2
"""What scipy's milp says with its status; with every other one it may have found something, or not."""
DIFFER = "differ"
Table = Sequence[Sequence[float]]
"""One number for each variant of each layer."""


@dataclass(frozen=True)
class Limit:
    """What a choice adds up to, at most."""

    name: str
    most: float
    weights: Table
    fixed: float = 0.0
    """Added to the sum whatever is chosen."""
    tokens: int = 0
    """If any, the sum is the time that they take, and the limit was written as tokens a second."""

    def value(self, choice: Choice) -> float:
        return math.fsum([self.fixed, *(row[number] for row, number in zip(self.weights, choice, strict=True))])

    def holds(self, choice: Choice) -> bool:
        return self.value(choice) <= self.most

    def wanted(self) -> str:
        return f"{self.name} at least {rounded(self.tokens / self.most, ROUND_FLOOR)}" if self.tokens else f"{self.name} at most {rounded(self.most)}"

    def reached(self, value: float) -> str:
        return f"{self.name} at most {rounded(self.tokens / value, ROUND_FLOOR)}" if self.tokens else f"{self.name} at least {rounded(value)}"


@dataclass(frozen=True)
class Selection:
    """A choice, what is expected of it, and what it costs."""

    choice: Choice
    names: tuple[str, ...]
    score: float
    """Sum of the scores of its variants."""
    bound: float
    """No choice within the limits has a lower score than this."""
    costs: Mapping[str, float]
    """Those that are limited, at this workload."""
    workload: Workload

    @property
    def optimal(self) -> bool:
        """Whether it is shown to be the best; else it is the best that was found in time."""
        return self.bound >= self.score


@dataclass(frozen=True)
class Found:
    """What the solver says: the best choice, and a bound that is infinite where there is none."""

    choice: Choice | None
    bound: float


def select(
    library: Library,
    limits: Mapping[str, float],
    workloads: Sequence[Workload] = (NOTHING,),
    earlier: Sequence[Choice] = (),
    differ: int = 1,
    seconds: float = 60.0,
    nodes: int | None = None,
) -> Selection:
    """The choice with the least score within the limits, at the workload (as a rule, the batch) that allows the least; of equal ones the first.

    Args:
        library: scores and costs.
        limits: the most of each cost. `throughput` is the least number of tokens a second, read and written: a limit on `seconds`.
        workloads: what may be asked at once.
        earlier: choices of which each must be left in at least `differ` layers.
        differ: in how many.
        seconds: for the solver, at each workload: what it has found by then is reported as such. The only thing here that a clock decides.
        nodes: the same as a number of nodes of its search tree.

    Raises:
        Refused: `limit`, where no choice meets the limits: names those that bind; `extra`, without scipy.
        Failed: `time`, where nothing was found in time, and nothing ruled out.

    Example:
        >>> from limbeck.search.library import Variant
        >>> mlp = [Variant("whole", 0.0, {"parameters": 8}), Variant("half", 0.3, {"parameters": 4}), Variant("none", 1.0, {"parameters": 0})]
        >>> select(Library([mlp, mlp]), {"parameters": 9}).names
        ('half', 'half')
    """
    scores = usable([[v.score for v in variants] for variants in library.layers])
    for i, row in enumerate(scores):
        if min(row) == math.inf:
            got = f"{len(row)} without"
            raise Refused("limit", f"{WHERE}  layer {i}", "a variant with a finite score", got, "keep what stands there: its score is 0")
    apart = [differing(choice, differ, library.sizes) for choice in earlier]
    every = [[*limited(library, limits, workload), *apart] for workload in workloads]
    found = [minimise(scores, rows, seconds, nodes) for rows in every]
    there = [(library.score(one.choice), i) for i, one in enumerate(found) if one.choice is not None]
    if there:
        score, best = min(there)
        choice, workload = found[best].choice or (), workloads[best]
        costs = {name: library.cost(choice, name, workload) for name in dict.fromkeys("seconds" if n == "throughput" else n for n in limits)}
        names = tuple(variant.name for variant in library.chosen(choice))
        return Selection(choice, names, score, min(one.bound for one in found), costs, workload)
    if any(one.bound < math.inf for one in found):
        expected, got = "a choice within the limits", f"none in {seconds:g} seconds, and it is not shown that there is none"
        raise Failed("time", WHERE, expected, got, "give it more seconds, or loosen a limit", code=5)
    raise impossible(scores, list(zip(workloads, every, strict=True)), seconds, nodes)


def fits(library: Library, limits: Mapping[str, float], choice: Choice, workloads: Sequence[Workload] = (NOTHING,)) -> bool:
    """Whether a choice meets the limits, at one of the workloads."""
    return any(all(limit.holds(choice) for limit in limited(library, limits, workload)) for workload in workloads)


def usable(table: Table) -> list[list[float]]:
    """The same numbers; what is none, or infinite, is infinitely bad."""
    return [[x if math.isfinite(x) else math.inf for x in row] for row in table]


def limited(library: Library, limits: Mapping[str, float], workload: Workload) -> Iterator[Limit]:
    """The limits as sums over variants."""
    for name, number in limits.items():
        cost, tokens = "seconds" if name == "throughput" else name, workload.tokens
        if name == "throughput" and (not tokens or number <= 0):
            got = f"throughput {number:g}, {tokens} tokens"
            raise Refused("limit", WHERE, "a throughput above 0, and a workload of some tokens", got, "give the workload a prompt or an answer")
        weights = usable([[variant.cost(cost, workload) for variant in variants] for variants in library.layers])
        fixed = library.spent(cost, workload)
        yield Limit(name, tokens / number, weights, fixed, tokens) if name == "throughput" else Limit(name, number, weights, fixed)


def differing(choice: Choice, differ: int, sizes: Choice) -> Limit:
    """A limit on how many layers are as in an earlier choice."""
    if len(choice) != len(sizes) or not all(0 <= number < size for number, size in zip(choice, sizes, strict=True)):
        raise Refused("limit", f"{WHERE}.earlier", f"a variant for each of {len(sizes)} layers", str(choice), "give choices of this library")
    weights = [[float(j == number) for j in range(size)] for number, size in zip(choice, sizes, strict=True)]
    return Limit(DIFFER, len(sizes) - differ, weights)


def minimise(scores: Table, limits: Sequence[Limit], seconds: float, nodes: int | None) -> Found:
    """The choice with the least sum; a variant with a score or weight that is infinite or not a number is never chosen.

    What the solver finds is held against the limits in exact sums: what only its tolerance lets through is ruled out, and it is asked again.
    """
    limits = list(limits)
    while True:
        kept = [undominated(i, row, limits) for i, row in enumerate(scores)]
        if not all(kept) or any(least(limit, kept) > limit.most for limit in limits):
            return Found(None, math.inf)
        said, floor, factor = solve(scores, limits, kept, seconds, nodes)
        shown = said.mip_dual_bound
        bound = floor + (shown / factor if shown is not None and math.isfinite(shown) else 0.0)
        if said.x is None:
            return Found(None, math.inf if said.status == INFEASIBLE else bound)
        parts = np.split(said.x, np.cumsum([len(some) for some in kept])[:-1])
        choice = tuple(some[int(part.argmax())] for some, part in zip(kept, parts, strict=True))
        if all(limit.holds(choice) for limit in limits):
            value = math.fsum(row[j] for row, j in zip(scores, choice, strict=True))
            return Found(choice, value if said.status == OPTIMAL else min(value, bound))
        limits.append(differing(choice, 1, tuple(len(row) for row in scores)))


def undominated(layer: int, scores: Sequence[float], limits: Sequence[Limit]) -> list[int]:
    """Variants of a layer with finite numbers, but for those that another one beats: in something, with nothing worse, or equal and earlier."""
    every = [(score, *(limit.weights[layer][j] for limit in limits)) for j, score in enumerate(scores)]
    finite = {j: numbers for j, numbers in enumerate(every) if max(numbers) < math.inf}

    def beaten(j: int) -> bool:
        own = finite[j]
        return any(all(map(operator.le, other, own)) and (other != own or k < j) for k, other in finite.items() if k != j)

    return [j for j in finite if not beaten(j)]


def least(limit: Limit, kept: Sequence[Sequence[int]]) -> float:
    """The smallest value that some variants of each layer can add up to."""
    return math.fsum([limit.fixed, *(min(row[j] for j in some) for row, some in zip(limit.weights, kept, strict=True))])


def solve(scores: Table, limits: Sequence[Limit], kept: Sequence[Sequence[int]], seconds: float, nodes: int | None) -> tuple[Any, float, float]:
    """What scipy says of the program; its objective is the sum of the scores less the second, times the third.

    From each layer its least number is taken away, which changes no choice, and what is left is scaled: small differences then weigh enough.
    """
    try:
        from scipy.optimize import Bounds, LinearConstraint, milp
    except ImportError as error:
        got = "not installed" if error.name == "scipy" else str(error)
        raise Refused("extra", WHERE, "the package scipy", got, "pip install 'limbeck[search]'", 3) from None
    layer = np.repeat(np.arange(len(kept)), [len(some) for some in kept])

    def flat(table: Table) -> tuple[np.ndarray, np.ndarray, float]:
        numbers = np.array([table[i][j] for i, some in enumerate(kept) for j in some], dtype=np.float64)
        lowest = np.array([numbers[layer == i].min() for i in range(len(kept))])
        over = numbers - lowest[layer]
        factor = SCALE / over.max() if over.max() > 0 else 1.0
        return over * factor, lowest, factor

    objective, floors, factor = flat(scores)
    rules = [LinearConstraint((layer == np.arange(len(kept))[:, None]).astype(float), 1, 1)]
    for limit in limits:
        row, lowest, times = flat(limit.weights)
        rules.append(LinearConstraint(row[None], -np.inf, math.fsum([limit.most, -limit.fixed, *-lowest]) * times))
    options = {"time_limit": seconds, "mip_rel_gap": 0.0} | ({} if nodes is None else {"node_limit": nodes})
    said = milp(objective, integrality=np.ones_like(objective), bounds=Bounds(0, 1), constraints=rules, options=options)
    return said, math.fsum(floors), factor


def impossible(scores: Table, every: Sequence[tuple[Workload, list[Limit]]], seconds: float, nodes: int | None) -> Refused:
    """The error that names the limits that bind, at each workload, and what can be reached."""
    wanted, got = [], []
    for workload, limits in every:
        at = f"with {workload.batch} at once: " if len(every) > 1 else ""
        binding, reached = conflict(scores, limits, seconds, nodes)
        wanted.append(" and ".join(binding))
        got.append(at + ", ".join(reached))
    do = "loosen one limit that far, or give layers cheaper variants"
    return Refused("limit", WHERE, "a choice with " + "; or ".join(dict.fromkeys(wanted)), "; ".join(got), do)


def conflict(scores: Table, limits: Sequence[Limit], seconds: float, nodes: int | None) -> tuple[list[str], list[str]]:
    """The limits that bind and the values that can be reached: of each that fails alone, or else of a smallest set that fails together."""
    there = [[j for j, score in enumerate(row) if score < math.inf] for row in scores]
    groups = {name: [limit for limit in limits if limit.name == name] for name in dict.fromkeys(limit.name for limit in limits)}
    alone = [limit for limit in limits if limit.name != DIFFER and least(limit, there) > limit.most]
    if alone:
        return [limit.wanted() for limit in alone], [limit.reached(least(limit, there)) for limit in alone]

    def lowest(table: Table, names: Sequence[str]) -> float:
        masked = [[x if score < math.inf else math.inf for x, score in zip(*rows, strict=True)] for rows in zip(table, scores, strict=True)]
        return minimise(masked, [limit for name in names for limit in groups[name]], seconds, nodes).bound

    names, nothing = list(groups), [[0.0] * len(row) for row in scores]
    for name in groups:
        others = [other for other in names if other != name]
        names = others if lowest(nothing, others) == math.inf else names
    wanted, reached = [], []
    for name in names:
        if name == DIFFER:
            wanted.append(f"{len(scores) - groups[name][0].most:.0f} layers unlike each of {len(groups[name])} earlier choices")
        else:
            (limit,) = groups[name]
            wanted.append(limit.wanted())
            reached.append(limit.reached(limit.fixed + lowest(limit.weights, [other for other in names if other != name])))
    return wanted, [f"{what}, the others met" for what in reached] or ["no other choice"]


def rounded(value: float, way: str = ROUND_CEILING) -> str:
    """A number in six digits, so that it can be reached; a whole number in all of them."""
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) < 1e15 else f"{Context(prec=6, rounding=way).create_decimal(value):g}"
