"""Parts for single blocks of a role: as they begin, and put in their places."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from limbeck.block.base import Block, Mixer, module_of
from limbeck.block.no_mixer import NoMixer
from limbeck.block.no_mlp import NoMlp
from limbeck.errors import Refused
from limbeck.model.adapters import adapted
from limbeck.model.blocks import attention_of, mlp_of
from limbeck.model.quantised import quantised
from limbeck.model.text import Text
from limbeck.numerics import Streams

NORMS = {"mixer": ("mixer_norm", "mixer_post_norm"), "mlp": ("mlp_norm", "mlp_post_norm")}
"""Around a part."""
NO_NORM = {"kind": "no_norm"}
SILENT = (NoMixer, NoMlp)
"""Kinds that say nothing: the norms around them go with them."""


@dataclass(frozen=True)
class Begun:
    """A part for one block."""

    block: Block
    spec: dict[str, Any]
    module: nn.Module
    copied: dict[str, str]
    """Name of each parameter that was taken over -> from where."""


def exact(role: Text) -> None:
    """Refuses a model with adapters or rounded layers: a part that comes later would not learn, or not be rounded."""
    got = "adapters" if adapted(role.module) else "rounded layers" if quantised(role.module) else ""
    if got:
        do = f"write {'lora' if got == 'adapters' else 'quantize'} after the surgeries that change parts"
        raise Refused("adapters", "student.surgery", "a model whose layers are its own, before parts are replaced", got, do)


def begun(block: Block, role: Text, layer: int, seed: int = 0) -> Begun:
    """The part that a block describes, for one block of a model, as it begins; what is new in it is drawn by the seed, whatever else was drawn."""
    sees_alike(block, role)
    taught: Any = attention_of(role.module, layer) if isinstance(block, Mixer) else mlp_of(role.module, layer)
    spec, like = block.spec(taught.shape), next(iter(taught.weights.values()))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(Streams(seed).number(block.place, layer))
        module = module_of(spec, layer).to(like)
    return Begun(block, spec, module.train(role.module.training), block.begin(module, taught))


def sees_alike(block: Block, role: Text) -> None:
    """Refuses a mixer that looks ahead in a causal model, and one that looks back alone in another one."""
    if isinstance(block, Mixer) and not isinstance(block, SILENT) and block.causal != role.anatomy.causal:
        kind, family = dict(block)["kind"], role.anatomy.family.family
        got = f"{kind}, which looks back alone, in {family}" if block.causal else f"{kind}, which looks ahead, in {family}"
        around = f"write mixer: {{kind: bidirectional, mixer: {kind}}}"
        do = around if block.causal else "write a mixer that looks back alone, such as gated_delta_net"
        raise Refused("mixer", "student.surgery", "a mixer that sees what attention saw", got, do)


def put_parts(role: Text, chosen: Mapping[int, Mapping[str, Begun]]) -> None:
    """Puts parts into blocks of a role, in place: it is then a model of its own class, whose config says what stands where.

    Norms around a part that was taken out go with it: they would never learn.
    """
    exact(role)
    from limbeck.model.hybrid import become, parts_of  # with it comes transformers, which a recipe that only names parts does not need

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


def note(role: Text, layer: int, place: str, mixer: Any, copied: dict[str, str]) -> None:
    """Writes down where each parameter of a block's new module comes from."""
    path = role.anatomy.path("block", layer)
    told = {f"{path}.{place}.{name}": f"copied: {copied[name]}" if name in copied else "new" for name, _ in mixer.named_parameters()}
    kept = {name: how for name, how in role.origins.items() if not name.startswith(f"{path}.{place}.")}
    role.origins = {**kept, **told}
