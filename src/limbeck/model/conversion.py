"""GGUF files, and others that transformers cannot open by itself: read once, then kept as a folder of safetensors, which opens in a moment."""

import importlib.util
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any, Protocol

import torch

from limbeck.errors import Failed, Refused
from limbeck.model.ctranslate2 import read_whisper
from limbeck.model.folder import MAX_LAYERS, check_folder
from limbeck.model.headers import Gguf, check_gguf, corrupt, quoted
from limbeck.model.loading import check_complete, check_enough, foreign, model_class, open_folder
from limbeck.model.reference import Reference, existing, identity, known, package_file

REVISION = {"gguf": 2, "ctranslate2": 1}
"""Raised when a converted file would come out differently; part of its key."""
SINGLE_DIGITS = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"})
"""Names in `tokenizer.ggml.pre` of llama.cpp's tokenizers that cut out each digit before anything else, which transformers passes over."""


class Cache(Protocol):
    """What is asked of the content-addressed store."""

    def key(self, parts: dict[str, Any]) -> str:
        """One name for everything that decides a result."""
        ...

    def get(self, key: str) -> Path | None:
        """The folder of a result that is there, or None."""
        ...

    def make(self, key: str, describe: dict[str, Any], build: Callable[[Path], None]) -> Path:
        """The folder of a result, built now if it is not there."""
        ...


def weights_file(reference: Reference) -> Path:
    """The file behind `gguf:` or `package:`; that of a package is compared with its pinned hash."""
    if reference.scheme == "package":
        identity(reference)
        return package_file(reference)
    return existing(reference)


def layout(reference: Reference) -> str:
    """How a file of weights is laid out: as GGUF, or as its package is known to keep it."""
    return known("packages").get(reference.name, {}).get("layout", "gguf") if reference.scheme == "package" else "gguf"


def open_converted(reference: Reference, dtype: str, cache: Cache | None) -> tuple[Any, Any]:
    """Module and tokenizer from a GGUF file, dequantised, or from one of another layout; converted once if there is a cache."""
    file = weights_file(reference)
    if cache is None:
        module, tokenizer = read_file(file, reference)
        return (module if dtype == "auto" else module.to(getattr(torch, dtype))), tokenizer
    key, describe = conversion_key(cache, reference), {"what": f"a file of {layout(reference)} as safetensors", "of": reference.text}
    folder = cache.make(key, describe, lambda folder: convert(file, folder, reference))
    return open_folder(check_folder(folder, reference.text), reference.text, dtype)


def conversion_key(cache: Cache, reference: Reference) -> str:
    """The name of a converted file: its content, the version of the converter and of transformers."""
    import transformers

    step = f"convert_{layout(reference)}"
    return cache.key({"step": step, "revision": REVISION[layout(reference)], "transformers": transformers.__version__, **identity(reference)})


def read_file(file: Path, reference: Reference) -> tuple[Any, Any]:
    """Module in float32 and tokenizer, straight from the file."""
    return read_whisper(reference) if layout(reference) == "ctranslate2" else read_gguf(file, reference.text)


def convert(file: Path, folder: Path, reference: Reference) -> None:
    """Writes a file as a folder in float32 with its tokenizer."""
    module, tokenizer = read_file(file, reference)
    with foreign(reference.text, "a model that can be saved"):
        module.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)


def read_gguf(file: Path, where: str) -> tuple[Any, Any]:
    """Module in float32 and tokenizer, straight from the file."""
    from transformers import AutoTokenizer

    header = check_gguf(file)
    config = gguf_config(file, header, where)
    check_enough(config, sum(prod(shape) for shape in header.shapes.values()), where)
    source = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": str(file.resolve()), "local_files_only": True}
    tokenizer = None
    with foreign(where, "a GGUF file that transformers can read"):
        if "tokenizer.ggml.tokens" in header.arrays:
            tokenizer = AutoTokenizer.from_pretrained(**source)
            split_digits(tokenizer, header.metadata.get("tokenizer.ggml.pre"))
        module, info = model_class(config, where).from_pretrained(**source, config=config, dtype=torch.float32, output_loading_info=True)
    check_complete(info, where)
    unmark(module)
    return module, tokenizer


def split_digits(tokenizer: Any, name: Any) -> None:
    """Has the tokenizer cut out each digit first, where its name says so: blanks before a number are then read as they were in training."""
    from tokenizers import pre_tokenizers

    core = tokenizer.backend_tokenizer
    if name in SINGLE_DIGITS and isinstance(core.pre_tokenizer, pre_tokenizers.ByteLevel):
        core.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), core.pre_tokenizer])


def unmark(module: Any) -> None:
    """Takes away the marks of a quantised model: its weights are plain floats by now, and marked it could be neither saved nor trained."""
    for owner, name in ((module, "hf_quantizer"), (module, "is_quantized"), (module, "quantization_method"), (module.config, "quantization_config")):
        if hasattr(owner, name):
            delattr(owner, name)


def gguf_config(file: Path, header: Gguf, where: str) -> Any:
    """The transformers config of a GGUF file.

    Raises:
        Refused: `extra` without the packages that read GGUF; `family` for an architecture that transformers cannot convert.
    """
    for package in ("gguf", "accelerate"):
        if importlib.util.find_spec(package) is None:
            raise Refused("extra", where, f"the package {package}", "not installed", "pip install 'limbeck[gguf]'", 3)
    from transformers import AutoConfig
    from transformers.integrations.gguf import GGUF_CONFIG_ARCHS
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    supported = {*GGUF_SUPPORTED_ARCHITECTURES, *GGUF_CONFIG_ARCHS}
    if header.architecture not in supported:
        raise Refused(
            "family",
            where,
            "a GGUF architecture that transformers reads, like llama, qwen2, qwen3, gemma3",
            quoted(header.architecture),
            "name the model's safetensors folder instead: path:FOLDER",
        )
    num_layers = header.metadata.get(f"{header.architecture}.block_count")
    if type(num_layers) is not int or not 0 < num_layers <= MAX_LAYERS:
        raise corrupt(file, f"block_count from 1 to {MAX_LAYERS:,}", quoted(num_layers))
    try:
        with foreign(where, "a GGUF file with the sizes of its architecture"):
            return AutoConfig.from_pretrained(str(file.parent), gguf_file=str(file.resolve()), local_files_only=True)
    except Failed as error:
        raise corrupt(file, error.expected, error.got) from error
