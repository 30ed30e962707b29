"""Attention and MLP of a block, read out of any family: their sizes and their weights."""

from typing import Any

import torch
from torch import Tensor, nn

from limbeck.block.base import Attention, Mlp, MlpShape, Shape
from limbeck.errors import Refused
from limbeck.model.anatomy import Anatomy, anatomy
from limbeck.model.base import Role
from limbeck.model.text import Text


def causal(role: Role, where: str) -> Text:
    """The role, if it speaks for a causal language model with a head.

    Raises:
        Refused: `family`, for any other model.
    """
    if not isinstance(role, Text) or not role.anatomy.causal or not role.anatomy.has("head"):
        got = role.anatomy.family.family if isinstance(role, Text) else type(role.module).__name__
        raise Refused("family", where, "a causal language model of a family whose parts are known", got, "start from such a model")
    return one_token_a_pass(role, where)


def one_token_a_pass(role: Text, where: str) -> Text:
    """The role, unless it fills in masked blocks."""
    if "masked_blocks" in role.reads_as:
        do = "write it before masked_blocks, and once"
        raise Refused("family", where, "a model that writes from left to right", "one that fills in masked blocks", do)
    return role


def convertible(role: Role, where: str) -> Text:
    """The role, if its attention can be replaced.

    Raises:
        Refused: `family`, where the family does not let attention stand alone.
    """
    if not isinstance(role, Text) or not role.anatomy.has("head") or not stands_alone(role.anatomy):
        got = role.anatomy.family.family if isinstance(role, Text) else type(role.module).__name__
        expected = "a causal language model, or a masked one whose attention stands alone between norm and sum, of a family whose parts are known"
        raise Refused("family", where, expected, got, "start from such a model")
    return one_token_a_pass(role, where)


def stands_alone(found: Anatomy) -> bool:
    """Whether a family's mixer is its attention alone, with neither a norm around it nor the sum with what it has heard."""
    path, inside = found.pattern("mixer") + ".", ("query", "key", "value", "output", "query_norm", "key_norm")
    return not any(found.pattern(part).startswith(path) for part in found.parts if part not in inside)


def attention_of(module: Any, layer: int) -> Attention:
    """The attention of block `layer` (from 0) of a stock model, as views of its weights.

    Raises:
        Refused: `part`, where something other than attention stands there, or attention that no mixer can take over.
    """
    found = anatomy(module)
    part, where = module.get_submodule(found.path("mixer", layer)), f"block {layer}"
    if not hasattr(part, "scaling") and not hasattr(part, "is_causal"):
        raise Refused("part", where, "the attention of its family", type(part).__name__, "leave out this block: it was converted before")
    config = module.config
    odd = [name for name in ("scale_attn_by_inverse_layer_idx", "attn_logit_softcapping") if getattr(config, name, None)]
    if odd:
        raise Refused("part", where, "plain softmax attention", f"{odd[0]} in its config", "start from another model", 3)
    names = ("query", "key", "value", "output")
    norms = {name: part.get_submodule(f"{'q' if name == 'query' else 'k'}_norm") for name in ("query", "key") if found.has(f"{name}_norm")}
    biases = {name: found.bias(module, name, layer) for name in names}
    shape = Shape(
        width=found.size(config, "width"),
        heads=found.size(config, "heads"),
        kv_heads=found.size(config, "kv_heads"),
        head_dim=found.size(config, "head_dim"),
        scale=float(getattr(part, "scaling", None) or found.size(config, "head_dim") ** -0.5),
        bias=biases["query"] is not None,
        out_bias=biases["output"] is not None,
        rotary=not found.has("position"),
        norm_eps=eps_of(norms["query"]) if norms else None,
        window=window_of(config, layer) if found.causal else None,
    )
    weights = {name: found.weight(module, name, layer) for name in names}
    return Attention(shape, weights, biases, {name: gain(norm) for name, norm in norms.items()})


def window_of(config: Any, layer: int) -> int | None:
    """How many positions each one sees in block `layer` (from 0) of a config, itself among them; None: all before it."""
    kinds = getattr(config, "layer_types", None) or ()
    return int(config.sliding_window) if layer < len(kinds) and kinds[layer] == "sliding_attention" else None


def mlp_of(module: Any, layer: int) -> Mlp:
    """The MLP of block `layer` (from 0) of a stock model, as views of its weights.

    Raises:
        Refused: `part`, where something else stands there.
    """
    found = anatomy(module)
    part, path = module.get_submodule(found.path("mlp", layer)), found.path("mlp", layer)
    names = tuple(name for name in ("gate", "up", "down") if found.has(name))
    if not all(hasattr(part, found.path(name, layer).removeprefix(path + ".").split(".")[0]) for name in names):
        raise Refused("part", f"block {layer}", "the MLP of its family", type(part).__name__, "leave out this block: it was changed before")
    weights = {name: found.weight(module, name, layer) for name in names}
    biases = {name: found.bias(module, name, layer) for name in names}
    names_of_it = ("hidden_activation", "hidden_act", "activation_function")
    activation = next(getattr(module.config, name) for name in names_of_it if hasattr(module.config, name))
    inner, width = weights["up"].shape
    shape = MlpShape(width, inner, activation, "gate" in names, biases["up"] is not None, biases["down"] is not None)
    return Mlp(shape, weights, biases)


def eps_of(norm: nn.Module) -> float:
    return float(getattr(norm, "variance_epsilon", getattr(norm, "eps", 1e-6)))


def gain(norm: nn.Module) -> Tensor:
    """What a root-mean-square norm multiplies by: its weight, or one more (Gemma's), which is heard from what it makes of equal channels."""
    weight = norm.weight
    assert isinstance(weight, Tensor)
    if weight.is_meta:
        return weight.detach()
    with torch.no_grad():
        return norm(torch.full_like(weight, 1e4)[None])[0].detach()
