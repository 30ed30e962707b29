"""Rounded weights on the disk, as codes and scales: the layouts of compressed-tensors, which vLLM and transformers read, and one for signs."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from limbeck.formats.base import Codes, Format
from limbeck.formats.binary import Binary
from limbeck.formats.fp8 import FP8
from limbeck.formats.integer import Integer
from limbeck.formats.nvfp4 import BLOCK, NVFP4
from limbeck.model.folder import WEIGHTS, Folder, check_index, inside
from limbeck.model.headers import corrupt, quoted
from limbeck.model.quantised import by_rows
from limbeck.store import load_tensors

CONFIG = "quantization_config"
"""Field of a config that says how weights are kept."""
METHOD, OWN = "compressed-tensors", "limbeck"
ELSEWHERE = ("kv_cache_scheme", "sparsity_config", "transform_config", "output_activations")
"""Parts of a config that ask for more than codes and scales."""
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
LAYOUTS: dict[str, dict[str, tuple[torch.dtype, ...]]] = {
    "nvfp4-pack-quantized": {"weight_packed": (torch.uint8,), "weight_scale": (torch.float8_e4m3fn,), "weight_global_scale": (torch.float32,)},
    "float-quantized": {"weight": (torch.float8_e4m3fn,), "weight_scale": FLOATS},
    "int-quantized": {"weight": (torch.int8,), "weight_scale": FLOATS},
    "pack-quantized": {"weight_packed": (torch.int32,), "weight_scale": FLOATS, "weight_shape": (torch.int64,)},
    "limbeck-binary": {"weight_packed": (torch.uint8,), "weight_scale": FLOATS},
}
"""Layout, as config.json says it -> what stands in the place of a weight, by the last part of its name; the first holds the codes."""


@dataclass(frozen=True)
class Scheme:
    """How the packed layers of a folder are kept."""

    weights: Format
    inputs: Format | None = None
    """How they round what they hear."""

    @property
    def layout(self) -> str:
        """The name of the layout."""
        if isinstance(self.weights, Integer):
            return "pack-quantized" if self.inputs is None else "int-quantized"
        return {NVFP4: "nvfp4-pack-quantized", FP8: "float-quantized", Binary: "limbeck-binary"}[type(self.weights)]

    @property
    def heard(self) -> str:
        """The tensor that holds the frozen scale of what a layer hears."""
        return "input_global_scale" if isinstance(self.inputs, NVFP4) else "input_scale"

    @property
    def parts(self) -> dict[str, tuple[torch.dtype, ...]]:
        """The tensors of a layer, and the dtypes that each may have."""
        return LAYOUTS[self.layout] if self.inputs is None else {**LAYOUTS[self.layout], self.heard: FLOATS}

    def config(self, ignore: list[str]) -> dict[str, Any]:
        """What config.json says; `ignore` names the linear layers that are not packed."""
        return {
            "quant_method": OWN if isinstance(self.weights, Binary) else METHOD,
            "format": self.layout,
            "quantization_status": "compressed",
            "config_groups": {
                "group_0": {
                    "targets": ["Linear"],
                    "weights": arguments(self.weights),
                    "input_activations": None if self.inputs is None else arguments(self.inputs, heard=True),
                    "output_activations": None,
                    "format": self.layout,
                }
            },
            "ignore": ignore,
        }


def arguments(how: Format, heard: bool = False) -> dict[str, Any]:
    """A number format in the words of compressed-tensors, as weights have it or as what a layer hears."""
    if isinstance(how, NVFP4):
        words = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": BLOCK, "dynamic": "local" if heard else False}
        return {**words, "symmetric": True, "scale_dtype": "torch.float8_e4m3fn"}
    bits = how.bits if isinstance(how, Integer) else {FP8: 8, Binary: 1}[type(how)]
    kind = {FP8: "float", Integer: "int", Binary: "binary"}[type(how)]
    strategy = "tensor" if heard else "channel" if how.size is None else "group"
    return {"num_bits": bits, "type": kind, "strategy": strategy, "group_size": None if heard else how.size, "dynamic": False, "symmetric": True}


def scheme_of(config: Mapping[str, Any]) -> Scheme | None:
    """The scheme that a config.json asks for; None where it asks for none, or for one that is not known here."""
    said = config.get(CONFIG)
    groups = said.get("config_groups") if isinstance(said, dict) else None
    if not isinstance(said, dict) or not isinstance(groups, dict) or len(groups) != 1 or said.get("quant_method") not in (METHOD, OWN):
        return None
    (group,) = groups.values()
    if not isinstance(group, dict) or any(said.get(name) or group.get(name) for name in ELSEWHERE):
        return None
    weights, inputs = named(group.get("weights"), False), named(group.get("input_activations"), True)
    if weights is None or inputs is None and group.get("input_activations") or isinstance(inputs, Binary):
        return None
    scheme = Scheme(weights, inputs)
    return scheme if scheme.layout == said.get("format") else None


def named(words: Any, heard: bool) -> Format | None:
    """The number format that `arguments` describes so."""
    if not isinstance(words, dict) or words.get("actorder"):
        return None
    size = words.get("group_size")
    group = size if type(size) is int and size > 0 and words.get("strategy") == "group" else None
    for how in (NVFP4(), FP8(), Integer(8, group), Integer(4, group), Binary(group)):
        own = arguments(how, heard)
        if all(words.get(name) == own[name] for name in ("num_bits", "type", "strategy", "group_size", "dynamic", "symmetric")):
            return how
    return None


def tensors_of(layer: Any) -> dict[str, Tensor]:
    """What is written in the place of a layer's weight, by the last part of its name."""
    scheme, codes = Scheme(layer.weights, layer.inputs), layer.codes()
    first, *others = LAYOUTS[scheme.layout]
    out = {first: codes.packed, "weight_scale": codes.scale}
    if scheme.layout == "pack-quantized":
        out |= {first: words_of(codes.packed), "weight_shape": torch.tensor(by_rows(layer).shape, device="cpu")}
    if codes.whole is not None:
        out["weight_global_scale"] = codes.whole
    if layer.inputs is not None:
        out[scheme.heard] = torch.tensor([layer.input_scale], dtype=torch.float32, device="cpu")
    return out


def words_of(packed: Shaped[Tensor, "out code"]) -> Int[Tensor, "out code"]:
    """Codes in words of 32 bits, the first in the lowest bits, counted from the least one."""
    if packed.dtype == torch.int8:
        packed = (packed.int() + 128).to(torch.uint8)
    return torch.nn.functional.pad(packed, (0, -packed.shape[1] % 4)).contiguous().view(torch.int32)


def codes_in(words: Int[Tensor, "out code"], bits: int, width: int) -> Shaped[Tensor, "out code"]:
    """The codes of rows of so many numbers that `words_of` has put there."""
    found = words.contiguous().view(torch.uint8)[:, : width * bits // 8]
    return (found.int() - 128).to(torch.int8) if bits == 8 else found


def unpacked(folder: Folder, scheme: Scheme, dtype: torch.dtype) -> tuple[dict[str, Tensor], dict[str, float | None]]:
    """The tensors of a folder as a stock model has them; and packed layer -> the frozen scale of what it hears, None where that is exact.

    Raises:
        Failed: `corrupt`, where the tensors of a layer do not fit each other.
    """
    single = inside(folder.path, WEIGHTS)
    files = [single] if single.is_file() else sorted(set(check_index(folder.path).values()))
    tensors = {name: tensor for file in files for name, tensor in load_tensors(file).items()}
    scales: dict[str, float | None] = {}
    for place in [name.removesuffix(".weight_scale") for name in tensors if name.endswith(".weight_scale")]:
        parts = parts_of(tensors, place, scheme, folder.path)
        weight = scheme.weights.decode(codes_of(parts, scheme, f"{folder.path}  {quoted(place)}"), dtype)
        scales[place] = None if scheme.inputs is None else float(parts[scheme.heard].float())
        if not bool(weight.isfinite().all()) or scales[place] is not None and not 0 < scales[place] < float("inf"):  # type: ignore[operator]
            raise corrupt(folder.path, f"scales of {quoted(place)} above 0", "0, NaN or an infinity")
        tensors[f"{place}.weight"] = weight
    return tensors, scales


def parts_of(tensors: dict[str, Tensor], place: str, scheme: Scheme, where: Path) -> dict[str, Tensor]:
    """Takes the tensors of a packed layer out; refuses others that it has beside its bias."""
    parts = {name: tensors.pop(f"{place}.{name}", None) for name in scheme.parts}
    wrong = [name for name, part in parts.items() if part is None or part.dtype not in scheme.parts[name]]
    stray = [name for name in tensors if name.startswith(f"{place}.") and name != f"{place}.bias"]
    if wrong or stray:
        got = quoted(stray[0]) if stray else f"no {wrong[0]} of a dtype that it may have"
        raise corrupt(where, f"{scheme.layout} of {quoted(place)}: {', '.join(scheme.parts)}", got)
    return parts  # type: ignore[return-value]


def codes_of(parts: Mapping[str, Tensor], scheme: Scheme, where: str) -> Codes:
    """The codes of a layer; their shapes have to fit each other."""
    how, first = scheme.weights, parts[next(iter(scheme.parts))]
    rows, columns = first.shape if first.ndim == 2 else (0, 0)
    width = columns * {NVFP4: 2, Binary: 8}.get(type(how), 1)
    fits = width > 0 and all(parts[name].numel() == 1 for name in ("weight_global_scale", scheme.heard) if name in parts)
    if isinstance(how, Integer) and scheme.layout == "pack-quantized":
        shape = parts["weight_shape"].tolist()
        width = shape[-1] if len(shape) == 2 else 0
        fits = fits and shape[0] == rows and 0 < width and columns == -(-width * how.bits // 32)
    size = how.size or width
    if not fits or width % size or parts["weight_scale"].shape != (rows, width // size):
        raise corrupt(where, "tensors whose shapes fit each other", quoted({name: tuple(part.shape) for name, part in parts.items()}, 200))
    if isinstance(how, Integer) and scheme.layout == "pack-quantized":
        first = codes_in(first, how.bits, width)
    return Codes(first, parts["weight_scale"], parts.get("weight_global_scale"))


def num_bytes(tensors: Mapping[str, Float[Tensor, "..."]]) -> int:
    """Bytes that tensors take on the disk."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
