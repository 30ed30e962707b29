"""A search as a recipe writes it: what may stand in each block, what it may cost, and how it is measured."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, model_validator

from limbeck.block.base import AnyFeedForward, AnyMixer
from limbeck.component import Document
from limbeck.data.base import Rows
from limbeck.errors import Refused
from limbeck.model.base import Role
from limbeck.search.blockwise import Shelf, learning
from limbeck.search.costs import library
from limbeck.search.library import Choice, Library, Workload
from limbeck.search.select import fits, select
from limbeck.search.strategy import ReplaceOne
from limbeck.signals import Row
from limbeck.student.base import Score
from limbeck.student.replace_parts import ReplaceParts
from limbeck.train.optimiser import Optimiser

SECONDS = ("seconds", "prefill_seconds", "decode_seconds", "throughput")
LIMITS = ("parameters", "memory_bytes", "flops", *SECONDS)
Positive = Annotated[float, Field(gt=0)]


@dataclass(frozen=True)
class Outcome:
    """What a search has found."""

    surgery: ReplaceParts
    """What stands in each block, as a recipe would write it."""
    state: Mapping[str, Any]
    """The weights of the model that was put together: its parts as they have learned."""
    about: Mapping[str, Any]
    """Names, scores and costs, as plain JSON."""


@dataclass(frozen=True)
class Bill:
    """What a search will do."""

    variants: int
    """Of each block."""
    parts: int
    """Of all blocks."""
    part_bytes: int
    steps: int
    """In which all parts learn."""
    batch: int
    """Rows of each of them."""
    measurements: int
    """Models that are measured."""

    def __str__(self) -> str:
        return f"search: {self.parts} parts learn for {self.steps} steps, then {self.measurements} models are measured"

    def learned(self, length: int) -> int:
        """Positions that parts learn from, each time all of them, in rows of some length."""
        return self.steps * self.batch * length


class Search(Document):
    """Chooses a mixer and an MLP for each block: variants learn block by block, each is tried out alone, and the best sum within limits is taken."""

    mixers: tuple[AnyMixer, ...] = ()
    """What may stand in the place of attention, beside attention itself."""
    mlps: tuple[AnyFeedForward, ...] = ()
    """What may stand in the place of the MLP, beside the MLP itself."""
    steps: int = Field(default=0, ge=0)
    """Steps in which all variants learn at once from the block they stand in for; 0: they are tried out as they begin."""
    batch: int = Field(default=8, gt=0)
    """Rows of each of these steps."""
    optimiser: Optimiser = Optimiser(clip=None)
    """How variants move."""
    apart: bool = True
    """A mixer and an MLP are measured each by itself, and their scores added; else every pair of them, which takes m times n measurements a block."""
    limits: dict[str, Positive] = Field(default_factory=dict)
    """The most of parameters, memory_bytes, flops, seconds, prefill_seconds or decode_seconds; the least `throughput`, in tokens a second."""
    shares: dict[str, Annotated[float, Field(gt=0, le=1)]] = Field(default_factory=dict)
    """The same as shares of what the whole model costs."""
    workloads: tuple[Workload, ...] = (Workload(),)
    """What may be asked at once: the one is taken that allows the least score."""
    num: int = Field(default=1, gt=0)
    """Choices that are put together and measured; the best of them is the student."""
    differ: int = Field(default=1, gt=0)
    """In how many places these differ from each other: mixers and MLPs by themselves, or whole blocks where they are not `apart`."""

    seed: int = Field(default=0, json_schema_extra={"since": 2})
    """Of the weights of variants that are drawn."""

    @model_validator(mode="after")
    def something_to_choose(self) -> "Search":
        if not self.mixers and not self.mlps:
            raise ValueError("mixers or mlps: at least one variant")
        if not self.limits and not self.shares:
            raise ValueError("limits or shares: at least one, since without a limit the whole model is the best choice")
        unknown = [name for name in (*self.limits, *self.shares) if name not in LIMITS]
        if unknown:
            raise ValueError(f"limits and shares: of {', '.join(LIMITS)}; not {unknown[0]}")
        if "throughput" in self.shares:
            raise ValueError("shares: of a cost, such as seconds; throughput stands under limits, in tokens a second")
        return self

    def run(
        self,
        whole: Role,
        rows: Rows,
        measured_on: Sequence[Row],
        score: Score,
        seed: int,
        tell: Callable[[int, int, str], None],
        stop: Callable[[], bool] = lambda: False,
    ) -> Outcome | None:
        """Searches.

        Args:
            whole: the model whose parts are replaced; it is not changed.
            rows: that variants learn from.
            measured_on: rows by which channels of narrow MLPs are chosen.
            score: how far a role is from the teacher.
            seed: of the order of rows.
            tell: hears how far it is: so many of so many, and what.
            stop: asked between steps and measurements; after a True nothing is found, and nothing kept.

        Raises:
            Refused: `limit`, where no choice meets the limits.
        """
        shelf = Shelf(whole, self.mixers, self.mlps, measured_on, self.apart, self.seed)
        workloads = self.workloads
        timed = any(name in SECONDS for name in (*self.limits, *self.shares))
        table = library(shelf, workloads if timed else ())
        nothing = (0,) * len(shelf.sizes)
        limits = self.limited(table, nothing, workloads)
        select(table, limits, workloads)  # refused before anything is learned, where no choice meets them
        if self.steps:
            loop = learning(shelf, rows, self.steps, self.batch, self.optimiser, seed)
            if not loop.run(lambda loop, records: tell(loop.step, loop.steps, "variants learn"), stop):
                return None
        strategy = ReplaceOne(table, nothing, limits, workloads, self.num, self.differ)
        measure = shelf.scorer(score)

        def tried(choice: Choice) -> float:
            value = measure(choice)
            tell(len(strategy.told) + 1, self.measurements(shelf), "tried out")
            return value

        while choices := strategy.ask():
            if stop():
                return None
            strategy.tell(choices[0], tried(choices[0]))
        best = strategy.best
        assert best is not None  # select has found one, or refused
        found = strategy.scored()
        return Outcome(shelf.surgery(best), shelf.assembled(best).module.state_dict(), self.about(strategy, found, best, nothing, workloads))

    def check(self, whole: Role) -> Bill:
        """What a search will do; refuses variants that do not fit and limits that none meets, as far as no clock is needed.

        Raises:
            Refused: `shape`, `limit`.
        """
        shelf = Shelf(whole, self.mixers, self.mlps, apart=self.apart)
        table, workloads = library(shelf), self.workloads
        wanted = {name: most for name, most in self.limited(table, (0,) * len(shelf.sizes), workloads, SECONDS).items() if name not in SECONDS}
        select(table, wanted, workloads)
        size = sum(p.numel() * p.element_size() for part in shelf.parts.values() for p in part.module.parameters())
        return Bill(len(self.mixers) + len(self.mlps), len(shelf.parts), size, self.steps, self.batch, self.measurements(shelf))

    def measurements(self, shelf: Shelf) -> int:
        """How many models are measured: the whole, each variant alone, and what is chosen."""
        return sum(n - 1 for n in shelf.sizes) + 1 + self.num

    def limited(self, table: Library, whole: Choice, workloads: Sequence[Workload], without: Sequence[str] = ()) -> dict[str, float]:
        """All limits as numbers, but for some; a share is of what the whole model costs at the first workload."""
        if len(workloads) > 1 and self.shares:
            raise Refused("limit", "search.shares", "one workload", f"{len(workloads)}", "write limits in place of shares")
        return {**self.limits, **{n: share * table.cost(whole, n, workloads[0]) for n, share in self.shares.items() if n not in without}}

    def about(self, strategy: ReplaceOne, found: Library, best: Choice, whole: Choice, workloads: Sequence[Workload]) -> dict[str, Any]:
        """What is told of the search: the choice, and what each variant alone did."""
        costs = [name for name in dict.fromkeys(("parameters", "memory_bytes", *strategy.limits)) if name != "throughput"]
        at = next((one for one in workloads if fits(found, strategy.limits, best, (one,))), workloads[0])
        return {
            "chosen": [variant.name for variant in found.chosen(best)],
            "score": strategy.told[best],
            "foretold": strategy.foretold(best),
            "workload": at.model_dump(),
            "costs": {name: {"whole": found.cost(whole, name, at), "chosen": found.cost(best, name, at)} for name in costs},
            "measured": [{variant.name: variant.score for variant in variants} for variants in found.layers],
            "limits": dict(strategy.limits),
        }
