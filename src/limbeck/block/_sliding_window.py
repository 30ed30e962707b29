"""Attention over the last positions and the first few.

This file is carried along beside exported weights: it imports torch, and its neighbours.
"""

import torch
from torch.nn.functional import scaled_dot_product_attention

from limbeck.block._grouped_attention import GroupedAttention
from limbeck.block._mixing import per_query


class SlidingWindow(GroupedAttention):
    """Attention whose position t sees position s <= t if t - s < window, or s < sinks. Keys are kept as they were turned."""

    def __init__(self, *sizes, window, sinks, **more):
        super().__init__(*sizes, **more)
        self.window, self.sinks = window, sinks

    def within(self, now, then):
        """[B, t, s] whether a position sees another one; -1: not there."""
        gap = now[:, :, None] - then[:, None]
        return (gap >= 0) & (then[:, None] >= 0) & ((gap < self.window) | (then[:, None] < self.sinks))

    def places(self, x, mask, seen):
        """The position of each in its row, [B, T]; -1 where it is not there. `seen` [B]: positions before these."""
        there = torch.ones(x.shape[:2], dtype=torch.long, device=x.device) if mask is None else mask.long()
        return torch.where(there > 0, there.cumsum(1) - 1 + seen[:, None], -1)

    def over(self, q, k, v, sees):
        """[B, T, H, D] from keys that are seen; a position that sees none is not there, and sees all so that it stays finite."""
        sees = (sees | ~sees.any(-1, keepdim=True))[:, None]
        q, k, v = (per_query(part, self.heads).transpose(1, 2) for part in (q, k, v))
        return scaled_dot_product_attention(q, k, v, attn_mask=sees, scale=self.scale).transpose(1, 2)

    def begin(self, x, k):
        """The state before the first position: places for the first `sinks` and the last `window`, none taken."""
        num = self.sinks + self.window
        empty = k.new_zeros(len(x), num, *k.shape[2:])
        where = torch.full((len(x), num), -1, dtype=torch.long, device=x.device)
        return {"k": empty, "v": empty, "place": where, "seen": where.new_zeros(len(x))}

    def mix(self, x, rope, mask, state):
        q, k, v = self.project(x, rope)
        state = state or self.begin(x, k)
        now, num = self.places(x, mask, state["seen"]), self.sinks + self.window
        k, v, place = self.line_up(state, k, v, now, mask)
        order = None if mask is None else mask.long().argsort(dim=1, stable=True)
        q, now = (q, now) if order is None else (self.pick(q, order), now.gather(1, order))
        first = self.first(place)
        chunk, out = max(self.window, 64), []
        for i in range(0, x.shape[1], chunk):
            j = min(i + chunk, x.shape[1])
            late = slice(i + self.sinks + 1, num + j)  # from the last `window` before the first of these on
            where = torch.cat([first[1], torch.where(place[:, late] < self.sinks, -1, place[:, late])], 1)
            keys, values = (torch.cat([self.pick(part, first[0]), part[:, late]], 1) for part in (k, v))
            out.append(self.over(q[:, i:j], keys, values, self.within(now[:, i:j], where)))
        state = {"seen": state["seen"] + (now >= 0).sum(1), **self.keep(k, v, place, first)}
        o = torch.cat(out, 1)
        o = o if order is None else self.pick(o, order.argsort(1))
        return self.output(o.transpose(1, 2), x), state

    def line_up(self, state, k, v, now, mask):
        """All keys, values and their positions, of each row those first that are not there: what lies next to each other is then next in the text."""
        k, v, place = (torch.cat(pair, 1) for pair in ((state["k"], k), (state["v"], v), (state["place"], now)))
        if mask is None:
            return k, v, place
        order = (place >= 0).long().argsort(dim=1, stable=True)
        return self.pick(k, order), self.pick(v, order), place.gather(1, order)

    def first(self, place):
        """Where the first `sinks` positions of each row are among the keys, [B, sinks], and their positions, -1 where they have not been."""
        found = place[:, None] == torch.arange(self.sinks, device=place.device)[:, None]  # [B, sinks, keys]
        index = found.long().argmax(-1) if self.sinks else place[:, :0]
        return index, torch.where(found.any(-1), place.gather(1, index), -1)

    def pick(self, x, index):
        """Of each row the positions at places of its own."""
        return x.gather(1, index[:, :, None, None].expand(-1, -1, *x.shape[2:]))

    def keep(self, k, v, place, first):
        """What is needed of all keys later: the first `sinks`, and the last `window` which are none of them."""
        index, where = first
        last = place[:, place.shape[1] - self.window :]
        where = torch.cat([where, torch.where(last < self.sinks, -1, last)], 1)
        there = (where >= 0)[:, :, None, None]
        kept = {name: torch.cat([self.pick(x, index), x[:, x.shape[1] - self.window :]], 1) * there for name, x in (("k", k), ("v", v))}
        return {"place": where, **kept}

    def step(self, x, rope, mask, state):
        q, k, v = self.project(x, rope)
        now = self.places(x, mask, state["seen"])
        k, v, place = self.line_up(state, k, v, now, mask)
        o = self.over(q, k, v, self.within(now, place))
        state = {"seen": state["seen"] + (now >= 0).sum(1), **self.keep(k, v, place, self.first(place))}
        return self.output(o.transpose(1, 2), x), state

    def materialize(self, x, rope, mask):
        q, k, v = self.project(x, rope)
        now = self.places(x, mask, torch.zeros(len(x), dtype=torch.long, device=x.device))
        q, k, v = (per_query(part, self.heads).transpose(1, 2) for part in (q, k, v))
        sees = self.within(now, now)
        scores = (q @ k.mT * self.scale).masked_fill(~(sees | ~sees.any(-1, keepdim=True))[:, None], float("-inf"))
        return scores.float().softmax(-1).to(v.dtype) if scores.dtype != torch.float64 else scores.softmax(-1), v
