"""What objectives over lists of candidates share: pairs and ranks within each list, without padding."""

from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from limbeck.numerics import segment_mean, segment_sum, upcast
from limbeck.objective.base import Objective
from limbeck.signals import Needs, Signals

Against = Literal["teacher", "given_score", "rank", "relevance"]
"""What a list is held against: scores of the teacher; or of the data, scores, ranks (1 is best) or labels."""


@dataclass(frozen=True)
class Lists:
    """Which list each row belongs to. Lists are ragged: pairs and sums are made of rows that are there."""

    group: Int[Tensor, " row"]

    @cached_property
    def num(self) -> int:
        """How many lists there are."""
        return len(self.group.unique())

    @cached_property
    def sizes(self) -> Int[Tensor, " group"]:
        return self.group.bincount(minlength=self.num)

    @cached_property
    def pairs(self) -> tuple[Int[Tensor, " pair"], Int[Tensor, " pair"]]:
        """All ordered pairs of two rows of one list."""
        order = self.group.argsort(stable=True)
        sizes = self.sizes[self.group[order]]
        starts = (self.sizes.cumsum(0) - self.sizes)[self.group[order]]
        first = torch.arange(len(order), device=order.device).repeat_interleave(sizes)
        step = torch.arange(len(first), device=order.device) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
        second = starts.repeat_interleave(sizes) + step
        apart = first != second
        return order[first[apart]], order[second[apart]]

    def sum(self, each: Float[Tensor, " row"]) -> Float[Tensor, " group"]:
        return segment_sum(each, self.group, self.num)

    def mean(self, each: Float[Tensor, " row"]) -> Float[Tensor, " group"]:
        return segment_mean(each, self.group, self.num)

    def mean_of(self, each: Float[Tensor, " some"], rows: Int[Tensor, " some"]) -> Float[Tensor, " group"]:
        """Mean over some rows, or pairs by their first row, of each list; a connected zero where there is none."""
        return segment_mean(each, self.group[rows], self.num)

    def best_first(self, rank: Int[Tensor, " row"] | Float[Tensor, " row"]) -> Float[Tensor, " row"]:
        """Ranks, of which 1 is best, as numbers of which larger is better: n + 1 - rank. The one place that turns an order round."""
        return (self.sizes[self.group] + 1 - rank).to(torch.float32)

    def ranks(self, values: Float[Tensor, " row"]) -> Float[Tensor, " row"]:
        """The rank of each row in its list, 1 for the largest; equal values share the mean of their ranks."""
        first, second = self.pairs
        ahead = (values[second] > values[first]).to(values.dtype) + (values[second] == values[first]).to(values.dtype) / 2
        return 1 + segment_sum(ahead, first, len(values))

    def places(self, values: Float[Tensor, " row"]) -> Float[Tensor, " row"]:
        """The same without ties: of equal values the earlier row comes first, so that each place of a list is taken once."""
        first, second = self.pairs
        ahead = (values[second] > values[first]) | (values[second] == values[first]) & (second < first)
        return 1 + segment_sum(ahead.to(values.dtype), first, len(values))

    def soft_ranks(self, scores: Float[Tensor, " row"], width: float) -> Float[Tensor, " row"]:
        r"""$1 + \sum_{j \ne i} \sigma((s_j - s_i) / w)$: the ranks at w to 0, (n + 1) / 2 at w to infinity; of a list they always add up alike."""
        first, second = self.pairs
        return 1 + segment_sum(torch.sigmoid((scores[second] - scores[first]) / width), first, len(scores))


class AbstractLists(Objective):
    """Compares the scores of the candidates of each list: one value a list, and larger scores are better everywhere."""

    against: Against = "teacher"

    @property
    def unit(self) -> str:
        return "group"

    @property
    def needs(self) -> Needs:
        return {"student": ("score",), "teacher": ("score",)} if self.against == "teacher" else {"student": ("score", self.against)}

    def values(self, student: Signals, teacher: Signals | None = None) -> Float[Tensor, " group"]:
        lists = Lists(student.group)
        scores = upcast(student["score"])
        target = student[self.against] if teacher is None else teacher["score"]
        target = lists.best_first(target) if self.against == "rank" else target
        labels = (student["relevance"],) if "relevance" in self.needs["student"] and self.against != "relevance" else ()
        return self.of_lists(scores, target.detach().to(scores.dtype), lists, *labels)

    @abstractmethod
    def of_lists(self, scores: Float[Tensor, " row"], target: Float[Tensor, " row"], lists: Lists, *labels: Tensor) -> Float[Tensor, " group"]:
        """The value of each list; `target` does not learn, and larger is better."""
