"""Linear attention whose channels of keys each fade at a rate of their own, in the place of attention.

This file is carried along beside exported weights: it imports torch, and its neighbours.
"""

from torch import nn
from torch.nn import functional as F

from limbeck.block._linear_mixing import LinearMixing
from limbeck.block._linear_recurrence import upcast
from limbeck.block._mixing import HeadNorm


class GatedLinearAttention(LinearMixing):
    """A channel of a head's keys fades by sigmoid(a)^(1 / temperature), with a from the input through `rank` channels."""

    def __init__(self, width, heads, key_dim, value_dim, scale, rank, temperature, bias=False, out_bias=False, norm_eps=None, layer_idx=0):
        super().__init__(width, heads, key_dim, value_dim, bias=bias, out_bias=out_bias, norm_eps=norm_eps, layer_idx=layer_idx)
        self.scale, self.temperature = scale, temperature
        self.a_proj = nn.Sequential(nn.Linear(width, rank, bias=False), nn.Linear(rank, heads * key_dim))
        self.g_proj = nn.Linear(width, heads * value_dim)
        self.o_norm = HeadNorm(value_dim, eps=1e-5)

    def rates(self, q, k, v, x, rope):
        (a,) = upcast(self.a_proj(x))
        return q * self.scale, k, v, F.logsigmoid(a).unflatten(-1, (self.heads, -1)) / self.temperature

    def output(self, o, x):
        gate = F.silu(self.g_proj(x))
        return self.o_proj(self.o_norm(o).transpose(1, 2).flatten(2) * gate)
