"""Two mixers side by side.

This file is carried along beside exported weights: it imports torch, and its neighbours.
"""

import torch
from torch import nn

from limbeck.block._mixing import Mixing


class GatedSum(Mixing):
    """A share of what the first of two mixers says, and the rest of what the second does; each position and channel has a share of its own."""

    def __init__(self, width, first, second, layer_idx=0):
        super().__init__(layer_idx)
        self.first, self.second = first, second
        self.gate = nn.Linear(width, width)

    def share(self, x, y, z):
        return torch.lerp(z, y, self.gate(x).sigmoid())

    def run(self, form, x, rope, mask, state):
        """Both, each with its part of the state."""
        out, after = [], {}
        for name in ("first", "second"):
            own = None if state is None else {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}
            y, own = getattr(getattr(self, name), form)(x, rope, mask, own)
            out.append(y)
            after |= {f"{name}.{key}": value for key, value in own.items()}
        return self.share(x, *out), after

    def mix(self, x, rope, mask, state):
        return self.run("mix", x, rope, mask, state)

    def step(self, x, rope, mask, state):
        return self.run("step", x, rope, mask, state)

    def materialize(self, x, rope, mask):
        """The heads of the first, then those of the second; narrower values are filled up with zeros."""
        pairs = [part.materialize(x, rope, mask) for part in (self.first, self.second)]
        self.heads, self.widths = [values.shape[1] for _, values in pairs], [values.shape[-1] for _, values in pairs]
        values = [nn.functional.pad(values, (0, max(self.widths) - values.shape[-1])) for _, values in pairs]
        return torch.cat([matrix for matrix, _ in pairs], 1), torch.cat(values, 1)

    def output(self, o, x):
        parts = zip((self.first, self.second), o.split(self.heads, 1), self.widths, strict=True)
        return self.share(x, *(part.output(some[..., :width], x) for part, some, width in parts))
