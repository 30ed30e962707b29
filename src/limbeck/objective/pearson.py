"""Correlation of scores."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from limbeck.objective._lists import AbstractLists


class Pearson(AbstractLists):
    r"""One minus the correlation of the student's scores with the teacher's, within each list.

    $$ 1 - \frac{\sum_i (s_i - \bar s)(t_i - \bar t)}{\sqrt{\sum_i (s_i - \bar s)^2 \sum_i (t_i - \bar t)^2 + \epsilon^2}} $$

    Neither where the student's scores begin nor how far they spread is asked for: scores of a teacher of another kind, a cosine say, need no
    scaling. A list of one candidate, or one that the teacher does not tell apart, gives 1 and no gradient. With two candidates only the order
    counts, and its gradient is 0: use longer lists.

    Example:
        >>> Pearson(against="rank").needs
        {'student': ('score', 'rank')}

    References:
        Huang et al., Knowledge Distillation from A Stronger Teacher, 2022, arXiv:2205.10536 (correlation in place of divergence).
    """

    kind: Literal["pearson"] = "pearson"
    zero_at_match: ClassVar[tuple[str, str] | None] = ("student", "teacher")
    against: Literal["teacher", "given_score", "rank", "relevance"] = "teacher"
    """Whose scores: of the teacher; or of the data, scores, ranks (1 is best), or labels."""
    epsilon: Annotated[float, Field(gt=0)] = 1e-6
    """Keeps the quotient finite where either side says the same of all."""

    def of_lists(self, scores, target, lists):
        s, t = (x - lists.mean(x)[lists.group] for x in (scores, target))
        return 1 - lists.sum(s * t) / (lists.sum(s.square()) * lists.sum(t.square()) + self.epsilon**2).sqrt()
