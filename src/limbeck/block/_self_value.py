"""Each position reads its own value.

This file is carried along beside exported weights: it imports torch alone.
"""

import torch
from torch import nn

from limbeck.block._mixing import Mixing


class SelfValue(Mixing):
    """One matrix in the place of attention: what attention would say of a row of one position. It remembers nothing."""

    def __init__(self, width, bias=False, layer_idx=0):
        super().__init__(layer_idx)
        self.proj = nn.Linear(width, width, bias=bias)

    def mix(self, x, rope, mask, state):
        return self.proj(x), {}

    def step(self, x, rope, mask, state):
        return self.mix(x, rope, mask, state)

    def materialize(self, x, rope, mask):
        return torch.eye(x.shape[1], dtype=x.dtype, device=x.device).expand(len(x), 1, -1, -1), self.proj(x)[:, None]

    def output(self, o, x):
        return o[:, 0]
