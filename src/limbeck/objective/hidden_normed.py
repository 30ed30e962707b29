"""Direction and distance of normalised hidden states."""

from typing import Annotated, Literal

import torch
from pydantic import Field

from limbeck.objective.base import AbstractLayers


class HiddenNormed(AbstractLayers):
    r"""One minus the cosine between normalised student states (mapped) and teacher states, and a share of their distance.

    $$ 1 - \cos(\hat a, \hat b) + \frac{\lambda}{d} \sum_{j=1}^{d} \mathrm{smooth}_1(\hat a_j - \hat b_j), \qquad
       \hat a = \frac{a - \bar a}{\sqrt{\mathrm{var}(a) + \epsilon}}, \quad
       \mathrm{smooth}_1(x) = \begin{cases} x^2 / 2 & |x| < 1 \\ |x| - 1/2 & \text{else} \end{cases} $$

    Each state is normalised over its d channels first, so that neither their size nor their mean counts, nor do a few channels that are much larger
    than the others outweigh them. To be chosen between models of unlike kinds, whose states are of unlike size from layer to layer; where
    blocks are to stand in for each other, `hidden_l2` says more.

    Example:
        >>> HiddenNormed(signal="chunk_hidden").unit
        'chunk'

    References:
        Yang et al., HAD: Hybrid Architecture Distillation Outperforms Teacher in Genomic Sequence Modeling, 2025, arXiv:2505.20836.
    """

    kind: Literal["hidden_normed"] = "hidden_normed"
    distance_weight: Annotated[float, Field(ge=0)] = 0.1
    """Weight of the distance beside the cosine."""

    def distance(self, a, b):
        a, b = (torch.nn.functional.layer_norm(x, x.shape[-1:]) for x in (a, b))
        far = torch.nn.functional.smooth_l1_loss(a, b, reduction="none").mean(-1)
        return 1 - torch.nn.functional.cosine_similarity(a, b, dim=-1) + self.distance_weight * far
