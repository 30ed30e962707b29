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
    initialised: frozenset[str] = frozenset()
    """Those of all others that begin as they are meant to, such as at one or as the identity, and are not drawn."""


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
    number = Streams(seed).number(block.place, layer)
    module = drawn(spec, layer, number).to(like)
    copied = block.begin(module, taught)
    left = {name: p for name, p in module.named_parameters() if name not in copied and not p.is_meta}
    other = dict(drawn(spec, layer, number + 1).to(like).named_parameters()) if left else {}
    meant = frozenset(name for name, p in left.items() if torch.equal(p, other[name]))
    return Begun(block, spec, module.train(role.module.training), copied, meant)


def drawn(spec: dict[str, Any], layer: int, number: int) -> nn.Module:
    """The module of a spec, as it is drawn by a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(number)
        return module_of(spec, layer)


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
            note(role, layer, anatomy.place(part), new)
            if part == "mixer" and not silent:
                aside[layer] = role.module.get_submodule(anatomy.path("mixer", layer))
    become(role, parts, made)
    role.aside = {**role.aside, **aside}


def note(role: Text, layer: int, place: str, part: Begun) -> None:
    """Writes down where each parameter of a block's new module comes from: copied, initialised, or new, which is drawn."""
    path = role.anatomy.path("block", layer)
    how = {name: "initialised" if name in part.initialised else "new" for name, _ in part.module.named_parameters()}
    how |= {name: f"copied: {source}" for name, source in part.copied.items()}
    told = {f"{path}.{place}.{name}": said for name, said in how.items()}
    kept = {name: how for name, how in role.origins.items() if not name.startswith(f"{path}.{place}.")}
    role.origins = {**kept, **told}
