"""Regression of ranks."""

from typing import Annotated, Literal

from pydantic import Field

from limbeck.objective._lists import AbstractLists


class AdrMSE(AbstractLists):
    r"""Squared distance of the student's smooth ranks from the teacher's ranks, discounted so that the top of a list counts most.

    $$ \frac{1}{n} \sum_i d_i (\pi_i - r_i)^2, \qquad r_i = 1 + \sum_{j \ne i} \sigma\!\left(\frac{s_j - s_i}{w}\right),
       \quad d_i = \frac{1}{\log_2(\pi_i + 1)} $$

    Ranks $\pi$ count from 1; candidates that the teacher does not tell apart share the mean of their ranks, so that the order of rows does not
    matter. One value a list. Its size grows with the length of lists: compare runs of one depth. Choose it where the top of long lists is
    what counts; `rank_net` weighs all pairs alike.

    Example:
        >>> AdrMSE(discount="none").width
        1.0

    References:
        Schlatt et al., Rank-DistiLLM, 2025, arXiv:2405.07920 (approximate discounted rank MSE).
    """

    kind: Literal["adr_mse"] = "adr_mse"
    against: Literal["teacher", "given_score", "rank", "relevance"] = "teacher"
    """Whose order: the scores of the teacher; or of the data, scores, ranks (1 is best), or labels."""
    width: Annotated[float, Field(gt=0)] = 1.0
    """Of the step by which one candidate passes another (the temperature of smooth ranks): towards 0 smooth ranks become ranks."""
    discount: Literal["log2", "reciprocal", "none"] = "log2"
    r"""What a candidate counts: $1 / \log_2(\pi + 1)$, $1 / \pi$, or 1."""

    def of_lists(self, scores, target, lists):
        rank = lists.ranks(target)
        weight = {"log2": 1 / (rank + 1).log2(), "reciprocal": 1 / rank, "none": rank.new_ones(len(rank))}[self.discount]
        return lists.mean(weight * (rank - lists.soft_ranks(scores, self.width)).square())
