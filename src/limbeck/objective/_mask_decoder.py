"""A decoder that is thrown away: it asks what is visible of a row what stands in its hidden places."""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F


class MaskDecoder(nn.Module):
    """One query a hidden place, made of its position; one attention over the visible states of its row; then logits, for each place by itself."""

    def __init__(self, width: int, inner: int, heads: int, classes: int):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = nn.Linear(inner, inner), nn.Linear(width, inner), nn.Linear(width, inner)
        self.place = nn.Linear(inner, inner, bias=False)
        self.empty = nn.Parameter(torch.randn_like(self.query.bias) / math.sqrt(inner))
        self.states, self.norm, self.inside = nn.LayerNorm(width), nn.LayerNorm(inner), nn.LayerNorm(inner)
        self.up, self.down, self.out = nn.Linear(inner, 2 * inner), nn.Linear(2 * inner, inner), nn.Linear(inner, classes)

    def forward(
        self, states: Float[Tensor, "pos dim"], asked: Bool[Tensor, " pos"], row: Int[Tensor, " pos"], num: int
    ) -> Float[Tensor, "target vocab"]:
        """Args:
        states: of all positions of all rows, end to end.
        asked: hidden positions, of which logits are wanted.
        row: of each position, ascending.
        num: rows.
        """
        place = torch.arange(len(row), device=row.device) - torch.searchsorted(row, row)
        at = sinusoids(place, self.empty.shape[0]).to(self.empty)
        seen, x = self.states(states[~asked]), self.empty + at[asked]
        keys = self.key(seen) + self.place(at[~asked])
        q, there = padded(self.query(x), row[asked], num)
        (k, sees), (v, _) = (padded(part, row[~asked], num) for part in (keys, self.value(seen)))
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (q, k, v))
        allowed = (sees | ~sees.any(-1, keepdim=True))[:, None, None]  # a row of which nothing is visible reads zeros
        x = x + F.scaled_dot_product_attention(q, k, v, attn_mask=allowed).transpose(1, 2).flatten(2)[there]
        x = x + self.down(F.gelu(self.up(self.inside(x))))
        return self.out(self.norm(x))


def padded(x: Float[Tensor, "pos dim"], row: Int[Tensor, " pos"], num: int) -> tuple[Float[Tensor, "row most dim"], Bool[Tensor, "row most"]]:
    """Positions of rows, each row from its own first place on, and which places are there."""
    sizes = torch.bincount(row, minlength=num)
    most = max(int(sizes.max()), 1) if num else 1
    there = torch.arange(most, device=x.device) < sizes[:, None]
    return x.new_zeros(num, most, x.shape[-1]).masked_scatter(there[..., None], x), there


def sinusoids(place: Int[Tensor, " pos"], dim: int) -> Float[Tensor, "pos dim"]:
    """Waves of 2 pi to 62,832 positions (10,000 times as many), their sine and cosine, evenly spread over the logarithm of their lengths."""
    rate = torch.exp(torch.arange(dim // 2, device=place.device) * (-math.log(10_000.0) / max(dim // 2 - 1, 1)))
    angle = place[:, None] * rate
    return torch.cat([angle.sin(), angle.cos()], -1)
