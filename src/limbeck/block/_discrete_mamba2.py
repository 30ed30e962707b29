"""Mamba-2 without a step size, in the place of attention.

This file is carried along beside exported weights: it imports torch, and its neighbours.
"""

import torch
from torch import nn
from torch.nn import functional as F

from limbeck.block._linear_mixing import LinearMixing
from limbeck.block._mixing import per_query

ONE = 1.278464542761
"""silu of it is 1."""


class DiscreteMamba2(LinearMixing):
    """q, k and v are C, B and x in the words of state space models. A head fades by exp(-softplus(a)); v also goes past the state, times D."""

    def __init__(self, width, heads, key_dim, value_dim, conv, kv_heads=None, bias=False, out_bias=False, norm_eps=None, layer_idx=0):
        super().__init__(width, heads, key_dim, value_dim, kv_heads, conv=conv, bias=bias, out_bias=out_bias, norm_eps=norm_eps, layer_idx=layer_idx)
        self.a_proj = nn.Linear(width, heads, bias=False)
        self.z_proj = nn.Linear(width, heads * value_dim, bias=False)
        self.z_bias = nn.Parameter(torch.full_like(self.z_proj.weight[:, 0], ONE))
        self.D = nn.Parameter(torch.ones_like(self.a_proj.weight[:, 0]))
        nn.init.zeros_(self.z_proj.weight)

    def rates(self, q, k, v, x, rope):
        return q, per_query(k, self.heads), per_query(v, self.heads), -F.softplus(self.a_proj(x))

    def read(self, o, v):
        return o + self.D[:, None] * v

    def materialize(self, x, rope, mask, heads=slice(None)):
        matrix, v = super().materialize(x, rope, mask, heads)
        return matrix + torch.diag_embed(self.D[heads, None].expand(-1, matrix.shape[-1])), v

    def output(self, o, x):
        return self.o_proj(o.transpose(1, 2).flatten(2) * F.silu(self.z_proj(x) + self.z_bias))
