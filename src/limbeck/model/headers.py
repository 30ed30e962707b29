"""Weight files are read by their headers first: every length is compared with the file before anything is allocated."""

import json
import struct
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from limbeck.errors import Failed
from limbeck.store import disk

MAX_HEADER_BYTES = 100_000_000
MAX_JSON_BYTES = 50_000_000
MAX_TENSORS, MAX_KEYS, MAX_DIMS, MAX_SIDE, MAX_KEPT_BYTES = 200_000, 20_000, 8, 2**40, 1000
BITS = {
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}
"""Bits of one element, by the dtype names of the safetensors format."""
BLOCKS = {
    0: (1, 4),
    1: (1, 2),
    2: (32, 18),
    3: (32, 20),
    6: (32, 22),
    7: (32, 24),
    8: (32, 34),
    9: (32, 40),
    10: (256, 84),
    11: (256, 110),
    12: (256, 144),
    13: (256, 176),
    14: (256, 210),
    15: (256, 292),
    16: (256, 66),
    17: (256, 74),
    18: (256, 98),
    19: (256, 50),
    20: (32, 18),
    21: (256, 110),
    22: (256, 82),
    23: (256, 136),
    24: (1, 1),
    25: (1, 2),
    26: (1, 4),
    27: (1, 8),
    28: (1, 8),
    29: (256, 56),
    30: (1, 2),
    34: (256, 54),
    35: (256, 66),
    39: (32, 17),
    40: (64, 36),
    41: (128, 18),
}
"""Elements and bytes of one block, by the number of a GGML tensor type."""
NUMBERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
"""`struct` formats of the plain GGUF value types; 8 is a string, 9 an array."""


@dataclass(frozen=True)
class Stored:
    """One tensor as a safetensors header states it."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Gguf:
    """What a GGUF file says before its weights."""

    architecture: str
    metadata: dict[str, Any] = field(default_factory=dict)
    """Numbers and short strings by key; None for a string of more than 1,000 bytes."""
    arrays: dict[str, int] = field(default_factory=dict)
    """Length of every array by key."""
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Shape of every tensor, slowest axis first as in torch."""


def corrupt(path: Path | str, expected: str, got: str) -> Failed:
    """The one error of a file that is not what it claims to be."""
    return Failed("corrupt", str(path), expected, got, "fetch or copy the file again; nothing was loaded from it")


def quoted(text: object, limit: int = 60) -> str:
    """Something out of a foreign file, fit to be shown: short, and with every control character visible."""
    shown = ascii(text)
    return shown if len(shown) <= limit else shown[: limit - 3] + "..."


def size_of(path: Path) -> int:
    """Bytes of a file that is there."""
    if not path.is_file():
        raise corrupt(path, "a file", "none of this name")
    return path.stat().st_size


def read_json(path: Path, limit: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """A JSON object from a file of bounded size, without duplicate keys or NaN.

    Raises:
        Failed: `corrupt`, for anything else.
    """
    size = size_of(path)
    if size > limit:
        raise corrupt(path, f"a JSON file of at most {limit:,} bytes", f"{size:,} bytes")
    with disk(path):
        data = path.read_bytes()
    return parse_json(path, data)


def parse_json(path: Path, data: bytes) -> dict[str, Any]:
    """The same for bytes that stand somewhere in the file."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        out = dict(pairs)
        if len(out) < len(pairs):
            raise ValueError("a key stands twice")
        return out

    def constant(word: str) -> Any:
        raise ValueError(f"the word {word}")

    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=once, parse_constant=constant)
    except (ValueError, RecursionError) as error:
        raise corrupt(path, "JSON", quoted(str(error))) from None
    if not isinstance(value, dict):
        raise corrupt(path, "a JSON object", type(value).__name__)
    return value


def check_safetensors(path: Path) -> dict[str, Stored]:
    """Reads and checks the header of a safetensors file; touches no weight.

    Returns:
        Every tensor by name.

    Raises:
        Failed: `corrupt`, where header and file disagree.
    """
    size = size_of(path)
    with disk(path), path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > min(MAX_HEADER_BYTES, size - 8):
            raise corrupt(path, f"a header that fits into the file of {size:,} bytes", f"one of {length:,} bytes" if len(start) == 8 else "its end")
        header = parse_json(path, file.read(length))
    header.pop("__metadata__", None)
    spans, stored = [], {}
    for name, entry in header.items():
        stored[name], span = check_entry(path, name, entry)
        spans.append(span)
    at = 0
    for begin, end in sorted(spans):
        if begin != at:
            raise corrupt(path, "tensors one behind the other", f"one from byte {begin:,}, where {at:,} was due")
        at = end
    if at != size - 8 - length:
        raise corrupt(path, f"{at:,} bytes of weights, as the header adds up", f"{size - 8 - length:,}")
    return stored


def check_entry(path: Path, name: str, entry: Any) -> tuple[Stored, tuple[int, int]]:
    """One tensor of a safetensors header, and its first and last byte."""
    expected = f"dtype, shape and data_offsets of {quoted(name)}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise corrupt(path, expected, quoted(entry))
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise corrupt(path, expected, f"dtype {quoted(dtype)}")
    if not whole(shape) or len(shape) > MAX_DIMS or max(shape, default=0) > MAX_SIDE:
        raise corrupt(path, expected, f"shape {quoted(shape)}")
    if not whole(offsets) or len(offsets) != 2 or 8 * (offsets[1] - offsets[0]) != BITS[dtype] * prod(shape):
        raise corrupt(path, f"{BITS[dtype] * prod(shape) / 8:,g} bytes for {quoted(name)}: {dtype} {list(shape)}", f"data_offsets {quoted(offsets)}")
    return Stored(dtype, tuple(shape)), (offsets[0], offsets[1])


def whole(value: Any) -> bool:
    """A list of counts."""
    return isinstance(value, list) and all(type(x) is int and 0 <= x < 2**63 for x in value)


class Cursor:
    """A place in a file that cannot move behind its end."""

    def __init__(self, path: Path, file: BinaryIO, size: int):
        self.path, self.file, self.size, self.at = path, file, size, 0

    def take(self, count: int) -> bytes:
        self.move(count)
        data = self.file.read(count)
        if len(data) < count:
            raise corrupt(self.path, f"{self.size:,} bytes", "a file that became shorter")
        return data

    def skip(self, count: int) -> None:
        self.move(count)
        self.file.seek(count, 1)

    def move(self, count: int) -> None:
        if count > self.size - self.at:
            left = f"{self.size - self.at:,}: the file is cut off, or a length in it is wrong"
            raise corrupt(self.path, f"{count:,} more bytes at byte {self.at:,}", left)
        self.at += count

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def count(self, what: str, limit: int) -> int:
        value = self.number("<Q")
        if value > limit:
            raise corrupt(self.path, f"at most {limit:,} {what}", f"{value:,}")
        return value

    def name(self, what: str) -> str:
        data = self.take(self.count(f"bytes of {what}", 65_535))
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            raise corrupt(self.path, f"{what} in UTF-8", quoted(data)) from None


def check_gguf(path: Path) -> Gguf:
    """Reads and checks the header of a GGUF file, version 2 or 3, little-endian; touches no weight.

    Raises:
        Failed: `corrupt`, where header and file disagree.
    """
    size = size_of(path)
    with disk(path), path.open("rb") as file:
        cursor = Cursor(path, file, size)
        if (magic := cursor.take(4)) != b"GGUF":
            raise corrupt(path, "a GGUF file", f"one that begins with {quoted(magic)}")
        if (version := cursor.number("<I")) not in (2, 3):
            raise corrupt(path, "GGUF version 2 or 3, little-endian", f"version {version:,}")
        num_tensors, num_keys = cursor.count("tensors", MAX_TENSORS), cursor.count("keys", MAX_KEYS)
        metadata: dict[str, Any] = {}
        arrays: dict[str, int] = {}
        for _ in range(num_keys):
            key = cursor.name("a key")
            if key in metadata or key in arrays:
                raise corrupt(path, "each key once", f"{quoted(key)} again")
            read_value(cursor, key, metadata, arrays)
        spans = [read_tensor(cursor) for _ in range(num_tensors)]
    architecture, alignment = metadata.get("general.architecture"), metadata.get("general.alignment", 32)
    if not isinstance(architecture, str) or not architecture.replace("-", "").replace("_", "").isalnum() or len(architecture) > 60:
        raise corrupt(path, "the name general.architecture", quoted(architecture))
    if type(alignment) is not int or not 0 < alignment <= 2**20:
        raise corrupt(path, "an alignment between 1 and 1,048,576", quoted(alignment))
    at = -(-cursor.at // alignment) * alignment
    check_spans(path, [(at + offset, at + offset + length) for _, _, offset, length in spans], size)
    shapes = {name: shape for name, shape, _, _ in spans}
    if len(shapes) < len(spans):
        raise corrupt(path, "each tensor once", "a name that stands twice")
    return Gguf(architecture, metadata, arrays, shapes)


def read_value(cursor: Cursor, key: str, metadata: dict[str, Any], arrays: dict[str, int]) -> None:
    """One value of the metadata; arrays and long strings are stepped over."""
    kind = cursor.number("<I")
    if kind in NUMBERS:
        metadata[key] = cursor.number(NUMBERS[kind])
    elif kind == 8:
        length = cursor.count(f"bytes in {quoted(key)}", cursor.size)
        data = cursor.take(length) if length <= MAX_KEPT_BYTES else cursor.skip(length)
        metadata[key] = None if data is None else data.decode("utf-8", "replace")
    elif kind == 9:
        item = cursor.number("<I")
        arrays[key] = cursor.count(f"items in {quoted(key)}", cursor.size)
        if item in NUMBERS:
            cursor.skip(arrays[key] * struct.calcsize(NUMBERS[item]))
        elif item == 8:
            for _ in range(arrays[key]):
                cursor.skip(cursor.count(f"bytes in {quoted(key)}", cursor.size))
        else:
            raise corrupt(cursor.path, f"an array of numbers or strings under {quoted(key)}", f"items of type {item:,}")
    else:
        raise corrupt(cursor.path, f"a known type of value under {quoted(key)}", f"type {kind:,}")


def read_tensor(cursor: Cursor) -> tuple[str, tuple[int, ...], int, int]:
    """Name, shape, offset and bytes of one tensor."""
    name, num_dims = cursor.name("a tensor's name"), cursor.number("<I")
    if num_dims > 4:
        raise corrupt(cursor.path, f"at most 4 axes of {quoted(name)}", f"{num_dims:,}")
    dims = [cursor.count(f"rows of {quoted(name)}", MAX_SIDE) for _ in range(num_dims)]
    kind, offset = cursor.number("<I"), cursor.number("<Q")
    if kind not in BLOCKS:
        raise corrupt(cursor.path, f"a known type of {quoted(name)}", f"type {kind:,}")
    elements, block_bytes = BLOCKS[kind]
    if (dims[0] if dims else 1) % elements:
        raise corrupt(cursor.path, f"rows of {quoted(name)} in blocks of {elements}", f"rows of {dims[0] if dims else 1:,}")
    return name, tuple(reversed(dims)), offset, prod(dims) // elements * block_bytes


def check_spans(path: Path, spans: list[tuple[int, int]], size: int) -> None:
    """Tensors lie inside the file and not on each other."""
    at = 0
    for begin, end in sorted(spans):
        if begin < at:
            raise corrupt(path, "tensors that do not overlap", f"one from byte {begin:,}, where another ends at {at:,}")
        at = end
    if at > size:
        raise corrupt(path, f"a file of {at:,} bytes, as its header says", f"{size:,}")
