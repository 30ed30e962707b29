"""Each candidate by itself, with a margin."""

from typing import Literal

from limbeck.objective._lists import AbstractLists


class PointwiseHinge(AbstractLists):
    r"""How far each candidate's score falls short of a margin on the side of its label; the mean over a list.

    $$ \frac{1}{n} \sum_i \max(0,\, 1 - y_i s_i), \qquad y_i = 1 \text{ if relevant, else } -1 $$

    From labels alone; candidates beyond the margin teach nothing more. To be compared with objectives that look at a list as a whole.

    Example:
        >>> PointwiseHinge().needs
        {'student': ('score', 'relevance')}

    References:
        Cortes and Vapnik, Support-vector networks, Machine Learning 20, 1995.
    """

    kind: Literal["pointwise_hinge"] = "pointwise_hinge"
    against: Literal["relevance"] = "relevance"
    """Labels of the data: above 0 is relevant."""

    def of_lists(self, scores, target, lists):
        return lists.mean((1 - scores * (2 * (target > 0).to(scores.dtype) - 1)).clamp(min=0))
