"""Ask what to measure next, tell what was measured: one interface for everything that searches."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from itertools import islice, product
from typing import Any

from limbeck.addition import added
from limbeck.component import short
from limbeck.errors import Refused
from limbeck.numerics import Streams
from limbeck.search.library import NOTHING, Choice, Library, Workload
from limbeck.search.select import Selection, select

WHERE = "search.strategy"
TRIES = 10_000
"""Draws in a row without a new candidate after which there is taken to be none."""


class Strategy(ABC):
    """Proposes choices, one variant a layer; lower scores are better.

    What it proposes depends on what it was made with, what it has asked and what it was told, and on nothing else: `state` is those
    two lists, so a search that was stopped goes on exactly as one that was not. What was asked and not yet told is then asked again.
    """

    def __init__(self, sizes: Sequence[int]):
        self.sizes = tuple(sizes)
        """How many variants each layer has."""
        self.asked: dict[Choice, None] = {}
        self.told: dict[Choice, float] = {}
        self.again: list[Choice] = []
        """Asked before a stop, and not told."""

    def ask(self, n: int = 1) -> list[Choice]:
        """Up to n choices to measure. None: the search is over, or, while some are being measured, waits for them."""
        first, self.again = self.again[:n], self.again[n:]
        new = self.propose(n - len(first)) if len(first) < n else []
        self.asked |= dict.fromkeys(new)
        return first + new

    def tell(self, choice: Sequence[int], score: float) -> None:
        """What was measured; not a number: as bad as can be. A choice that was not asked is welcome too.

        Raises:
            Refused: `choice`, for one that is none of these layers, or that was told another score before.
        """
        choice, score = self.checked(choice), math.inf if math.isnan(score) else float(score)
        if self.told.setdefault(choice, score) != score:
            expected = f"the score it was told before, {self.told[choice]:g}"
            raise Refused("choice", f"{WHERE}  {choice}", expected, f"{score:g}", "measure each choice once, on the same rows")
        self.again = [other for other in self.again if other != choice]

    @abstractmethod
    def propose(self, n: int) -> list[Choice]:
        """Up to n choices that were neither asked nor told."""

    @property
    def best(self) -> Choice | None:
        """What was found: the choice with the least score, of equal ones the one told first."""
        return min(self.told, key=self.told.__getitem__, default=None)

    def known(self, choice: Choice) -> bool:
        """Whether it was asked or told."""
        return choice in self.told or choice in self.asked

    def checked(self, choice: Sequence[int]) -> Choice:
        """A choice as a tuple, if it is one of these layers."""
        if len(choice) != len(self.sizes) or not all(0 <= number < size for number, size in zip(choice, self.sizes, strict=True)):
            expected = f"a number for each of {len(self.sizes)} layers, below {short(self.sizes)}"
            raise Refused("choice", WHERE, expected, short(list(choice)), "count layers and variants from 0")
        return tuple(choice)

    def state(self) -> dict[str, Any]:
        """What it has asked and was told, as plain JSON."""
        told = [[list(choice), score if score < math.inf else None] for choice, score in self.told.items()]
        return {"asked": [list(choice) for choice in self.asked], "told": told}

    def load(self, state: Mapping[str, Any]) -> None:
        """Goes on from a state."""
        self.asked = {self.checked(choice): None for choice in state["asked"]}
        self.told = {self.checked(choice): math.inf if score is None else float(score) for choice, score in state["told"]}
        self.again = [choice for choice in self.asked if choice not in self.told]


def search(strategy: Strategy, score: Callable[[Choice], float], at_once: int = 1) -> Choice | None:
    """Measures all that a strategy asks for; what it found."""
    while choices := strategy.ask(at_once):
        for choice in choices:
            strategy.tell(choice, score(choice))
    return strategy.best


def anything(_: Choice) -> bool:
    """Allows every choice."""
    return True


class Exhaustive(Strategy):
    """Every choice that is allowed, the last layer's variant changing first: the best there is, where there are few.

    Example:
        >>> search(Exhaustive((2, 3)), lambda choice: abs(choice[0] - 1) + abs(choice[1] - 1))
        (1, 1)
    """

    def __init__(self, sizes: Sequence[int], allowed: Callable[[Choice], bool] = anything):
        super().__init__(sizes)
        self.allowed = allowed

    def propose(self, n: int) -> list[Choice]:
        every = product(*map(range, self.sizes))
        return list(islice((choice for choice in every if not self.known(choice) and self.allowed(choice)), n))


class Random(Strategy):
    """Different choices, each drawn evenly from those that are allowed: what any other strategy has to beat.

    Example:
        >>> Random((4, 4, 4), num=2, seed=0).ask(5) == Random((4, 4, 4), num=2, seed=0).ask(5)
        True
    """

    def __init__(self, sizes: Sequence[int], num: int, seed: int = 0, allowed: Callable[[Choice], bool] = anything):
        super().__init__(sizes)
        self.num, self.streams, self.allowed = num, Streams(seed), allowed

    def propose(self, n: int) -> list[Choice]:
        place, tries, new = len(self.asked), 0, {}  # what was drawn at earlier places is known
        while len(new) < min(n, self.num - len(self.asked)) and tries < TRIES:
            choice = tuple(self.streams.number("search", place, layer) % size for layer, size in enumerate(self.sizes))
            place, tries = place + 1, tries + 1
            if choice not in new and not self.known(choice) and self.allowed(choice):
                new[choice], tries = None, 0
        return list(new)


class Addition(Strategy):
    """Which `num` layers to take from `end`, all others being as in `start`: each is added alone, and those with the least scores are taken.

    That is one measurement a layer, and one of the layers taken together. `rescored` takes one layer, measures each of the others
    added to it, and so on: closer, where layers stand in for each other. Of equal scores the earlier layer is taken. With the whole
    model as `start` it finds what can be given up instead.

    Example:
        >>> search(Addition((2, 2, 2), start=(0, 0, 0), end=(1, 1, 1), num=2), lambda choice: -choice[0] - 3 * choice[1] - 2 * choice[2])
        (0, 1, 1)

    References:
        Li et al., Distilling to Hybrid Attention Models via KL-Guided Layer Selection, 2025, arXiv:2512.20569.
    """

    def __init__(self, sizes: Sequence[int], start: Sequence[int], end: Sequence[int], num: int, rescored: bool = False):
        super().__init__(sizes)
        self.start, self.end, self.num, self.rescored = self.checked(start), self.checked(end), num, rescored
        unlike = sum(a != b for a, b in zip(self.start, self.end, strict=True))
        if not 1 <= num <= unlike:
            raise Refused("choice", f"{WHERE}.num", f"1 to {unlike}, the layers in which start and end differ", str(num), "change num")

    def with_end(self, layers: Sequence[int]) -> Choice:
        """The start with some layers taken from the end."""
        return tuple(self.end[i] if i in layers else number for i, number in enumerate(self.start))

    def decided(self) -> tuple[Choice, list[Choice]]:
        """As far as it has come, and what has to be measured before it comes further."""
        layers = [i for i, (a, b) in enumerate(zip(self.start, self.end, strict=True)) if a != b]
        taken, sets = added(layers, self.num, lambda some: self.told.get(self.with_end(some)), 1 if self.rescored else self.num)
        choice, missing = self.with_end(taken), [self.with_end(some) for some in sets]
        return choice, missing or ([] if choice in self.told else [choice])

    def propose(self, n: int) -> list[Choice]:
        return [choice for choice in self.decided()[1] if not self.known(choice)][:n]

    @property
    def best(self) -> Choice | None:
        choice, missing = self.decided()
        return None if missing else choice


class ReplaceOne(Strategy):
    """Measures each variant alone in the whole model, takes sums of these scores for scores, and selects exactly within limits.

    That is one measurement a variant. Sums only foretell: each choice selected is measured as well, and the best of them by that is
    what was found. With `num` above 1, each differs from those before it in at least `differ` layers.

    References:
        Bercovich et al., Puzzle: Distillation-Based NAS for Inference-Optimized LLMs, 2024, arXiv:2411.19146.
    """

    def __init__(
        self,
        library: Library,
        whole: Sequence[int],
        limits: Mapping[str, float],
        workloads: Sequence[Workload] = (NOTHING,),
        num: int = 1,
        differ: int = 1,
        seconds: float = 60.0,
    ):
        """Args:
        library: the costs of the variants; their scores are measured.
        whole: the choice in which nothing is replaced.
        limits: as for `select`.
        workloads: as for `select`.
        num: how many choices to select and to measure.
        differ: in how many layers each differs from each of the others.
        seconds: for each selection.
        """
        super().__init__(library.sizes)
        self.library, self.whole, self.limits, self.workloads = library, self.checked(whole), dict(limits), tuple(workloads)
        self.num, self.differ, self.seconds = num, differ, seconds
        self.selected: list[Choice] = []

    def replaced(self, layer: int, number: int) -> Choice:
        """The whole model but for one layer."""
        return (*self.whole[:layer], number, *self.whole[layer + 1 :])

    def scored(self) -> Library:
        """The library with the scores that were measured, counted from that of the whole model."""
        each = [[self.told[self.replaced(i, j)] - self.told[self.whole] for j in range(size)] for i, size in enumerate(self.sizes)]
        return self.library.scored(each)

    def foretold(self, choice: Choice) -> float:
        """What the scores of its variants say of a choice."""
        return self.told[self.whole] + self.scored().score(choice)

    def propose(self, n: int) -> list[Choice]:
        singles = dict.fromkeys([self.whole, *(self.replaced(i, j) for i, size in enumerate(self.sizes) for j in range(size))])
        if any(choice not in self.told for choice in singles):
            return [choice for choice in singles if not self.known(choice)][:n]
        new: list[Choice] = []
        while len(self.selected) < self.num and len(new) < n:
            selection = self.next()
            if selection is None:
                break
            self.selected.append(selection.choice)
            new += [] if self.known(selection.choice) else [selection.choice]
        return new

    def next(self) -> Selection | None:
        """The next choice; None where there is no other one."""
        try:
            return select(self.scored(), self.limits, self.workloads, self.selected, self.differ, self.seconds)
        except Refused as error:
            if error.slug != "limit" or not self.selected:
                raise
            return None

    @property
    def best(self) -> Choice | None:
        return min((choice for choice in self.selected if choice in self.told), key=self.told.__getitem__, default=None)

    def state(self) -> dict[str, Any]:
        return {**super().state(), "selected": [list(choice) for choice in self.selected]}

    def load(self, state: Mapping[str, Any]) -> None:
        super().load(state)
        self.selected = [self.checked(choice) for choice in state["selected"]]
