"""Attention whose weights are products of learned features, in the place of attention.

This file is carried along beside exported weights: it imports torch, and its neighbours.
"""

import torch
from torch import nn

from limbeck.block._linear_mixing import LinearMixing
from limbeck.block._linear_recurrence import upcast
from limbeck.block._mixing import per_query, rotate


def one_softmax(u):
    """Over u and -u together, twice as sharp."""
    return torch.cat([2 * u, -2 * u], -1).softmax(-1)


def two_softmaxes(u):
    """Of u and of -u, each by itself."""
    return torch.cat([u.softmax(-1), (-u).softmax(-1)], -1)


FEATURES = {form.__name__: form for form in (one_softmax, two_softmaxes)}


class FeatureMap(nn.Module):
    """u [B, T, H, D] -> features [B, T, H, 2 D], all above 0, of u times a matrix a head, which begins as the identity."""

    def __init__(self, heads, dim, form):
        super().__init__()
        self.form = form
        self.weight = nn.Parameter(torch.eye(dim, device=torch.get_default_device()).repeat(heads, 1, 1))

    def forward(self, u):
        (u,) = upcast(torch.einsum("bthd,hed->bthe", u, self.weight))
        return FEATURES[self.form](u)


class LinearAttention(LinearMixing):
    """Queries and keys are turned by their positions as in attention, then mapped. A last channel of ones among the values sums up the weights."""

    def __init__(self, width, heads, kv_heads, head_dim, feature_map, bias=False, out_bias=False, rotary=True, norm_eps=None, layer_idx=0):
        super().__init__(width, heads, head_dim, head_dim, kv_heads, bias=bias, out_bias=out_bias, norm_eps=norm_eps, layer_idx=layer_idx)
        self.rotary = rotary
        self.q_map, self.k_map = (FeatureMap(heads, head_dim, feature_map) for _ in range(2))

    def rates(self, q, k, v, x, rope):
        rope = rope if self.rotary else None
        q, k, v = rotate(q, rope), per_query(rotate(k, rope), self.heads), per_query(v, self.heads)
        (v,) = upcast(torch.cat([v, torch.ones_like(v[..., :1])], -1))
        return self.q_map(q), self.k_map(k), v, None

    def read(self, o, v):
        return o[..., :-1] / above_zero(o[..., -1:])

    def materialize(self, x, rope, mask, heads=slice(None)):
        matrix, v = super().materialize(x, rope, mask, heads)
        return matrix / above_zero(matrix.sum(-1, keepdim=True)), v[..., :-1]

    def output(self, o, x):
        return self.o_proj(o.transpose(1, 2).flatten(2).to(x.dtype))


def above_zero(total):
    """Sums of weights; 1 where there are none, as at positions that are not there."""
    return torch.where(total > 0, total, 1)
