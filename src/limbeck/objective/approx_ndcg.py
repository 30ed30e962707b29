"""A smooth nDCG."""

from typing import Annotated, Literal

from pydantic import Field

from limbeck.objective._lists import AbstractLists


class ApproxNDCG(AbstractLists):
    r"""One minus the discounted gain of a list by its smooth ranks, over that of the best order.

    $$ 1 - \frac{\sum_i (2^{t_i} - 1) / \log_2(1 + r_i)}{\sum_i (2^{t_i} - 1) / \log_2(1 + \pi_i)}, \qquad
       r_i = 1 + \sum_{j \ne i} \sigma\!\left(\frac{s_j - s_i}{w}\right) $$

    t are graded labels (0 is not relevant), $\pi$ the ranks of the best order. A list without a relevant candidate gives 0. Close to what is
    reported, and flat where scores lie far apart: begin with `info_nce`, and keep the width near the spread of scores.

    Example:
        >>> ApproxNDCG(width=0.1).against
        'relevance'

    References:
        Qin, Liu and Li, A general approximation framework for direct optimization of information retrieval measures, 2010.
    """

    kind: Literal["approx_ndcg"] = "approx_ndcg"
    against: Literal["relevance"] = "relevance"
    """Graded labels of the data."""
    width: Annotated[float, Field(gt=0)] = 1.0
    """Of the step by which one candidate passes another (the temperature of smooth ranks)."""

    def of_lists(self, scores, target, lists):
        gain = 2 ** target.clamp(min=0) - 1
        order = lists.places(target)
        best = lists.sum(gain / (1 + order).log2())
        got = lists.sum(gain / (1 + lists.soft_ranks(scores, self.width)).log2())
        return (best > 0) * (1 - got / best.clamp(min=1e-9))
