"""Whisper as CTranslate2 keeps it: a flat list of named arrays, in which matrices that are applied together are one."""

import struct
from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limbeck.model.from_timm import filled
from limbeck.model.headers import corrupt, quoted, read_json
from limbeck.model.loading import build_config, foreign, model_class
from limbeck.model.reference import Reference, identity, known, package_file, package_files
from limbeck.text.transcripts import MULTILINGUAL

DTYPES = ("<f4", "<i1", "<i2", "<i4", "<f2")
"""Number formats, by their number in the file."""
VERSION, MOST_ARRAYS, MOST_AXES = 6, 100_000, 8
FUSED = {("self_attention", "linear_0"): "qkv", ("attention", "linear_0"): "q", ("attention", "linear_1"): "kv"}
"""Which projections lie one under the other."""
PLAIN = {
    ("self_attention", "layer_norm"): "self_attn_layer_norm",
    ("self_attention", "linear_1"): "self_attn.out_proj",
    ("attention", "layer_norm"): "encoder_attn_layer_norm",
    ("attention", "linear_2"): "encoder_attn.out_proj",
    ("ffn", "layer_norm"): "final_layer_norm",
    ("ffn", "linear_0"): "fc1",
    ("ffn", "linear_1"): "fc2",
}
"""All other parts of a block, by their names in transformers."""
ATTENTION = {"self_attention": "self_attn", "attention": "encoder_attn"}
AROUND = {"embeddings": "embed_tokens", "position_encodings": "embed_positions", "conv1": "conv1", "conv2": "conv2", "layer_norm": "layer_norm"}
LAST = {"weight": "weight", "bias": "bias", "gamma": "weight", "beta": "bias", "encodings": "weight"}


def arrays(content: bytes, where: str) -> dict[str, np.ndarray]:
    """The arrays of a file by name, those with two names twice.

    Raises:
        Failed: `corrupt`, for what is not laid out so.
    """
    at, found = 0, dict[str, np.ndarray]()

    def take(form: str) -> Any:
        nonlocal at
        value, at = struct.unpack_from(f"<{form}", content, at)[0], at + struct.calcsize(f"<{form}")
        return value

    def word() -> str:
        return take(f"{take('H')}s").rstrip(b"\0").decode()

    try:
        version, spec, _, num = take("I"), word(), take("I"), take("I")
        if version != VERSION or spec != "WhisperSpec" or num > MOST_ARRAYS:
            raise corrupt(where, f"a WhisperSpec of version {VERSION}", f"{quoted(spec)} of version {version}, with {num:,} arrays")
        for _ in range(num):
            name, rank = word(), take("B")
            if rank > MOST_AXES:
                raise corrupt(where, f"at most {MOST_AXES} axes", f"{rank} of {quoted(name)}")
            shape = [take("I") for _ in range(rank)]
            dtype, size = np.dtype(DTYPES[take("B")]), take("I")
            if size != prod(shape) * dtype.itemsize or at + size > len(content):
                raise corrupt(where, f"{prod(shape) * dtype.itemsize:,} bytes of {quoted(name)}", f"{size:,} of {len(content) - at:,} that are left")
            found[name], at = np.frombuffer(content, dtype, prod(shape), at).reshape(shape), at + size
        for _ in range(take("I")):
            alias, name = word(), word()
            found[alias] = found[name]
    except (struct.error, IndexError, KeyError, UnicodeDecodeError) as error:
        raise corrupt(where, "named arrays up to the end", quoted(f"{type(error).__name__}: {error}", 120)) from None
    return found


def renamed(name: str, value: Tensor, where: str) -> Iterator[tuple[str, Tensor]]:
    """The weights of transformers that an array holds; none for what is no weight.

    Raises:
        Failed: `corrupt`, where keys have a bias, for which transformers has no place.
    """
    side, *path, last = name.split("/")
    if name == "decoder/projection/weight":
        yield "proj_out.weight", value
    elif len(path) == 1 and path[0] in AROUND and last in LAST:
        yield f"model.{side}.{AROUND[path[0]]}.{LAST[last]}", value
    elif len(path) == 3 and path[0].startswith("layer_") and last in LAST:
        block, (_, part, layer) = f"model.{side}.layers.{path[0].removeprefix('layer_')}", path
        if (part, layer) in PLAIN:
            yield f"{block}.{PLAIN[part, layer]}.{LAST[last]}", value
            return
        letters = FUSED[part, layer]
        for letter, piece in zip(letters, value.chunk(len(letters)), strict=True):
            if letter != "k" or last != "bias":
                yield f"{block}.{ATTENTION[part]}.{letter}_proj.{last}", piece
            elif piece.any():
                raise corrupt(where, "keys without a bias", f"{quoted(name)} has one")


def state_of(content: bytes, where: str) -> dict[str, Tensor]:
    """All weights of a file in float32, by their names in transformers."""
    found = arrays(content, where)
    try:
        pairs = ((name, torch.from_numpy(x.astype(np.float32))) for name, x in found.items() if x.dtype.kind == "f")
        return {new: value.clone() for name, x in pairs for new, value in renamed(name, x, where)}
    except KeyError as error:
        raise corrupt(where, "parts of Whisper's blocks", quoted(str(error))) from None


def read_whisper(reference: Reference) -> tuple[Any, Any]:
    """Module in float32 and tokenizer of a package, whose files are compared with their pinned hashes."""
    from transformers import GenerationConfig, WhisperTokenizer

    identity(reference)
    where, folder = reference.text, package_file(reference).parent
    config = build_config(known("shapes")[known("packages")[reference.name]["shape"]]["config"], where)
    state = state_of(b"".join(path.read_bytes() for path in package_files(reference)), where)
    many = config.eos_token_id >= MULTILINGUAL
    with foreign(where, "what transformers builds a model and its tokenizer from"):
        module: Any = filled(model_class(config, where)(config), state, where)
        told: dict[str, Any] = {"language": "en", "task": "transcribe"} if many else {}
        tokenizer = WhisperTokenizer(tokenizer_file=str(folder / "tokenizer.json"), **told)
        module.generation_config = GenerationConfig(**generation(tokenizer, read_json(folder / "config.json", 1_000_000), many))
    return module, tokenizer


def generation(tokenizer: Any, told: Mapping[str, Any], many: bool) -> dict[str, Any]:
    """What transformers' own `generate` asks for; `many`: the model knows other languages than English."""
    ids = tokenizer.get_added_vocab()
    marks = {"decoder_start_token_id": "startoftranscript", "no_timestamps_token_id": "notimestamps", "prev_sot_token_id": "startofprev"}
    found: dict[str, Any] = {name: ids[f"<|{mark}|>"] for name, mark in marks.items()} | {"is_multilingual": many, "max_length": 448}
    found |= dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), tokenizer.eos_token_id)
    kept = {"suppress_tokens": "suppress_ids", "begin_suppress_tokens": "suppress_ids_begin", "alignment_heads": "alignment_heads"}
    found |= {name: told[own] for name, own in kept.items()}
    if many:
        found |= {"lang_to_id": {tokenizer.convert_ids_to_tokens(i): i for i in told["lang_ids"]}, "language": "<|en|>", "task": "transcribe"}
        found |= {"task_to_id": {task: ids[f"<|{task}|>"] for task in ("transcribe", "translate")}}
    return found
