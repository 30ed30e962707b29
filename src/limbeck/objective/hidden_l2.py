"""Distance of hidden states."""

from typing import Literal

import torch

from limbeck.objective.base import AbstractLayers


class HiddenL2(AbstractLayers):
    r"""Euclidean distance, not squared, between (mapped) student states and teacher states.

    $$ \frac{1}{|M|} \sum_{(i,j) \in M} \frac{\| W_{ij} h^S_i - h^T_j \|}{s}, \qquad s = 1 \text{ or } \sqrt{d_T} $$

    A position that is far off pulls no harder than one that is near, where the squared error of `hidden_mse` is ruled by the
    few positions (often the first of a row) whose states are huge. Its gradient has the same length however small the gap is,
    so the learning rate must fall for it to settle; at a gap of zero it is zero. With `signal: mixer` and `forward: layerwise`
    it aligns what stands in the place of attention while the teacher's states go on.

    Example:
        >>> HiddenL2(layers=(2, 4), signal="mixer").needs["student"]
        ('mixer.2', 'mixer.4')

    References:
        Bick et al., Transformers to SSMs: Distilling Quadratic Knowledge to Subquadratic Models, 2024, arXiv:2408.10189 (stage 2).
        Li et al., Distilling to Hybrid Attention Models via KL-Guided Layer Selection, 2025, arXiv:2512.20569 (stage 1: by the root of the width).
    """

    kind: Literal["hidden_l2"] = "hidden_l2"
    by_width: bool = False
    """Divided by the root of the width, so that models of all widths lie on one scale."""

    def distance(self, a, b):
        return torch.linalg.vector_norm(a - b, dim=-1) / (b.shape[-1] ** 0.5 if self.by_width else 1)
