"""Regression of differences of scores."""

from typing import ClassVar, Literal

from limbeck.objective._lists import AbstractLists
from limbeck.signals import Needs


class MarginMSE(AbstractLists):
    r"""Squared difference of the margins by which student and teacher put one candidate before another.

    $$ \frac{1}{|P|} \sum_{(i,j) \in P} \big((s_i - s_j) - (t_i - t_j)\big)^2 $$

    P are the pairs with $t_i > t_j$, or each relevant candidate with each other one. A constant added to all scores of a list changes nothing,
    so that student and teacher need not agree on what 0 is; they must agree on the scale. It needs scores: of a teacher that only orders, take
    `rank_net`.

    Example:
        >>> MarginMSE(pairs="labelled").needs["student"]
        ('score', 'relevance')

    References:
        Hofstätter et al., Improving Efficient Neural Ranking Models with Cross-Architecture Knowledge Distillation, 2020, arXiv:2010.02666.
    """

    kind: Literal["margin_mse"] = "margin_mse"
    zero_at_match: ClassVar[tuple[str, str] | None] = ("student", "teacher")
    against: Literal["teacher", "given_score"] = "teacher"
    """Whose margins: of the teacher's scores, or of those that the data came with."""
    pairs: Literal["ordered", "labelled"] = "ordered"
    """ordered: all pairs that the teacher tells apart; labelled: each relevant candidate with each that is not."""

    @property
    def needs(self) -> Needs:
        seats = super().needs
        return seats if self.pairs == "ordered" else {**seats, "student": (*seats["student"], "relevance")}

    def of_lists(self, scores, target, lists, *labels):
        first, second = lists.pairs
        picked = target[first] > target[second] if not labels else (labels[0][first] > 0) & (labels[0][second] <= 0)
        first, second = first[picked], second[picked]
        return lists.mean_of(((scores[first] - scores[second]) - (target[first] - target[second])).square(), first)
