"""Opening a model by reference: from a folder, a GGUF file, a package, the hub, a run or a config."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from limbeck.component import nearest
from limbeck.errors import Failed, Refused
from limbeck.model import crepe, from_diffusers, from_timm, pipeline
from limbeck.model.anatomy import family_files
from limbeck.model.conversion import Cache, conversion_key, gguf_config, open_converted, weights_file
from limbeck.model.folder import check_folder, check_sizes
from limbeck.model.headers import check_gguf, quoted
from limbeck.model.image import image_families, is_image, processed
from limbeck.model.loading import BYTES_KEY, build_config, build_meta, fit_length, foreign, model_class, named_tokenizer, open_folder, tokenizer_names
from limbeck.model.log_mel import refuse_other
from limbeck.model.reference import Reference, existing, in_folder, known, provenance, snapshot
from limbeck.model.sound import Hearing, is_sound, sound_families
from limbeck.model.transcriber import is_transcriber
from limbeck.model.vision_family import vision_families, vision_family
from limbeck.model.vision_language import MARK
from limbeck.text.bytes_tokenizer import ByteTokenizer
from limbeck.text.document import load

DTYPES = ("float32", "bfloat16", "float16", "auto")
HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.tiktoken", "*.txt", "*.jinja", "*.py", "README.md"]
"""What is fetched of a model of the hub; never what lies in folders below, nor a second copy of the weights."""


@dataclass(frozen=True)
class Opened:
    """A model ready to be given a role."""

    module: Any
    """A transformers model in eval mode on the CPU; every parameter comes from the file or, for `config:`, from the seed."""
    tokenizer: Any
    """None where the model has none."""
    config: Any
    reference: Reference
    provenance: dict[str, Any] = field(default_factory=dict)
    """Name, revision, content hash or commit, licence, restrictions."""


def open_pretrained(
    reference: str | Reference, *, dtype: str = "float32", allow_pickle: bool = False, trust_code: str | None = None, cache: Cache | None = None
) -> Opened:
    """Opens the model that a reference names.

    Args:
        reference: see `Reference`.
        dtype: float32, bfloat16, float16, or auto (as it was saved).
        allow_pickle: whether weights may be kept as pickles; they are read with `weights_only=True`.
        trust_code: the hash of the model's own code, from whoever has read it; without it no code of a model is run.
        cache: where a GGUF file is kept once it is converted; without one it is converted each time.

    Raises:
        Refused: `reference`, `package`, `pickle`, `code`, `family`, `extra`, `value`.
        Failed: `corrupt`, `hash`, `hub`.
    """
    reference = Reference.parse(reference) if isinstance(reference, str) else reference
    if dtype not in DTYPES:
        raise Refused("value", f"{reference}  dtype", "one of " + ", ".join(DTYPES), quoted(dtype), "write float32")
    if trust_code is not None and reference.scheme not in ("hf", "path", "run"):
        raise Refused("code", reference.text, "a folder, which can hold code", reference.scheme, "leave out --trust-code")
    folder: Path | None = None
    if reference.scheme == "cache":
        raise Refused("reference", reference.text, "a model with weights", "what a teacher has said: only a teacher can be that", "name a model")
    if (plain := from_timm.described(reference)) is not None:
        with own_file(reference):
            packed = reference.scheme == "package"
            module = from_timm.open_packaged(reference, plain) if packed else from_timm.build(plain, reference.text)
            return without_tokenizer(module, reference, dtype)
    if (make := pipeline.described(reference)) is not None:
        with own_file(reference):
            return without_tokenizer(make("cpu"), reference, dtype)
    if (plain := from_diffusers.described(reference)) is not None:
        with own_file(reference):
            here = None if reference.scheme == "config" else existing(reference)
            text = reference.text
            return without_tokenizer(from_diffusers.open_folder(here, plain, text) if here else from_diffusers.build(plain, text), reference, dtype)
    if (plain := crepe.described(reference)) is not None:
        with own_file(reference):
            return without_tokenizer(crepe.open_weights(reference, plain), reference, dtype)
    if reference.scheme == "config":
        with own_file(reference):
            module, tokenizer = random_model(reference, dtype)
    elif reference.scheme in ("gguf", "package") and not in_folder(reference):
        module, tokenizer = open_converted(reference, dtype, cache)
    else:
        folder = fetch(reference, ["*.bin"] * allow_pickle) if reference.scheme == "hf" else existing(reference)
        checked = check_folder(folder, reference.text, allow_pickle=allow_pickle, trust_code=trust_code)
        if from_timm.is_timm(checked.config):
            return without_tokenizer(from_timm.open_weights(checked, reference.text), reference, dtype)
        module, tokenizer = open_folder(checked, reference.text, dtype)
    module.config._name_or_path = reference.text
    if is_image(module) or vision_family(module):
        module.preprocessing = processed(module, folder)  # type: ignore[assignment]
    if is_sound(module):
        module.hearing = Hearing.read(folder)  # type: ignore[assignment]
    if is_transcriber(module):
        refuse_other(folder, module.config.num_mel_bins)
    return Opened(module.eval(), fit_length(tokenizer, module.config), module.config, reference, provenance(reference))


def without_tokenizer(module: Any, reference: Reference, dtype: str) -> Opened:
    """A model that reads no text, in a dtype."""
    module = module if dtype in ("auto", "float32") else module.to(getattr(torch, dtype))
    return Opened(module, None, module.config, reference, provenance(reference))


def open_meta(reference: str | Reference, *, cache: Cache | None = None) -> tuple[nn.Module, Any]:
    """The model without its weights, on the meta device, and its config: what `plan` looks at. Public models need no download.

    Raises:
        Refused: `reference`, `package`, `code`, `family`, `extra`.
        Failed: `corrupt`, `hub`.
    """
    reference = Reference.parse(reference) if isinstance(reference, str) else reference
    with own_file(reference):
        if (make := pipeline.described(reference)) is not None:
            module: Any = make("meta")
            return module, module.config
        if (plain := from_diffusers.described(reference)) is not None:
            return from_diffusers.build(plain, reference.text, None if reference.scheme == "config" else existing(reference), "meta"), plain
        if (plain := crepe.described(reference)) is not None:
            return crepe.build(plain, reference.text, "meta"), plain
        if (plain := from_timm.described(reference) or timm_folder(reference)) is not None:
            return from_timm.build(plain, reference.text, "meta"), plain
        config = read_config(reference, cache)
        module = build_meta(config, reference.text)
        if is_image(module) or vision_family(module):
            module.preprocessing = processed(module, own_folder(reference))  # type: ignore[assignment]
        if is_sound(module):
            module.hearing = Hearing.read(own_folder(reference))  # type: ignore[assignment]
        return module, config


def own_folder(reference: Reference) -> Path | None:
    """The folder of a model that is on this machine by itself."""
    return existing(reference) if reference.scheme in ("path", "run") else None


def timm_folder(reference: Reference) -> dict[str, Any] | None:
    """The config of a folder that holds a model of timm."""
    if reference.scheme not in ("path", "run"):
        return None
    path = existing(reference)
    if not (path / "config.json").is_file():
        return None
    config = check_folder(path, reference.text, weights=False).config
    return config if from_timm.is_timm(config) else None


def shapes(reference: str | Reference, *, cache: Cache | None = None) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter by name, tied ones once; no weights are read."""
    return {name: tuple(parameter.shape) for name, parameter in open_meta(reference, cache=cache)[0].named_parameters()}


@contextmanager
def own_file(reference: Reference) -> Iterator[None]:
    """A config that the user wrote is not a damaged file: what is wrong in it is to be corrected, not fetched again."""
    try:
        yield
    except Failed as error:
        if reference.scheme not in ("config", "timm") or error.slug != "corrupt":
            raise
        do = "correct the sizes in this file" if reference.scheme == "config" else "correct what stands behind the question mark"
        raise Refused("value", reference.text, error.expected, error.got, do) from error


def read_config(reference: Reference, cache: Cache | None = None) -> Any:
    """The transformers config of a model; of a public one that is not on this machine, from known.json."""
    where = reference.text
    if reference.scheme == "config":
        return config_file(reference)[0]
    if reference.scheme == "package" and (shape := known("packages").get(reference.name, {}).get("shape")):
        return build_config(known("shapes")[shape]["config"], where)
    if reference.scheme in ("gguf", "package") and not in_folder(reference):
        file = weights_file(reference)
        folder = cache.get(conversion_key(cache, reference)) if cache is not None else None
        if folder is None:
            return gguf_config(file, check_gguf(file), where)
    elif reference.scheme == "hf":
        folder = local(reference)
        if folder is None and reference.name in known("shapes"):
            return build_config(known("shapes")[reference.name]["config"], where)
        folder = folder or fetch(reference, [], ["config.json"])
    else:
        folder = existing(reference)
    return build_config(check_folder(folder, where, weights=False).config, where)


def local(reference: Reference) -> Path | None:
    """The folder of a model of the hub, if its config is in the hub's local cache."""
    try:
        folder = snapshot(reference)
    except Refused:
        return None
    return folder if (folder / "config.json").is_file() else None


def offline() -> bool:
    """Whether the environment says that the hub is not to be asked."""
    return any(os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE") for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))


def fetch(reference: Reference, more: list[str], only: list[str] | None = None) -> Path:
    """The folder of a model of the hub in the hub's local cache, downloaded as far as it is missing.

    Raises:
        Failed: `hub`, if it is not there and cannot be had.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                reference.name,
                revision=reference.revision,
                allow_patterns=only or HUB_FILES + more,
                ignore_patterns=["*/*", "consolidated*"],
                local_files_only=offline(),
            )
        )
    except Exception as error:  # the hub's client and the network below it raise many kinds
        got = "not in the local cache, and the hub is switched off (HF_HUB_OFFLINE)" if offline() else quoted(f"{type(error).__name__}: {error}", 160)
        raise Failed(
            "hub",
            reference.text,
            "a model of the hub, or its copy in the local cache",
            got,
            "check name, network and access, then repeat the command",
        ) from error


def random_model(reference: Reference, dtype: str) -> tuple[Any, Any]:
    """A model of a config file with random weights, always the same for the same seed."""
    config, seed, tokenizer = config_file(reference)
    loader = model_class(config, reference.text)
    with foreign(reference.text, "a config that a model can be built from"), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # not torch.manual_seed, which would move the generators of every GPU too
        module = loader._from_config(config, dtype=torch.float32)
    if dtype != "auto":
        for parameter in module.parameters():  # not the buffers, such as those of rotations: they stay float32 when a folder is opened
            parameter.data = parameter.data.to(getattr(torch, dtype))
        module.config.dtype = getattr(torch, dtype)
    return module, tokenizer


def config_file(reference: Reference) -> tuple[Any, int, Any]:
    """Config, seed and tokenizer of a JSON or YAML file: fields of the transformers config, `model_type`, and `seed` and `tokenizer` of ours.

    Raises:
        Refused: `key` or `value`, with the field.
    """
    path = existing(reference)
    values, lines = load(path.read_text(encoding="utf-8", errors="replace"), str(path))
    mapping = isinstance(values, dict)
    seed, kind = (values.pop("seed", 0), values.pop("tokenizer", ...)) if mapping else (0, ...)
    check_fields(values, path, lines)
    check_sizes(path, values)
    kind = kind if kind is not ... else None if values["model_type"] in {**image_families(), **sound_families()} else "bytes"
    if type(seed) is not int or not 0 <= seed < 2**63:
        raise Refused("value", f"{path}  seed", "a whole number from 0", quoted(seed), "write seed: 0")
    if kind not in (*tokenizer_names(), None):
        raise Refused("value", f"{path}  tokenizer", f"{', '.join(tokenizer_names())}, or null for none", quoted(kind), "write tokenizer: bytes")
    tokenizer = named_tokenizer(kind) if kind else None
    inner, place = values, ""
    if values["model_type"] in family_files("speech") and tokenizer is not None:
        values = {"pad_token_id": None, "decoder_start_token_id": tokenizer.bos_token_id, **values}
        inner = values
    if values["model_type"] in vision_families():
        for name in ("vision_config", "text_config"):
            check_fields(values.get(name), path, lines, name)
        inner, place = values["text_config"], "text_config."
        values |= {name: x for name, x in image_token(tokenizer).items() if not {name, "image_token_id"} & values.keys()}
    if tokenizer is not None:
        values |= {BYTES_KEY: kind} if kind == "bytes" else {}
        inner["vocab_size"] = inner.get("vocab_size", len(tokenizer))
        for name in ("bos_token_id", "eos_token_id"):  # no pad: an embedding does not learn the row it is told to pad with
            inner.setdefault(name, getattr(tokenizer, name))
        if type(inner["vocab_size"]) is int and inner["vocab_size"] < len(tokenizer):
            raise Refused(
                "value",
                f"{path}  {place}vocab_size",
                f"at least {len(tokenizer)}, for tokenizer: {kind}",
                str(inner["vocab_size"]),
                f"write vocab_size: {len(tokenizer)}, or tokenizer: null",
            )
    return build_config(values, reference.text), seed, tokenizer


def check_fields(values: Any, path: Path, lines: Mapping[tuple, int], part: str = "") -> None:
    """Refuses a config, or a part of one, without a `model_type` of transformers, or with a field that such a config does not have."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    place = f"{part}." if part else ""
    if not isinstance(values, dict) or not isinstance(values.get("model_type"), str) or values["model_type"] not in CONFIG_MAPPING:
        got = quoted(values.get("model_type", "nothing")) if isinstance(values, dict) else type(values).__name__
        raise Refused("key", f"{path}  {place}model_type", "a model type of transformers, like llama", got, f"write {place}model_type: llama")
    mapped = CONFIG_MAPPING[values["model_type"]]
    fields = {*mapped().to_dict(), *getattr(mapped, "attribute_map", {}), "architectures", "rope_theta", "rope_scaling", "model_type", "num_labels"}
    for name in values:
        if name not in fields:
            near = nearest(name, fields)
            raise Refused(
                "key",
                f"{path}:{lines.get((part, name) if part else (name,), 1)}  {place}{name}",
                f"a field of {mapped.__name__}",
                name,
                f"write {near}" if near in fields else f"remove {name}",
            )


def image_token(tokenizer: Any) -> dict[str, int]:
    """The id that stands for an image: of bytes one that no text has, else of a token that is added."""
    from tokenizers import AddedToken

    if tokenizer is None or isinstance(tokenizer, ByteTokenizer):
        return {} if tokenizer is None else {"image_token_index": 255}
    tokenizer.add_tokens([AddedToken(MARK, special=True, normalized=False)], special_tokens=True)
    return {"image_token_index": tokenizer.convert_tokens_to_ids(MARK)}
