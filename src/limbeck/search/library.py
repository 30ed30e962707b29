"""A library: what may stand in each layer, how far each moves the model, and what it costs."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from pydantic import Field

from limbeck.component import Document, nearest
from limbeck.errors import Refused

WHERE = "search.library"
Choice = tuple[int, ...]
"""For each layer the number of its variant, from 0."""


class Workload(Document):
    """What the model is asked at once, when its costs are counted."""

    batch: int = Field(default=1, gt=0)
    """Rows."""
    prompt: int = Field(default=128, ge=0)
    """Positions that are read, of each row."""
    answer: int = Field(default=128, ge=0)
    """Positions that are written, of each row."""

    @property
    def tokens(self) -> int:
        """All positions of all rows."""
        return self.batch * (self.prompt + self.answer)


NOTHING = Workload(prompt=0, answer=0)
"""For costs that do not depend on what is asked."""
Cost = float | Callable[[Workload], float]
"""A number, or one that depends on what is asked."""


@dataclass(frozen=True)
class Memory:
    """Bytes of weights, and of what is remembered: a state of constant size for each row, keys and values for each position.

    Example:
        >>> Memory(weights=1000, row=10, position=4)(Workload(batch=2, prompt=6, answer=2))
        1084
    """

    weights: float
    row: float = 0
    position: float = 0

    def __call__(self, workload: Workload) -> float:
        return self.weights + workload.batch * self.row + workload.tokens * self.position


@dataclass(frozen=True)
class Variant:
    """What may stand in a layer."""

    name: str
    score: float = 0.0
    """How far the model moves with this one in its layer and nothing else changed; infinite or not a number: never to be chosen."""
    costs: Mapping[str, Cost] = field(default_factory=dict)
    """By name. `parameters` and `memory_bytes` add up over layers; so do `prefill_seconds`, of the whole batch of prompts, and
    `decode_seconds`, of all that is written; the two together are `seconds`."""

    def cost(self, name: str, workload: Workload) -> float:
        """One cost.

        Raises:
            Refused: `limit`, for one that is not known.
        """
        if name == "seconds" and name not in self.costs and {"prefill_seconds", "decode_seconds"} <= self.costs.keys():
            return self.cost("prefill_seconds", workload) + self.cost("decode_seconds", workload)
        if name not in self.costs:
            known = ", ".join(self.costs) or "none"
            raise Refused("limit", f"{WHERE}  {self.name}", f"its {name}", f"costs: {known}", f"measure {name}, or write {nearest(name, self.costs)}")
        cost = self.costs[name]
        return cost(workload) if callable(cost) else cost


@dataclass(frozen=True)
class Library:
    """Variants by layer; a layer may be a whole block, or its mixer and its MLP may count as two."""

    layers: Sequence[Sequence[Variant]]
    rest: Variant = Variant("the rest")
    """What stays whatever is chosen: embeddings, head."""

    def __post_init__(self) -> None:
        if not self.layers or not all(self.layers):
            got = f"layer {[len(some) for some in self.layers].index(0)} has none" if self.layers else "no layers"
            raise Refused("layer", WHERE, "at least one variant for each layer", got, "add what stands there now: it changes nothing")

    @property
    def sizes(self) -> Choice:
        """How many variants each layer has."""
        return tuple(len(variants) for variants in self.layers)

    def chosen(self, choice: Sequence[int]) -> tuple[Variant, ...]:
        """The variants of a choice."""
        return tuple(variants[number] for variants, number in zip(self.layers, choice, strict=True))

    def score(self, choice: Sequence[int]) -> float:
        """The sum of the scores: what is expected of them together."""
        return math.fsum(variant.score for variant in self.chosen(choice))

    def cost(self, choice: Sequence[int], name: str, workload: Workload) -> float:
        """One cost of the whole model; what does not say otherwise of itself, the rest, costs nothing."""
        return math.fsum([self.spent(name, workload), *(variant.cost(name, workload) for variant in self.chosen(choice))])

    def spent(self, name: str, workload: Workload) -> float:
        """One cost of the rest."""
        parts = ("prefill_seconds", "decode_seconds") if name == "seconds" and name not in self.rest.costs else (name,)
        return math.fsum(self.rest.cost(part, workload) for part in parts if part in self.rest.costs)

    def scored(self, scores: Sequence[Sequence[float]]) -> "Library":
        """The same variants with other scores."""
        pairs = zip(self.layers, scores, strict=True)
        return replace(self, layers=[[replace(v, score=s) for v, s in zip(variants, row, strict=True)] for variants, row in pairs])
