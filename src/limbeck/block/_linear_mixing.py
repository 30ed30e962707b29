"""What mixers have in common whose state is a matrix a head, which fades, and to which each position adds.

This file is carried along beside exported weights: it imports torch, and its neighbours.
"""

from typing import Any

import torch
from torch import nn

from limbeck.block._linear_recurrence import linear_matrix, linear_recurrence, linear_recurrence_steps
from limbeck.block._mixing import HeadNorm, Mixing
from limbeck.block._short_convolution import ShortConvolution


class LinearMixing(Mixing):
    """Queries, keys and values of each head, and a recurrence over them: `linear_recurrence`, or another rule with the same three forms.

    A mixer writes `rates` and `output`, and `read` where what was read is not yet what is put out. With `conv` taps, queries, keys and values first
    go through a short convolution. State: `memory` [B, H, K, V], and `conv`, the last inputs of the convolution.
    """

    in_chunks: Any = staticmethod(linear_recurrence)
    in_steps: Any = staticmethod(linear_recurrence_steps)
    as_matrix: Any = staticmethod(linear_matrix)

    def __init__(self, width, heads, key_dim, value_dim, kv_heads=None, conv=0, bias=False, out_bias=False, norm_eps=None, layer_idx=0):
        super().__init__(layer_idx)
        self.heads, self.kv_heads = heads, kv_heads or heads
        self.q_proj = nn.Linear(width, heads * key_dim, bias=bias)
        self.k_proj = nn.Linear(width, self.kv_heads * key_dim, bias=bias)
        self.v_proj = nn.Linear(width, self.kv_heads * value_dim, bias=bias)
        self.o_proj = nn.Linear(heads * value_dim, width, bias=out_bias)
        self.q_norm, self.k_norm = (nn.Identity() if norm_eps is None else HeadNorm(key_dim, eps=norm_eps) for _ in range(2))
        self.conv = ShortConvolution(sum(self.widths()), conv) if conv else None

    def widths(self):
        return [part.out_features for part in (self.q_proj, self.k_proj, self.v_proj)]

    def project(self, x, mask, state):
        """Queries [B, T, H, K], keys and values [B, T, heads of keys, .], and what the next positions must know of these, as a dict."""
        parts, more = [part(x) for part in (self.q_proj, self.k_proj, self.v_proj)], {}
        if self.conv is not None:
            joined, more["conv"] = self.conv(torch.cat(parts, -1), mask, None if state is None else state["conv"])
            parts = joined.split(self.widths(), -1)
        q, k, v = (part.unflatten(-1, (heads, -1)) for part, heads in zip(parts, (self.heads, self.kv_heads, self.kv_heads), strict=True))
        return self.q_norm(q), self.k_norm(k), v, more

    def rates(self, q, k, v, x, rope):
        """What the rule is given: q, k and v of H heads, what else there is a head and position, and last the log of the decay (None: no decay)."""
        raise NotImplementedError

    def read(self, o, v):
        """What was read, [B, T, H, V], as it is put out."""
        return o

    def heard(self, x, rope, mask, state):
        """What the rule is given, where nothing is written and nothing fades at positions that are not there."""
        q, k, v, more = self.project(x, mask, state)
        q, *written, decay = self.rates(q, k, v, x, rope)
        if mask is not None:
            gone = ~mask[:, :, None]
            written = [part.masked_fill(gone if part.ndim == 3 else gone[..., None], 0) for part in written]
            decay = decay if decay is None else decay.masked_fill(gone if decay.ndim == 3 else gone[..., None], 0)
        return (q, *written, decay), more

    def run(self, form, x, rope, mask, state):
        parts, more = self.heard(x, rope, mask, state)
        o, memory = form(*parts, None if state is None else state["memory"])
        return self.output(self.read(o, parts[2]).transpose(1, 2), x), {**more, "memory": memory}

    def mix(self, x, rope, mask, state):
        return self.run(self.in_chunks, x, rope, mask, state)

    def step(self, x, rope, mask, state):
        return self.run(self.in_steps, x, rope, mask, state)

    def materialize(self, x, rope, mask, heads=slice(None)):
        """Of some heads: no other one's matrix is made."""
        q, k, v, *more = self.heard(x, rope, mask, None)[0]
        more = (part if part is None else part[:, :, heads] for part in more)
        return self.as_matrix(q[:, :, heads], k[:, :, heads], *more), v[:, :, heads].transpose(1, 2)

    def of_heads(self, x, rope, mask, pick):
        return self.materialize(x, rope, mask, pick(self.heads))[0]
