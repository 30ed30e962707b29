"""Other mixers in the place of attention."""

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from limbeck.block.base import AnyMixer
from limbeck.block.sliding_window import SlidingWindow
from limbeck.errors import Refused
from limbeck.model.base import Role
from limbeck.model.blocks import convertible
from limbeck.student._parts import begun, put_parts
from limbeck.student.base import Surgery

WHERE = "student.surgery  linearize"


class Linearize(Surgery):
    r"""Puts another mixer in the place of attention, in some blocks or all; everything else is copied.

    $$ h \leftarrow h + \mathrm{mixer}(\mathrm{norm}(h)) \quad\text{where}\quad h \leftarrow h + \mathrm{attention}(\mathrm{norm}(h)) \text{ was} $$

    With mixers that keep a state of constant size, memory no longer grows with the text, and each further token takes the same time. The
    mixer takes over the weights of attention where they fit its formula, and must learn the rest: matrices first, then states, then the end
    (`forward: layerwise`). Blocks that stay attention keep what a state forgets; `restore_attention` finds which. Blocks count from 0.

    In a model that sees both sides of a position, such as ModernBERT, the mixer is `bidirectional`.

    The replaced attention is kept beside the role until it is exported, for `restore_attention`.

    Example:
        >>> Linearize(keep=(0, 5)).policy
        'carried'

    References:
        Bick et al., Transformers to SSMs: Distilling Quadratic Knowledge to Subquadratic Models, 2024, arXiv:2408.10189.
    """

    kind: Literal["linearize"] = "linearize"
    policy: ClassVar[Literal["stock", "import", "carried"]] = "carried"
    mixer: AnyMixer = SlidingWindow()
    """What stands in the place of attention."""
    layers: tuple[int, ...] | Literal["all"] = "all"
    """Blocks that are converted."""
    keep: tuple[int, ...] = Field(default=())
    """Blocks that stay attention, where all others are converted."""
    seed: int = Field(default=0, json_schema_extra={"since": 2})
    """Of all that is drawn: weights that are not copied."""

    @model_validator(mode="after")
    def either_way(self) -> "Linearize":
        if self.layers != "all" and self.keep:
            raise ValueError("either layers, the blocks that are converted, or keep, those that stay; not both")
        return self

    def converted(self, num: int) -> list[int]:
        """The blocks that are converted, out of `num`.

        Raises:
            Refused: `layer`, for one that is not there, or if none is left.
        """
        named = self.keep if self.layers == "all" else self.layers
        wrong = [i for i in named if not 0 <= i < num]
        found = [i for i in range(num) if (i not in self.keep if self.layers == "all" else i in self.layers)]
        if wrong or not found:
            got = f"block {wrong[0]}" if wrong else "none to convert"
            raise Refused("layer", WHERE, f"some of the blocks 0 to {num - 1}", got, "change layers, or keep")
        return found

    def __call__(self, role: Role) -> Role:
        role = convertible(role, WHERE)
        put_parts(role, {layer: {"mixer": begun(self.mixer, role, layer, self.seed)} for layer in self.converted(role.num_layers)})
        return role
