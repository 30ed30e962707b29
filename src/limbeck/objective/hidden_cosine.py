"""Direction of hidden states."""

from typing import Literal

import torch

from limbeck.objective.base import AbstractLayers


class HiddenCosine(AbstractLayers):
    r"""One minus the cosine between (mapped) student states and teacher states.

    $$ \frac{1}{|M|} \sum_{(i,j) \in M} 1 - \cos(W_{ij} h^S_i,\; h^T_j) $$

    Only the direction counts, so channels of large norm do not drown the rest, and the scale of the student's states
    stays free: a final norm undoes it.

    Example:
        >>> HiddenCosine().needs["teacher"]
        ('hidden.-1',)

    References:
        Sanh et al., DistilBERT, 2019, arXiv:1910.01108.
    """

    kind: Literal["hidden_cosine"] = "hidden_cosine"

    def distance(self, a, b):
        return 1 - torch.nn.functional.cosine_similarity(a, b, dim=-1)
