"""Guidance: how far beyond what a condition says a denoiser is pushed, in a named convention."""

from typing import Annotated, Literal

from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from limbeck.component import Document
from limbeck.noise.base import spread
from limbeck.numerics import upcast

Range = Annotated[tuple[float, float], Field(min_length=2, max_length=2)]


class Guidance(Document):
    r"""Classifier-free guidance. The two conventions of its scale differ by one, so that none is assumed.

    $$ \tilde x = x_\varnothing + s\,(x_c - x_\varnothing), \qquad s = \text{scale (cfg)} = 1 + \text{scale (extra)} $$

    Of a prediction that is linear in the clean sample and the noise it does not matter which one is guided.

    Example:
        >>> Guidance(scale=7.5, convention="cfg").factor(7.5) == Guidance(scale=6.5, convention="extra").factor(6.5)
        True
    """

    scale: float | Range
    """One number, or two ends between which one is drawn for each row."""
    convention: Literal["cfg", "extra"]
    """cfg: 1 is off, as samplers of diffusers count (and Imagen); extra: 0 is off, as in latent consistency models."""

    @model_validator(mode="after")
    def in_order(self) -> "Guidance":
        low, high = self.ends
        if low > high or low < (1 if self.convention == "cfg" else 0):
            off = 1 if self.convention == "cfg" else 0
            raise ValueError(f"scale: at least {off}, which is off in the convention {self.convention}, and its lower end first")
        return self

    @property
    def ends(self) -> tuple[float, float]:
        return self.scale if isinstance(self.scale, tuple) else (self.scale, self.scale)

    @property
    def off(self) -> bool:
        """Whether it changes nothing: then nobody is asked without a condition."""
        return self.factor(self.ends[1]) == 1

    def drawn(self, share: Float[Tensor, " row"]) -> Float[Tensor, " row"]:
        """Scales in this convention, from numbers between 0 and 1."""
        low, high = self.ends
        return low + share * (high - low)

    def factor(self, scale: float) -> float:
        """What the difference that a condition makes is multiplied by."""
        return scale if self.convention == "cfg" else 1 + scale


def guided(
    with_condition: Float[Tensor, "row *axes"], without: Float[Tensor, "row *axes"], factor: Float[Tensor, " row"]
) -> Float[Tensor, "row *axes"]:
    """A prediction pushed away from what is said without a condition; factor 1 is no guidance."""
    with_condition, without = upcast(with_condition), upcast(without)
    return without + spread(factor, without) * (with_condition - without)
