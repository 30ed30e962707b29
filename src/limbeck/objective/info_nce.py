"""Contrast of what is relevant with the rest of its list."""

from typing import Literal

from torch.nn.functional import softplus

from limbeck.numerics import segment_logsumexp
from limbeck.objective._lists import AbstractLists


class InfoNCE(AbstractLists):
    r"""Negative log-probability of the relevant candidate in a softmax over the scores of its list, from labels alone.

    $$ -\frac{1}{|R|} \sum_{i \in R} \log \frac{e^{s_i}}{e^{s_i} + \sum_{j \notin R} e^{s_j}} $$

    R are the candidates labelled relevant: with one, and the others drawn from the top of a first ranking, this is localized contrastive
    estimation. Of several, none pushes another down. A list without a relevant candidate, or with nothing else, gives 0. Choose it to begin a
    ranker from labels, and beside a distilled one as what labels alone reach.

    Example:
        >>> InfoNCE().needs
        {'student': ('score', 'relevance')}

    References:
        van den Oord, Li and Vinyals, Representation Learning with Contrastive Predictive Coding, 2018, arXiv:1807.03748.
        Gao, Dai and Callan, Rethink Training of BERT Rerankers in Multi-Stage Retrieval Pipeline, 2021, arXiv:2101.08751.
    """

    kind: Literal["info_nce"] = "info_nce"
    against: Literal["relevance"] = "relevance"
    """Labels of the data: above 0 is relevant."""

    def of_lists(self, scores, target, lists):
        relevant = (target > 0).nonzero()[:, 0]
        others = (target <= 0).nonzero()[:, 0]
        rest = segment_logsumexp(scores[others], lists.group[others], lists.num)
        return lists.mean_of(softplus(rest[lists.group[relevant]] - scores[relevant]), relevant)
