"""Adapters as files of peft: written beside a student, and added to the weights of any model of the same shapes, each times a factor."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import Refused
from limbeck.model.adapters import adapted
from limbeck.model.base import Role, clone
from limbeck.model.folder import inside
from limbeck.model.headers import check_safetensors, read_json

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
OUTER = ("base_model.model.", "unet.", "transformer.", "text_encoder.")
"""What peft and diffusers put before the names of layers."""
PLAIN = {"bias": ("none", None), "use_dora": (False, None), "rank_pattern": ({}, None), "alpha_pattern": ({}, None)}
"""Options that must stand at these values: others change more than a product of two matrices."""


def write_adapter(role: Role, folder: Path, base: str | None = None) -> None:
    """Writes the adapters of a role as peft does; `base`: the model that they were learned on.

    Raises:
        Refused: `adapters`, for a role without.
    """
    from safetensors.torch import save_file

    layers = adapted(role.module)
    if not layers:
        raise Refused("adapters", "adapter", "a student with adapters", "none", "add student.surgery: [lora]")
    tensors: dict[str, Tensor] = {}
    for name, layer in layers.items():
        for part in ("lora_A", "lora_B"):
            tensors[f"{OUTER[0]}{name}.{part}.weight"] = getattr(layer, part)["default"].weight.detach().contiguous().cpu()
    first = next(iter(layers.values()))
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": base,
        "r": first.r["default"],
        "lora_alpha": first.lora_alpha["default"],
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": bool(getattr(first, "fan_in_fan_out", False)),
        "target_modules": sorted(layers),
        "inference_mode": True,
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, str(folder / WEIGHTS), {"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(config, indent=1, sort_keys=True), encoding="utf-8")


def write_lora(role: Role, folder: Path) -> None:
    """Writes the same adapters as pipelines of diffusers load them."""
    from diffusers import StableDiffusionPipeline

    layers = adapted(role.module)
    tensors = {f"{name}.{part}.weight": getattr(layer, part)["default"].weight for name, layer in layers.items() for part in ("lora_A", "lora_B")}
    first = next(iter(layers.values()))
    about = {"r": first.r["default"], "lora_alpha": first.lora_alpha["default"], "target_modules": sorted(layers)}
    kept: Any = {name: x.detach().contiguous().cpu() for name, x in tensors.items()}
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=kept, unet_lora_adapter_metadata=about)


def differences(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Name of each layer, and what its adapter adds to the weight, as the layer keeps it.

    Raises:
        Refused: `adapters`, for one that is more than a product of two matrices, or is none.
        Failed: `corrupt`, for files that cannot be read.
    """
    from safetensors.torch import load_file

    where = str(folder)
    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        raise Refused("adapters", where, f"an adapter of peft: {CONFIG} and {WEIGHTS}", "neither, or one of them", "name the folder of an adapter")
    config: Mapping[str, Any] = read_json(inside(folder, CONFIG), 10_000_000)
    other = next((key for key, usual in PLAIN.items() if config.get(key, usual[0]) not in usual), None)
    if config.get("peft_type") != "LORA" or other is not None:
        got = f"{other}: {config.get(other)}" if other else f"peft_type {config.get('peft_type')}"
        raise Refused("adapters", where, "a plain low-rank adapter", got, "add it with peft, and save the whole model")
    check_safetensors(inside(folder, WEIGHTS))
    tensors = load_file(folder / WEIGHTS)
    rank, alpha = int(config["r"]), float(config["lora_alpha"])
    factor = alpha / rank**0.5 if config.get("use_rslora") else alpha / rank
    downs = [key for key in sorted(tensors) if ".lora_A" in key]
    other = next(iter(sorted(tensors.keys() - {*downs, *(key.replace(".lora_A", ".lora_B") for key in downs)})), None)
    alone = next((key for key in downs if key.replace(".lora_A", ".lora_B") not in tensors), None)
    if not downs or other is not None or alone is not None:
        expected, got = "pairs of lora_A and lora_B, and nothing else", other or alone or "no tensors"
        raise Refused("adapters", where, expected, got, "save it with peft, or add it with peft and save the whole model")
    for key in downs:
        name = key.partition(".lora_A")[0]
        down, up = tensors[key].float(), tensors[key.replace(".lora_A", ".lora_B")].float()
        for before in OUTER:
            name = name.removeprefix(before)
        change = factor * (up.flatten(1) @ down.flatten(1))
        yield name, change.reshape(len(up), *down.shape[1:]).mT if config.get("fan_in_fan_out") else change.reshape(len(up), *down.shape[1:])


def with_adapters(role: Role, adapters: Sequence[tuple[str | Path, float]]) -> Role:
    """A copy of a role whose weights are $W + \\sum_i \\lambda_i\\, \\Delta W_i$, of adapters that were learned on this model or on another of
    the same shapes: an adapter of few steps beside one of a style.

    Raises:
        Refused: `adapters`, for layers that the role does not have, or of another shape.
    """
    made = clone(role)
    for folder, factor in adapters:
        for name, change in differences(Path(folder)):
            try:
                weight: Any = made.module.get_submodule(name).weight
            except AttributeError:
                weight = None
            if not isinstance(weight, nn.Parameter) or weight.shape != change.shape:
                got = "none" if weight is None else f"{tuple(weight.shape)} in the model, {tuple(change.shape)} in the adapter"
                do = "take the model that it was learned on, or a sister of it"
                raise Refused("adapters", str(folder), f"a model with the layer {name}", got, do)
            with torch.no_grad():
                weight += (factor * change).to(weight)
    return made
