"""Nothing in the place of attention.

This file is carried along beside exported weights: it imports torch alone.
"""

from limbeck.block._mixing import Mixing


class NoMixer(Mixing):
    """Adds nothing to the residual stream. It learns nothing and remembers nothing."""

    def __init__(self, layer_idx=0):
        super().__init__(layer_idx)

    def mix(self, x, rope, mask, state):
        return x.new_zeros(x.shape), {}

    def step(self, x, rope, mask, state):
        return self.mix(x, rope, mask, state)

    def materialize(self, x, rope, mask):
        return x.new_zeros(len(x), 1, x.shape[1], x.shape[1]), x[:, None]

    def output(self, o, x):
        return o[:, 0]
