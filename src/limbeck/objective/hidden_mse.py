"""Regression of hidden states."""

from typing import Literal

from limbeck.objective.base import AbstractLayers


class HiddenMSE(AbstractLayers):
    r"""Mean squared error between (mapped) student states and teacher states.

    $$ \frac{1}{|M|} \sum_{(i,j) \in M} \frac{\| W_{ij} h^S_i - h^T_j \|^2}{d_T} $$

    W is learned where the widths differ, and thrown away afterwards. Sensitive to the few channels that a large model
    lets grow huge; `hidden_cosine` is not.

    Example:
        >>> HiddenMSE(layers=(2, 4)).needs["student"]
        ('hidden.2', 'hidden.4')

    References:
        Jiao et al., TinyBERT, 2020, arXiv:1909.10351, equation 8.
        Udagawa et al., A Comparative Analysis of Task-Agnostic Distillation Methods, 2023, arXiv:2310.08797.
    """

    kind: Literal["hidden_mse"] = "hidden_mse"

    def distance(self, a, b):
        return (a - b).square().mean(-1)
