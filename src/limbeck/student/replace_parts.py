"""Other mixers and MLPs, block by block."""

from typing import ClassVar, Literal

from pydantic import Field

from limbeck.block.base import AnyFeedForward, AnyMixer, Block
from limbeck.component import Document
from limbeck.errors import Refused
from limbeck.model.base import Role
from limbeck.model.blocks import causal
from limbeck.student._parts import begun, put_parts
from limbeck.student.base import Surgery

WHERE = "student.surgery  replace_parts"


class Parts(Document):
    """What stands in a block; what is left out stays as it is."""

    mixer: AnyMixer | None = None
    """In the place of attention."""
    mlp: AnyFeedForward | None = None
    """In the place of the MLP."""

    @property
    def named(self) -> dict[str, Block]:
        """Part of the anatomy -> what replaces it."""
        return {part: block for part, block in (("mixer", self.mixer), ("mlp", self.mlp)) if block is not None}


class ReplaceParts(Surgery):
    r"""Puts other mixers and MLPs into blocks, in each block others; everything else is copied.

    $$ h \leftarrow h + \mathrm{mixer}_l(\mathrm{norm}(h)), \qquad h \leftarrow h + \mathrm{mlp}_l(\mathrm{norm}(h)) $$

    What a search has chosen (`limbeck.search`) is written so. Each part takes over what fits its formula of what stood there. For one and
    the same mixer in many blocks `linearize` is shorter; for one and the same width everywhere `keep_width` gives a stock class.

    Example:
        >>> ReplaceParts(blocks=({}, {"mixer": {"kind": "grouped_attention", "kv_heads": 1}, "mlp": "no_mlp"})).policy
        'carried'

    References:
        Bercovich et al., Puzzle: Distillation-Based NAS for Inference-Optimized LLMs, 2024, arXiv:2411.19146.
    """

    kind: Literal["replace_parts"] = "replace_parts"
    policy: ClassVar[Literal["stock", "import", "carried"]] = "carried"
    blocks: tuple[Parts, ...] = Field(min_length=1)
    """For each block what stands there; `{}`: all as it was."""
    seed: int = Field(default=0, json_schema_extra={"since": 2})
    """Of all that is drawn: weights that are not copied."""

    @classmethod
    def example(cls) -> "ReplaceParts":
        parts = ({"mixer": {"kind": "grouped_attention"}, "mlp": "narrow_mlp"}, {}, {"mixer": "self_value", "mlp": "no_mlp"}, {"mlp": "linear_mlp"})
        return cls.model_validate({"blocks": parts})

    def __call__(self, role: Role) -> Role:
        role = causal(role, WHERE)
        if len(self.blocks) != role.num_layers or not any(parts.named for parts in self.blocks):
            got = f"{len(self.blocks)} blocks, {sum(bool(parts.named) for parts in self.blocks)} of them changed"
            raise Refused("layer", WHERE, f"{role.num_layers} blocks, one at least changed", got, "one entry a block: {} for one that stays")
        chosen = enumerate(self.blocks)
        put_parts(role, {layer: {part: begun(block, role, layer, self.seed) for part, block in parts.named.items()} for layer, parts in chosen})
        return role
