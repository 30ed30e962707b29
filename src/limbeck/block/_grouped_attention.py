"""Attention with keys and values for groups of query heads.

This file is carried along beside exported weights: it imports torch alone.
"""

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from limbeck.block._mixing import HeadNorm, Mixing, per_query, rotate


class GroupedAttention(Mixing):
    """Attention whose query head j reads key head j // group. Its state holds the keys, as they were turned, and the values that are still seen: all,
    or those of the last positions where each sees a `window` alone, itself among it."""

    def __init__(self, width, heads, kv_heads, head_dim, scale, bias=False, out_bias=False, rotary=True, norm_eps=None, window=None, layer_idx=0):
        super().__init__(layer_idx)
        self.window = window
        self.heads, self.kv_heads, self.head_dim, self.scale, self.rotary = heads, kv_heads, head_dim, scale, rotary
        self.q_proj = nn.Linear(width, heads * head_dim, bias=bias)
        self.k_proj = nn.Linear(width, kv_heads * head_dim, bias=bias)
        self.v_proj = nn.Linear(width, kv_heads * head_dim, bias=bias)
        self.o_proj = nn.Linear(heads * head_dim, width, bias=out_bias)
        self.q_norm, self.k_norm = (nn.Identity() if norm_eps is None else HeadNorm(head_dim, eps=norm_eps) for _ in range(2))

    def project(self, x, rope):
        """Queries [B, T, H, D], keys and values [B, T, heads of keys, D]."""
        q, k, v = (part(x).unflatten(-1, (-1, self.head_dim)) for part in (self.q_proj, self.k_proj, self.v_proj))
        rope = rope if self.rotary else None
        return rotate(self.q_norm(q), rope), rotate(self.k_norm(k), rope), v

    def mix(self, x, rope, mask, state):
        q, k, v = self.project(x, rope)
        there = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if mask is None else mask
        if state is None and mask is None and (self.window is None or x.shape[1] <= self.window):
            y = self.attend(q, k, v, None)
        else:
            if state is not None:
                k, v, there = (torch.cat([state[name], new], 1) for name, new in (("k", k), ("v", v), ("there", there)))
            y = self.attend(q, k, v, self.sees(there, q.shape[1]))
        if mask is not None:  # a place where no row has a position is none
            some = there.any(0)
            k, v, there = k[:, some], v[:, some], there[:, some]
        if self.window is not None:
            place = there.cumsum(1)
            needed = (there & (place[:, -1:] - place < self.window - 1)).any(0)
            k, v, there = (part[:, int(needed.long().argmax()) if needed.any() else len(needed) :] for part in (k, v, there))
        return self.output(y, x), {"k": k, "v": v, "there": there}

    def step(self, x, rope, mask, state):
        return self.mix(x, rope, mask, state)

    def sees(self, there, num):
        """[B, 1, t, s] whether each of the last `num` places sees a place; one that sees none is not there, and sees all so that it stays finite."""
        slot = torch.arange(there.shape[1], device=there.device)
        sees = there[:, None] & (slot <= slot[len(slot) - num :, None])
        if self.window is not None:  # counted in positions that are there
            place = there.cumsum(1)
            sees &= place[:, place.shape[1] - num :, None] - place[:, None] < self.window
        return (sees | ~sees.any(-1, keepdim=True))[:, None]

    def attend(self, q, k, v, sees):
        """[B, H, T, D]; without `sees` each position sees those up to itself."""
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        return scaled_dot_product_attention(q, k, v, attn_mask=sees, is_causal=sees is None, scale=self.scale, enable_gqa=True)

    def materialize(self, x, rope, mask):
        q, k, v = self.project(x, rope)
        there = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if mask is None else mask
        q, k, v = (per_query(part, self.heads).transpose(1, 2) for part in (q, k, v))
        scores = (q @ k.mT * self.scale).masked_fill(~self.sees(there, x.shape[1]), float("-inf"))
        return scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(v.dtype), v

    def output(self, o, x):
        return self.o_proj(o.transpose(1, 2).flatten(2))
