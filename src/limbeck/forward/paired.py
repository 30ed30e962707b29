"""Every role looks at its own view."""

from typing import Literal

from limbeck.forward.base import Forward


class Paired(Forward):
    """Runs each role once, on its own view: the ordinary case, for text, images and anything else.

    Example:
        >>> Paired().requires({"student": ("logits",)})
        {'student': ('logits',)}

    References:
        Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network, 2015, arXiv:1503.02531.
    """

    kind: Literal["paired"] = "paired"

    def __call__(self, models, batch, needs):
        return {role: models.says(role, batch, names) for role, names in needs.items()}
