"""Contrast of what is relevant with every other document of the window."""

from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor
from torch.nn.functional import softplus

from limbeck.numerics import upcast
from limbeck.objective._lists import Lists
from limbeck.objective.base import Objective
from limbeck.signals import Needs, Signals

SAME = 1e-6
"""Documents whose cosine is as close to 1 are the same text."""


class InBatchNCE(Objective):
    r"""Negative log-probability of a query's relevant documents among all documents of the window, those of other queries too.

    $$ -\frac{1}{|R_q|} \sum_{i \in R_q} \log \frac{e^{f \cos(q, d_i)}}{e^{f \cos(q, d_i)} + \sum_{j \notin R_q} e^{f \cos(q, d_j)}} $$

    $R_q$ are the documents labelled relevant for q; a text that is one of them and stands in another list as well is no negative. Documents of
    other queries cost a bi-encoder nothing, and many of them make a good start: choose it for bi-encoders, with large windows. `micro` keeps
    memory small all the same: each micro-batch is then run twice. Cross-encoders score pairs only: `info_nce`. A query without a relevant
    document gives 0.

    Example:
        >>> InBatchNCE(factor=50).needs
        {'student': ('query_embedding', 'embedding', 'relevance')}

    References:
        Karpukhin et al., Dense Passage Retrieval for Open-Domain Question Answering, 2020, arXiv:2004.04906.
        Gao et al., Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup, 2021, arXiv:2101.06983 (micro-batches run twice).
    """

    kind: Literal["in_batch_nce"] = "in_batch_nce"
    whole: ClassVar[bool] = True
    factor: float = Field(default=20.0, gt=0)
    """Cosines are multiplied by it: one over the temperature."""

    @property
    def unit(self) -> str:
        return "group"

    @property
    def needs(self) -> Needs:
        return {"student": ("query_embedding", "embedding", "relevance")}

    def values(self, student: Signals) -> Float[Tensor, " group"]:
        lists, documents = Lists(student.group), upcast(student["embedding"])
        scores = self.factor * upcast(student["query_embedding"]) @ documents.T
        relevant = (student["relevance"] > 0).nonzero()[:, 0]
        others = scores[relevant].masked_fill(~self.negatives(student), -torch.inf).logsumexp(-1)
        return lists.mean_of(softplus(others - scores[relevant, relevant]), relevant)

    def negatives(self, student: Signals) -> Bool[Tensor, "relevant row"]:
        """For each relevant document, what it is held against: all that is not relevant for its query."""
        group, found = student.group, student["relevance"] > 0
        mine = (group[:, None] == group[None]) & found  # of the query of each row, the rows that are relevant
        unit = torch.nn.functional.normalize(upcast(student["embedding"].detach()), dim=-1)
        same = (unit @ unit.T) > 1 - SAME
        return ~((mine.float() @ same.float()) > 0)[found]
