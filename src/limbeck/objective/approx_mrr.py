"""A smooth reciprocal rank."""

from typing import Annotated, Literal

from pydantic import Field

from limbeck.objective._lists import AbstractLists


class ApproxMRR(AbstractLists):
    r"""One minus the reciprocal of the smallest smooth rank of a relevant candidate.

    $$ 1 - \max_{i \in R} \frac{1}{r_i}, \qquad r_i = 1 + \sum_{j \ne i} \sigma\!\left(\frac{s_j - s_i}{w}\right) $$

    From labels: only the relevant candidate that is first already is lifted further. A list without one gives 0.

    Example:
        >>> ApproxMRR().width
        1.0

    References:
        Qin, Liu and Li, A general approximation framework for direct optimization of information retrieval measures, 2010.
    """

    kind: Literal["approx_mrr"] = "approx_mrr"
    against: Literal["relevance"] = "relevance"
    """Labels of the data: above 0 is relevant."""
    width: Annotated[float, Field(gt=0)] = 1.0
    """Of the step by which one candidate passes another (the temperature of smooth ranks)."""

    def of_lists(self, scores, target, lists):
        relevant = (target > 0).nonzero()[:, 0]
        found = 1 / lists.soft_ranks(scores, self.width)[relevant]
        best = found.new_zeros(lists.num).scatter_reduce(0, lists.group[relevant], found, "amax")
        return (best > 0) * (1 - best)
