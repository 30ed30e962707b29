"""Order, pair by pair."""

from typing import Literal

from torch.nn.functional import softplus

from limbeck.objective._lists import AbstractLists


class RankNet(AbstractLists):
    r"""How surely the student puts each two candidates in the order of the teacher: a logistic loss on the difference of their scores.

    $$ \frac{1}{|P|} \sum_{(i,j) \in P} \log(1 + e^{s_j - s_i}), \qquad P = \{(i, j) : t_i > t_j\} $$

    The mean over all pairs of a list that the teacher tells apart, one value a list. Only the order of t counts, so it takes scores as well
    as the ranks that a re-ranker gave without scores (`against: rank`). Choose it for orders; `margin_mse` also uses how far scores lie
    apart, where there are any.

    Example:
        >>> RankNet(against="rank").needs
        {'student': ('score', 'rank')}

    References:
        Burges et al., Learning to rank using gradient descent, ICML 2005.
        Schlatt et al., Rank-DistiLLM, 2025, arXiv:2405.07920.
    """

    kind: Literal["rank_net"] = "rank_net"
    against: Literal["teacher", "given_score", "rank", "relevance"] = "teacher"
    """Whose order: the scores of the teacher; or of the data, scores, ranks (1 is best), or labels."""

    def of_lists(self, scores, target, lists):
        first, second = lists.pairs
        ordered = target[first] > target[second]
        first, second = first[ordered], second[ordered]
        return lists.mean_of(softplus(scores[second] - scores[first]), first)
