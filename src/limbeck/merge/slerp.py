"""On the arc between two models."""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field

from limbeck.merge.base import Merge, filled, parts

PARALLEL = 0.9995
"""Cosine beyond which the arc is a line to all purposes; the customary value."""


class Slerp(Merge):
    r"""Goes from the first model to the second along the arc between them, tensor by tensor.

    $$ \theta = \frac{\sin((1 - t)\,\omega)}{\sin\omega} \, \theta_a + \frac{\sin(t\,\omega)}{\sin\omega} \, \theta_b, \qquad
       \cos\omega = \frac{\theta_a \cdot \theta_b}{\|\theta_a\| \, \|\theta_b\|} $$

    Where a plain average would shorten weights that point in different directions, the arc keeps their size. Tensors that lie nearly in one
    line, as those of students from one start do, and tensors that are 0 are averaged.

    Example:
        >>> Slerp(of=("a", "b"), t=0.3).t
        0.3

    References:
        Shoemake, Animating rotation with quaternion curves, 1985, SIGGRAPH.
    """

    kind: Literal["slerp"] = "slerp"
    pair: ClassVar[bool] = True
    t: Annotated[float, Field(ge=0, le=1)] = 0.5
    """How far to go: 0 is the first, 1 the second."""

    def __call__(self, name, tensors, base):
        first, second = (t.reshape(-1) for t in tensors)
        sums = torch.zeros(3, dtype=torch.float64, device=first.device)
        for part in parts(first.numel()):
            a, b = first[part].double(), second[part].double()
            sums += torch.stack([a @ a, b @ b, a @ b])
        size = sums[:2].sqrt().prod()
        cosine = (sums[2] / size).clamp(-1, 1) if size > 0 else sums.new_ones(())
        angle = cosine.acos()

        def along(part: slice) -> torch.Tensor:
            a, b = first[part].double(), second[part].double()
            if cosine.abs() > PARALLEL:
                return a + self.t * (b - a)
            return (((1 - self.t) * angle).sin() * a + (self.t * angle).sin() * b) / angle.sin()

        return filled(tensors[0], ((part, along(part)) for part in parts(first.numel())))
