"""No norm.

This file is carried along beside exported weights: it imports torch alone.
"""

from torch import nn


class NoNorm(nn.Module):
    """What stands in the place of a norm before or behind a part that was taken out: a norm there would hear or say nothing that matters."""

    def __init__(self, layer_idx=0):
        super().__init__()

    def forward(self, x):
        return x
