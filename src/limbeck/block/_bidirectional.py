"""A mixer that looks back, run in both directions.

This file is carried along beside exported weights: it imports torch, and its neighbours.
"""

import torch

from limbeck.block._mixing import Mixing


class Bidirectional(Mixing):
    """The mean of what a mixer says of a row and of what it, or a second one, says of the row read backwards."""

    causal = False

    def __init__(self, ahead, back=None, layer_idx=0):
        super().__init__(layer_idx)
        self.ahead = ahead
        self.back = back

    def behind(self):
        """The mixer that reads backwards: the same one, where there is no second."""
        return self.ahead if self.back is None else self.back

    def mix(self, x, rope, mask, state):
        if state is not None:
            raise ValueError("this block looks ahead: it does not go on from a state")
        forth = self.ahead.mix(x, rope, mask, None)[0]
        back = self.behind().mix(*backwards(x, rope, mask), None)[0]
        return (forth + back.flip(1)) / 2, {}

    def step(self, x, rope, mask, state):
        raise ValueError("this block looks ahead: it cannot take one position after the other")

    def materialize(self, x, rope, mask):
        """The heads of the one direction, then those of the other."""
        matrix, values = self.ahead.materialize(x, rope, mask)
        turned, others = (part.flip(2) for part in self.behind().materialize(*backwards(x, rope, mask)))
        return torch.cat([matrix, turned.flip(3)], 1), torch.cat([values, others], 1)

    def output(self, o, x):
        forth, back = o.chunk(2, 1)
        return (self.ahead.output(forth, x) + self.behind().output(back.flip(2), x.flip(1)).flip(1)) / 2


def backwards(x, rope, mask):
    """A row read from its end: angles turn the other way, so that a distance to the right is turned as one to the left is."""
    rope = None if rope is None else (rope[0].flip(1), -rope[1].flip(1))
    return x.flip(1), rope, None if mask is None else mask.flip(1)
