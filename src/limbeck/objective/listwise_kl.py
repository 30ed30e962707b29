"""Divergence of the distributions over a list."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from limbeck.numerics import segment_log_softmax
from limbeck.objective._lists import AbstractLists


class ListwiseKL(AbstractLists):
    r"""KL divergence from the teacher to the student, each read as a softmax over the scores of a list.

    $$ T^2 \, \mathrm{KL}\big(\mathrm{softmax}(t / T) \,\|\, \mathrm{softmax}(s / T)\big) $$

    One value a list, in nats. A constant added to all scores of a list changes nothing. It looks mostly at what the teacher puts first; raise
    T to hear more of the rest. Needs scores: of a teacher that only orders, take `rank_net`.

    Example:
        >>> ListwiseKL(temperature=2.0).needs
        {'student': ('score',), 'teacher': ('score',)}

    References:
        Cao et al., Learning to Rank: From Pairwise Approach to Listwise Approach, ICML 2007.
        Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network, 2015, arXiv:1503.02531.
    """

    kind: Literal["listwise_kl"] = "listwise_kl"
    zero_at_match: ClassVar[tuple[str, str] | None] = ("student", "teacher")
    against: Literal["teacher", "given_score"] = "teacher"
    """Whose scores: those of the teacher, or those that the data came with."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Softens both distributions; the loss is scaled back by its square."""

    def of_lists(self, scores, target, lists):
        log_q, log_p = (segment_log_softmax(x / self.temperature, lists.group, lists.num) for x in (scores, target))
        return lists.sum(log_p.exp() * (log_p - log_q)) * self.temperature**2
