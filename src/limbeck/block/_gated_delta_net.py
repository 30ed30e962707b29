"""A gated delta rule in the place of attention.

This file is carried along beside exported weights: it imports torch, and its neighbours.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

from limbeck.block._delta_rule import delta_matrix, gated_delta_rule, gated_delta_rule_steps
from limbeck.block._linear_mixing import LinearMixing
from limbeck.block._linear_recurrence import upcast
from limbeck.block._mixing import HeadNorm, per_query


class GatedDeltaNet(LinearMixing):
    """Queries and keys of length 1, after SiLU; a head fades by exp(-exp(A_log) softplus(a + dt_bias)) and writes at the rate sigmoid(b)."""

    in_chunks = staticmethod(gated_delta_rule)
    in_steps = staticmethod(gated_delta_rule_steps)
    as_matrix = staticmethod(delta_matrix)

    def __init__(self, width, heads, key_dim, value_dim, kv_heads=None, conv=0, bias=False, out_bias=False, norm_eps=None, layer_idx=0):
        super().__init__(width, heads, key_dim, value_dim, kv_heads, conv=conv, bias=bias, out_bias=out_bias, norm_eps=norm_eps, layer_idx=layer_idx)
        self.a_proj, self.b_proj = (nn.Linear(width, heads, bias=False) for _ in range(2))
        self.g_proj = nn.Linear(width, heads * value_dim, bias=False)
        self.o_norm = HeadNorm(value_dim, eps=1e-5)
        draw = torch.empty_like(self.a_proj.weight[:, 0])
        self.A_log = nn.Parameter(draw.uniform_(1, 16).log())
        step = draw.uniform_(math.log(1e-3), math.log(1e-1)).exp()
        self.dt_bias = nn.Parameter(step + torch.log(-torch.expm1(-step)))  # softplus of it is the step

    def rates(self, q, k, v, x, rope):
        q, k, a, log_rate, bias = upcast(F.silu(q), F.silu(k), self.a_proj(x), self.A_log, self.dt_bias)
        q, k = (F.normalize(part, dim=-1, eps=1e-6) for part in (q, k))
        k, v = (per_query(part, self.heads) for part in (k, v))
        return q, k, v, self.b_proj(x).sigmoid(), -log_rate.exp() * F.softplus(a + bias)

    def output(self, o, x):
        gate = F.silu(self.g_proj(x))
        return self.o_proj(self.o_norm(o).transpose(1, 2).flatten(2) * gate)
