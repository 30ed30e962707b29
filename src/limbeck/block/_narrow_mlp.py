"""An MLP with an inner width of its own.

This file is carried along beside exported weights: it imports torch and transformers alone.
"""

from torch import nn
from transformers.activations import ACT2FN


class NarrowMlp(nn.Module):
    """down(act(gate x) * up x), or down(act(up x)) where there is no gate."""

    def __init__(self, width, inner, activation, gated=True, bias=False, out_bias=False, layer_idx=0):
        super().__init__()
        self.gate_proj = nn.Linear(width, inner, bias=bias) if gated else None
        self.up_proj = nn.Linear(width, inner, bias=bias)
        self.down_proj = nn.Linear(inner, width, bias=out_bias)
        self.act_fn = ACT2FN[activation]

    def forward(self, x):
        up = self.up_proj(x)
        return self.down_proj(self.act_fn(up) if self.gate_proj is None else self.act_fn(self.gate_proj(x)) * up)
