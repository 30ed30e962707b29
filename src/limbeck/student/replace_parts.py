"""Other mixers and MLPs, block by block."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from limbeck.block.base import AnyFeedForward, AnyMixer, Block, Mixer, module_of
from limbeck.block.no_mixer import NoMixer
from limbeck.block.no_mlp import NoMlp
from limbeck.component import Document
from limbeck.errors import Refused
from limbeck.model.base import Role
from limbeck.model.blocks import attention_of, causal, mlp_of
from limbeck.model.text import Text
from limbeck.numerics import Streams
from limbeck.student.base import Surgery

WHERE = "student.surgery  replace_parts"
NORMS = {"mixer": ("mixer_norm", "mixer_post_norm"), "mlp": ("mlp_norm", "mlp_post_norm")}
"""Around a part."""
NO_NORM = {"kind": "no_norm"}
SILENT = (NoMixer, NoMlp)
"""Kinds that say nothing: the norms around them go with them."""


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

    @classmethod
    def example(cls) -> "ReplaceParts":
        parts = ({"mixer": {"kind": "grouped_attention"}, "mlp": "narrow_mlp"}, {}, {"mixer": "self_value", "mlp": "no_mlp"}, {"mlp": "linear_mlp"})
        return cls.model_validate({"blocks": parts})

    def __call__(self, role: Role) -> Role:
        role = causal(role, WHERE)
        if len(self.blocks) != role.num_layers or not any(parts.named for parts in self.blocks):
            got = f"{len(self.blocks)} blocks, {sum(bool(parts.named) for parts in self.blocks)} of them changed"
            raise Refused("layer", WHERE, f"{role.num_layers} blocks, one at least changed", got, "one entry a block: {} for one that stays")
        put_parts(role, {layer: {part: begun(block, role, layer) for part, block in parts.named.items()} for layer, parts in enumerate(self.blocks)})
        return role


@dataclass(frozen=True)
class Begun:
    """A part for one block."""

    block: Block
    spec: dict[str, Any]
    module: nn.Module
    copied: dict[str, str]
    """Name of each parameter that was taken over -> from where."""


def begun(block: Block, role: Text, layer: int) -> Begun:
    """The part that a block describes, for one block of a model, as it begins; what is new in it does not depend on the stream of the process."""
    taught: Any = attention_of(role.module, layer) if isinstance(block, Mixer) else mlp_of(role.module, layer)
    spec, like = block.spec(taught.shape), next(iter(taught.weights.values()))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(Streams(0).number(block.place, layer))
        module = module_of(spec, layer).to(like)
    return Begun(block, spec, module.train(role.module.training), block.begin(module, taught))


def put_parts(role: Text, chosen: Mapping[int, Mapping[str, Begun]]) -> None:
    """Puts parts into blocks of a role, in place: it is then a model of its own class, whose config says what stands where.

    Norms around a part that was taken out go with it: they would never learn.
    """
    from limbeck.model.hybrid import become, parts_of  # with it comes transformers, which a recipe that only names parts does not need
    from limbeck.student.linearize import note

    anatomy, parts, made, aside = role.anatomy, parts_of(role.module), {}, {}
    for layer, some in chosen.items():
        for part, new in some.items():
            silent = isinstance(new.block, SILENT)
            norms = [anatomy.place(norm) for norm in NORMS[part] if anatomy.has(norm)] if silent else []
            parts[layer] = {**parts[layer], anatomy.place(part): new.spec, **dict.fromkeys(norms, NO_NORM)}
            made |= {(layer, anatomy.place(part)): new.module, **{(layer, norm): module_of(NO_NORM, layer) for norm in norms}}
            note(role, layer, anatomy.place(part), new.module, new.copied)
            if part == "mixer" and not silent:
                aside[layer] = role.module.get_submodule(anatomy.path("mixer", layer))
    become(role, parts, made)
    role.aside = {**role.aside, **aside}
