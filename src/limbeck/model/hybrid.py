"""Models whose blocks hold other modules than their family has: their classes, and how a stock model becomes one."""

import copy
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import transformers
from torch import nn

from limbeck.block._hybrid import blocks_of, hybrid_classes, put
from limbeck.block._mixing import hear_padding
from limbeck.block.base import module_of
from limbeck.model.anatomy import anatomy, family_files, read_family
from limbeck.model.blocks import stands_alone
from limbeck.model.text import Text

AUTO: dict[bool, tuple[Any, Any]] = {
    True: (transformers.AutoModelForCausalLM, transformers.MODEL_FOR_CAUSAL_LM_MAPPING),
    False: (transformers.AutoModelForMaskedLM, transformers.MODEL_FOR_MASKED_LM_MAPPING),
}
"""Whether a family is causal -> transformers' class for any of its kind, and which families those are."""
Parts = Sequence[Mapping[str, Mapping[str, Any]]]
"""For each block: place in the block -> kind and numbers of the module that stands there."""


@cache
def hybrid(family: str) -> tuple[type, type]:
    """Config and language model of a family whose blocks may hold other modules; known to transformers' Auto classes from then on."""
    config_class = transformers.AutoConfig.for_model(family).__class__
    auto, mapping = AUTO[read_family(family_files()[family]).causal]
    model_class = mapping[config_class]
    config, model = hybrid_classes(config_class, model_class, module_of, hear_padding)
    for made in (config, model):
        made.__module__ = __name__
        globals()[made.__name__] = made  # found by its name, as pickle and deepcopy look for it
    transformers.AutoConfig.register(config.model_type, config, exist_ok=True)
    auto.register(config, model, exist_ok=True)
    return config, model


def register() -> None:
    """Lets transformers' Auto classes open the hybrids of every known family that limbeck has written, without the code beside their weights."""
    for family, path in family_files().items():
        found, known = read_family(path), family in transformers.models.auto.configuration_auto.CONFIG_MAPPING
        if known and (found.causal or stands_alone(anatomy(family))):
            hybrid(family)


def become(role: Text, parts: Parts, modules: Mapping[tuple[int, str], nn.Module]) -> None:
    """Turns the model of a role, in place, into one with other modules in some places; all other weights stay the same tensors.

    Args:
        role: speaks for a language model of a known family, stock or hybrid already.
        parts: what its config will say, for each block.
        modules: (block, place) -> the module to put there.
    """
    module: Any = role.module
    family = anatomy(module).family.family
    config_class, model_class = hybrid(family)
    old = module.config
    if type(module) is not model_class:
        module.__class__ = model_class
        module.base_model.register_forward_pre_hook(hear_padding, with_kwargs=True)
    fields = {name: value for name, value in old.to_dict().items() if name not in ("model_type", "architectures", "layer_parts")}
    config = config_class(**copy.deepcopy(fields), layer_parts=[{place: dict(spec) for place, spec in some.items()} for some in parts])
    config.architectures = [model_class.__name__]
    config._attn_implementation = old._attn_implementation
    for part in module.modules():
        if getattr(part, "config", None) is old:
            part.config = config
    for (layer, place), made in modules.items():
        put(blocks_of(module)[layer], place, made)
    role.hear_parts()


def parts_of(module: Any) -> list[dict[str, dict[str, Any]]]:
    """What stands in the places of each block, as its config says; nothing for a stock model."""
    return [dict(parts) for parts in getattr(module.config, "layer_parts", None) or [{}] * len(blocks_of(module))]
