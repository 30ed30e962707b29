"""A mixer that looks back, run in both directions."""

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator
from torch import nn

from limbeck.block.base import AnyMixer, Attention, Mixer, Shape
from limbeck.block.gated_delta_net import GatedDeltaNet


class Bidirectional(Mixer):
    r"""A mixer that looks back, run over a row and over the row read backwards: the mean of both.

    $$ y = \tfrac{1}{2} \big( \mathrm{mixer}(x) + R\, \mathrm{mixer}(R\, x) \big), \qquad R \text{ reverses the positions of a row} $$

    So each position sees the whole row, in time and memory that grow with its length, not with its square. Where one mixer reads in both
    directions, reversing what comes in reverses what comes out: a distance to the right is then turned as one to the left is, also where it takes
    over the queries and keys of attention with rotary positions, which tells both apart. For models that are not causal: masked
    language models, models of DNA, whose strands read either way. It keeps no state, and cannot decode.

    Example:
        >>> Bidirectional().causal
        False

    References:
        Schiff et al., Caduceus: Bi-Directional Equivariant Long-Range DNA Sequence Modeling, 2024, arXiv:2403.03234 (weights shared by directions).
        Yang et al., HAD: Hybrid Architecture Distillation Outperforms Teacher in Genomic Sequence Modeling, 2025, arXiv:2505.20836.
    """

    kind: Literal["bidirectional"] = "bidirectional"
    causal: ClassVar[bool] = False
    mixer: AnyMixer = GatedDeltaNet()
    """What reads in each direction."""
    shared: bool = Field(default=True)
    """Whether one mixer reads in both directions; false: each direction has weights of its own, which begin alike where they are copied."""

    @model_validator(mode="after")
    def looks_back(self) -> "Bidirectional":
        if not self.mixer.causal:
            raise ValueError("mixer: one that looks back alone")
        return self

    def spec(self, shape: Shape) -> dict[str, Any]:
        one = self.mixer.spec(shape)
        return self.numbers(ahead=one) if self.shared else self.numbers(ahead=one, back=one)

    def begin(self, module: nn.Module, taught: Attention) -> dict[str, str]:
        copied = {}
        for name in ("ahead",) if self.shared else ("ahead", "back"):
            begun = self.mixer.begin(getattr(module, name), taught)
            copied |= {f"{name}.{key}": value for key, value in begun.items()}
        return copied

    def state_bytes(self, shape: Shape, length: int, itemsize: int = 4) -> int:
        return 0

    def flops(self, shape: Shape, length: int) -> float:
        return 2 * self.mixer.flops(shape, length)
