"""Each candidate by itself, as relevant or not."""

from typing import Literal

from torch.nn.functional import softplus

from limbeck.objective._lists import AbstractLists


class PointwiseBCE(AbstractLists):
    r"""Binary cross-entropy of each candidate's label, its score read as log-odds; the mean over a list.

    $$ \frac{1}{n} \sum_i \log\big(1 + e^{-y_i s_i}\big), \qquad y_i = 1 \text{ if relevant, else } -1 $$

    From labels alone. Scores become probabilities that mean something across queries, which ranking does not need: relative objectives
    (`info_nce`, `rank_net`, `margin_mse`) rank better. The plain thing to compare with.

    Example:
        >>> PointwiseBCE().unit
        'group'

    References:
        Nogueira and Cho, Passage Re-ranking with BERT, 2019, arXiv:1901.04085.
    """

    kind: Literal["pointwise_bce"] = "pointwise_bce"
    against: Literal["relevance"] = "relevance"
    """Labels of the data: above 0 is relevant."""

    def of_lists(self, scores, target, lists):
        return lists.mean(softplus(scores * (1 - 2 * (target > 0).to(scores.dtype))))
