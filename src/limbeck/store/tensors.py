"""Tensors, and nested states with tensors in them, as safetensors and JSON: no pickle."""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.errors import Refused
from limbeck.store.files import canonical, corrupt, disk, inside, read_json, write_bytes, write_parts

if TYPE_CHECKING:  # torch takes seconds to import, and most writes need none of it
    from torch import Tensor

ALIASES = "limbeck.aliases"
DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
    "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8", "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8",
    "bool": "BOOL", "complex64": "C64",
}  # fmt: skip
"""Names of torch's dtypes in a safetensors header."""


@dataclass(frozen=True, eq=False)
class Later:
    """A tensor that is read or made when it is asked for, and not kept: more than fit into memory can be on their way at once."""

    like: "Tensor"
    """Its dtype and shape, on the meta device."""
    make: "Callable[[], Tensor]"


def save_tensors(path: Path | str, tensors: "Mapping[str, Tensor | Later]", metadata: Mapping[str, str] | None = None) -> None:
    """Writes a safetensors file whose bytes depend only on what is passed; a tensor with several names is written once. One that
    is made later is made when it is written.

    Written here because the safetensors package leaves the order of metadata to chance, and a name of its own behind when it is killed.
    """
    import torch

    first: dict[tuple, str] = {}
    aliases, header, stop = {}, {}, 0
    likes = {name: tensor.like if isinstance(tensor, Later) else tensor for name, tensor in tensors.items()}
    for name, tensor in sorted(likes.items(), key=lambda item: (-item[1].element_size(), item[0])):  # so that each is aligned
        dtype = DTYPES.get(str(tensor.dtype).removeprefix("torch."))
        if dtype is None or tensor.layout != torch.strided or name == "__metadata__":
            got = f"{name}: {tensor.layout}, {tensor.dtype}"
            raise Refused("tensor", str(path), f"dense tensors of {', '.join(DTYPES)}", got, "convert it before it is saved")
        own = id(tensor) if tensor.is_meta else tensor.data_ptr()
        place = (tensor.device, own, tensor.is_conj(), tensor.is_neg(), tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() and first.setdefault(place, name) != name:
            aliases[name] = first[place]
            continue
        start, stop = stop, stop + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [start, stop]}
    extra = {"format": "pt", **(metadata or {}), ALIASES: canonical(aliases).decode()}
    head = canonical({"__metadata__": extra, **header})
    head += b" " * (-len(head) % 8)

    def parts() -> Iterator[Any]:
        yield len(head).to_bytes(8, "little") + head
        for name in header:
            tensor = tensors[name]
            plain = (tensor.make() if isinstance(tensor, Later) else tensor).detach().cpu().resolve_conj().resolve_neg().contiguous()
            yield plain.reshape(-1).view(torch.uint8).numpy()

    write_parts(path, parts(), 8 + len(head) + stop)


@contextmanager
def opened(path: Path, device: str = "cpu") -> Iterator[Any]:
    """A safetensors file to read from; `Failed("corrupt")` if it is none."""
    from safetensors import SafetensorError, safe_open

    with disk(path):
        try:
            with safe_open(path, framework="pt", device=device) as file:
                yield file
        except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise corrupt(path, "a safetensors file", ascii(str(error))[1:200]) from error


def load_tensors(path: Path | str, device: str = "cpu") -> "dict[str, Tensor]":
    """Reads a safetensors file; what was one tensor with several names is so again."""
    with opened(Path(path), device) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        aliases = json.loads((file.metadata() or {}).get(ALIASES, "{}"))
        return {**tensors, **{name: tensors[kept] for name, kept in aliases.items()}}


def later_tensors(path: Path | str) -> dict[str, Later]:
    """The tensors of a safetensors file, each read when it is asked for; what was one tensor with several names is so again."""
    import torch

    def read(name: str) -> "Callable[[], Tensor]":
        def make() -> "Tensor":
            with opened(Path(path)) as file:  # opened anew: what was read through one mapping stays in memory as long as it does
                return file.get_tensor(name)

        return make

    with opened(Path(path)) as file:
        found = {name: Later(torch.empty_like(file.get_tensor(name), device="meta"), read(name)) for name in file.keys()}
        aliases = json.loads((file.metadata() or {}).get(ALIASES, "{}"))
        return {**found, **{name: found[kept] for name, kept in aliases.items()}}


def load_metadata(path: Path | str) -> dict[str, str]:
    """The metadata that `save_tensors` was given, without reading the tensors."""
    with opened(Path(path)) as file:
        return {key: text for key, text in (file.metadata() or {}).items() if key not in ("format", ALIASES)}


def save_state(folder: Path | str, name: str, nested: Any) -> None:
    """Writes nested dicts, lists, tuples, None, bools, numbers, strings and tensors as `name.json` and `name.safetensors`.

    All but devices, `requires_grad` and subclasses comes back bit by bit, keys of dicts that are no strings too. Meant for a folder of
    `new_folder`, since it is two files.
    """
    tensors: dict[str, Any] = {}
    packed = pack(nested, tensors, name)
    save_tensors(inside(folder, f"{name}.safetensors"), tensors)
    write_bytes(inside(folder, f"{name}.json"), canonical(packed))


def load_state(folder: Path | str, name: str, device: str = "cpu", later: bool = False) -> Any:
    """Reads what `save_state` wrote, with `later` each tensor as one that is read when asked for; `Failed("corrupt")` if it is something else."""
    path, file = inside(folder, f"{name}.json"), inside(folder, f"{name}.safetensors")
    tensors = later_tensors(file) if later else load_tensors(file, device)
    try:
        return unpack(read_json(path), tensors)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise corrupt(path, "a state", ascii(str(error))[:80]) from error


def pack(value: Any, tensors: dict[str, Any], place: str) -> Any:
    """A nested state as JSON: lists as lists, everything that JSON lacks as a mapping of its kind to its content."""
    import torch

    if value is None or isinstance(value, (bool, int, str)) or isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, float):
        return {"float": str(float(value))}
    if isinstance(value, Mapping):
        return {"dict": [[pack(key, tensors, place), pack(item, tensors, f"{place}.{key}")] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        items = [pack(item, tensors, f"{place}.{number}") for number, item in enumerate(value)]
        return items if isinstance(value, list) else {"tuple": items}
    if isinstance(value, (torch.Tensor, Later)):
        tensors[str(len(tensors))] = value
        return {"tensor": len(tensors) - 1}
    got = f"{type(value).__module__}.{type(value).__qualname__}"
    raise Refused("state", place, "dicts, lists, tuples, None, bools, numbers, strings and tensors", got, "leave it out, or turn it into these")


def unpack(value: Any, tensors: Mapping[str, Any]) -> Any:
    """The nested state that `pack` turned into JSON."""
    if isinstance(value, list):
        return [unpack(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[str(content)]
    made = {"float": float, "tuple": tuple, "dict": dict}[kind]
    return made(content if kind == "float" else unpack(content, tensors))
