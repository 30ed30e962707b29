"""A folder that keeps rounded weights as codes and scales."""

import copy
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from limbeck.errors import Failed, Refused
from limbeck.export._card import LOADS, model_card
from limbeck.export.base import Exporter, Parcel
from limbeck.export.safetensors import PROBE_TOKENS, Safetensors
from limbeck.formats.binary import Binary
from limbeck.model.adapters import adapted, merged, stock
from limbeck.model.base import Role
from limbeck.model.folder import WEIGHTS, check_folder
from limbeck.model.loading import open_folder
from limbeck.model.packed import CONFIG, Scheme, num_bytes, tensors_of
from limbeck.model.quantised import latent
from limbeck.store import save_tensors, write_text

PACKED = "Linear layers are kept as codes and scales: `transformers` needs the package `compressed-tensors` to load them; limbeck does not."
SIGNS = "Linear layers are kept as signs and scales, for which there is no public layout: limbeck alone opens this folder."


class Packed(Exporter):
    """Writes rounded weights as codes and scales, the rest as it is, loads all again, and compares.

    For a student of `quantize`. The layouts are those of compressed-tensors: `nvfp4-pack-quantized`, `float-quantized`, `pack-quantized`
    (weights alone in 8 or 4 bits), `int-quantized` (8 bits, also what layers hear); signs, for which there is none, have one of limbeck's.
    Loaded again by limbeck, the student says the same to the last bit. Layers that no layout is for (GPT-2 keeps its weights the other
    way round; adapters beside rounded weights) are written as numbers, and the report says how many.

    Example:
        >>> Packed(dtype="bfloat16").kind
        'packed'

    References:
        compressed-tensors (`CompressionFormat`)
    """

    kind: Literal["packed"] = "packed"
    dtype: Literal["as_trained", "bfloat16", "float16"] = "as_trained"
    """Number format of all that is not packed: embeddings, norms, biases, a head that is exact."""

    def __call__(self, parcel: Parcel) -> list[dict[str, Any]]:
        role, folder = parcel.role, parcel.folder
        if not type(role.module).__module__.startswith("transformers."):
            do = "export: [safetensors], which carries the code of others"
            raise Refused("packed", "export  packed", "a class of transformers, as readers of codes expect", type(role.module).__name__, do)
        layers = packable(role)
        packed = {name: tensors_of(layer) for name, layer in layers.items()}
        module: Any = (merged(role) if packed else stock(merged(role))).module
        if self.dtype != "as_trained":
            module = copy.deepcopy(module)  # the run still evaluates the student as it is
            for parameter in module.parameters():
                parameter.data = parameter.data.to(getattr(torch, self.dtype))
        names = {id(tensor): name for name, tensor in reversed(module.state_dict(keep_vars=True).items())}  # of tied ones the first
        kept = {name for name in names.values() if name.removesuffix(".weight") not in packed}
        state = {name: tensor for name, tensor in module.state_dict().items() if name in kept}
        state |= {f"{place}.{name}": tensor for place, parts in packed.items() for name, tensor in parts.items()}
        save_tensors(folder / WEIGHTS, state)
        scheme = next((Scheme(layer.weights, layer.inputs) for layer in layers.values()), None)
        write_config(module, scheme, packed, parcel)
        again = open_folder(check_folder(folder, str(folder)), str(folder), str(module.dtype).removeprefix("torch."))[0].to(module.device)
        again.set_attn_implementation(module.config._attn_implementation)
        probe = parcel.role.probe(PROBE_TOKENS)  # type: ignore[operator]
        gap = float((Safetensors.says(again, probe) - Safetensors.says(module, probe)).abs().max())
        if gap > 0:
            got = f"a difference of {gap:.3g} after loading"
            raise Failed("export", str(folder), "the logits of the student in memory", got, "report this", code=5)
        rounded, size = len(latent(role.module)), sum(path.stat().st_size for path in folder.iterdir())
        return [
            told(packed, layers, scheme, rounded),
            {
                "name": "Exported student, loaded by limbeck",
                "result": f"largest difference of a logit {gap} over {PROBE_TOKENS} tokens",
                "open": False,
                "bytes": size,
                "class": type(again).__name__,
            },
        ]


def packable(role: Role) -> dict[str, Any]:
    """Name -> rounded layer that a layout is for: of torch, and without adapters, which would not lie on its grid."""
    return {} if adapted(role.module) else {name: part for name, part in latent(role.module).items() if isinstance(part, nn.Linear)}


def write_config(module: Any, scheme: Scheme | None, packed: Mapping[str, Any], parcel: Parcel) -> None:
    """Writes what lies beside the weights: config, tokenizer, card."""
    config = copy.deepcopy(module.config)
    config.architectures, config.dtype = [type(module).__name__], module.dtype
    if scheme is not None:
        exact = [name for name, part in module.named_modules() if isinstance(part, nn.Linear) and name not in packed]
        setattr(config, CONFIG, scheme.config(exact))
    config.save_pretrained(parcel.folder)
    if getattr(module, "generation_config", None) is not None:
        module.generation_config.save_pretrained(parcel.folder)
    parcel.role.tokenizer.save_pretrained(str(parcel.folder))
    card = model_card(parcel.summary, parcel.provenance)
    loads = LOADS if scheme is None else SIGNS if isinstance(scheme.weights, Binary) else PACKED
    write_text(parcel.folder / "README.md", card.replace(LOADS, loads))


def told(packed: Mapping[str, Mapping[str, Tensor]], layers: Mapping[str, Any], scheme: Scheme | None, rounded: int) -> dict[str, Any]:
    """What was packed, and into how many bits: open, where rounded layers are left, or nothing was rounded."""
    if scheme is None:
        result = f"none: of {rounded} rounded layers, no layout is for any; what layers hear is not rounded here"
        return {"name": "Packed weights", "result": result, "open": True}
    bits = 8 * sum(map(num_bytes, packed.values())) / sum(layer.weight.numel() for layer in layers.values())
    result = f"{len(packed)} of {rounded} rounded layers as {scheme.layout}, {bits:.3f} bits a weight with scales"
    return {"name": "Packed weights", "result": result, "open": len(packed) < rounded, "bits_a_weight": bits}
