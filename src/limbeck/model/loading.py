"""From checked files to modules: the one place that hands a model's files to transformers."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import LimbeckError, Refused
from limbeck.model.anatomy import family_files, read_family
from limbeck.model.folder import Folder, is_hybrid
from limbeck.model.headers import corrupt, quoted
from limbeck.model.packed import CONFIG, Scheme, scheme_of, unpacked
from limbeck.model.quantised import quantise
from limbeck.model.vision_family import vision_family
from limbeck.text.nucleotides import NAMES as NUCLEOTIDES
from limbeck.text.nucleotides import nucleotide_tokenizer
from limbeck.text.transcripts import begun

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
BYTES_KEY = "limbeck_tokenizer"
"""Field of a config that says `bytes` for a model whose tokenizer is limbeck's own, which needs no file."""
SHIPPED = Path(__file__).parent / "tokenizers"
"""The files of tokenizers that limbeck brings along."""
MAX_BUFFER_BYTES = 2**31
NO_LENGTH = 10**29
"""transformers writes about 1e30 where a tokenizer knows no longest text."""


@contextmanager
def foreign(where: str, expected: str) -> Iterator[None]:
    """Inside, other people's code reads other people's files: whatever it raises becomes one of our errors."""
    try:
        yield
    except (LimbeckError, MemoryError):
        raise
    except ImportError as error:
        raise Refused("extra", where, "the packages that this model needs", quoted(str(error), 200), "pip install what is named there", 3) from error
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise Refused(
                "code",
                where,
                "a tokenizer that transformers has",
                "code of its own, which is not trusted",
                "save the tokenizer as tokenizer.json with a class of transformers",
            ) from error
        raise corrupt(where, expected, quoted(f"{type(error).__name__}: {error}", 200)) from error


def build_config(values: dict[str, Any], where: str) -> Any:
    """A transformers config from plain data that has been checked."""
    from transformers import AutoConfig

    with foreign(where, "a config that transformers accepts"):
        return AutoConfig.for_model(**values)


def build_meta(config: Any, where: str) -> nn.Module:
    """A model of this config on the meta device, in eval mode."""
    loader = model_class(config, where)
    with foreign(where, "a config that a model can be built from"), torch.device("meta"):
        module = loader(config).eval().to("meta")  # some make a parameter of their own on the CPU
    if sum(buffer.numel() * buffer.element_size() for buffer in module.buffers()) > MAX_BUFFER_BYTES:
        raise corrupt(where, "sizes that a model can have", "buffers of more than 2 GiB")
    return module


def model_class(config: Any, where: str) -> Any:
    """The transformers class that a config names; else its family's first; else the causal language model of its type, or the bare model.

    Raises:
        Refused: `family`, if transformers has none of these.
    """
    import transformers

    family = {**family_files("speech"), **family_files()}.get(config.model_type)
    whole = vision_family(config)
    for name in (*(config.architectures or ()), *([whole.model_class] if whole else ()), *(list(read_family(family).classes)[:1] if family else ())):
        named = getattr(transformers, str(name), None)
        if isinstance(named, type) and issubclass(named, transformers.PreTrainedModel) and isinstance(config, named.config_class or ()):
            return named
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING as CLASSIFIERS

    masked = transformers.MODEL_FOR_MASKED_LM_MAPPING
    for mapping in (transformers.MODEL_FOR_CAUSAL_LM_MAPPING, CLASSIFIERS, *((masked,) if is_hybrid(config) else ()), transformers.MODEL_MAPPING):
        if type(config) in mapping:
            found = mapping[type(config)]
            return found[0] if isinstance(found, tuple) else found
    raise Refused(
        "family",
        where,
        "a model type for which transformers has a model class",
        quoted(config.model_type),
        "name the class in config.json: architectures",
    )


def open_folder(folder: Folder, where: str, dtype: str) -> tuple[Any, Any]:
    """Module and tokenizer from a folder that has been checked."""
    import transformers

    options: dict[str, Any] = {"local_files_only": True}
    if (scheme := scheme_of(folder.config)) is not None and not folder.auto_map and not folder.pickles:
        module = open_packed(folder, scheme, where, dtype)
        return module, open_tokenizer(folder, module.config, where)
    if folder.auto_map:
        options["trust_remote_code"] = True
        with foreign(where, "a config that the folder's own code accepts"):
            config = transformers.AutoConfig.from_pretrained(folder.path, **options)
        loader = own_loader(folder, where)
    else:
        config = build_config(folder.config, where)
        if not folder.pickles:
            check_enough(config, folder.num_elements, where)
        loader = model_class(config, where)
    with foreign(where, "weights that fit the config"):
        if folder.pickles:
            state = read_pickles(folder.pickles)
            module, info = loader.from_pretrained(None, config=config, state_dict=state, dtype=dtype, output_loading_info=True)
        else:
            module, info = loader.from_pretrained(folder.path, config=config, dtype=dtype, use_safetensors=True, output_loading_info=True, **options)
    check_complete(info, where)
    return module, open_tokenizer(folder, config, where)


def open_packed(folder: Folder, scheme: Scheme, where: str, dtype: str) -> Any:
    """The module of a folder that keeps rounded weights as codes: plain weights on their grid, in layers that round what they hear as it says."""
    config = build_config({name: value for name, value in folder.config.items() if name != CONFIG}, where)
    number = (getattr(config, "dtype", None) or torch.float32) if dtype == "auto" else getattr(torch, dtype)
    state, scales = unpacked(folder, scheme, number)
    check_enough(config, sum(tensor.numel() for tensor in state.values()), where)
    with foreign(where, "weights that fit the config"):
        module, info = model_class(config, where).from_pretrained(None, config=config, state_dict=state, dtype=number, output_loading_info=True)
        layers = {place: module.get_submodule(place) for place in scales}
    check_complete(info, where)
    for place, layer in layers.items():
        if not isinstance(layer, nn.Linear):
            raise corrupt(where, "linear layers, of those that are packed", f"{quoted(place)}: {type(layer).__name__}")
        if scheme.inputs is not None:
            quantise(layer, None, scheme.inputs, scales[place])
    return module


def own_loader(folder: Folder, where: str) -> Any:
    """The Auto class through which a folder's own model class is opened."""
    import transformers

    for name in ("AutoModelForCausalLM", "AutoModel", *folder.auto_map):
        if name in folder.auto_map and name.startswith("AutoModel") and hasattr(transformers, name):
            return getattr(transformers, name)
    raise Refused("code", where, "a model class in auto_map, like AutoModelForCausalLM", quoted(list(folder.auto_map)), "add it to config.json")


def open_tokenizer(folder: Folder, config: Any, where: str) -> Any:
    """The tokenizer of a folder, or None where it has none."""
    if not any((folder.path / name).is_file() for name in TOKENIZER_FILES):
        return bytes_tokenizer() if getattr(config, BYTES_KEY, None) == "bytes" else None
    with foreign(where, "a tokenizer that transformers can read"):
        return tokenizer_in(folder.path, config=config, local_files_only=True, trust_remote_code=bool(folder.auto_map))


def tokenizer_in(path: Path, **how: Any) -> Any:
    """The tokenizer that lies in a folder, as models of its kind read with it."""
    from transformers import AutoTokenizer

    return begun(AutoTokenizer.from_pretrained(path, **how))


def bytes_tokenizer() -> Any:
    """limbeck's tokenizer over bytes."""
    from limbeck.text.bytes_tokenizer import ByteTokenizer

    return ByteTokenizer()


def tokenizer_names() -> tuple[str, ...]:
    """Names of the tokenizers that limbeck brings along."""
    return ("bytes", *sorted([*(file.stem for file in SHIPPED.glob("*.json")), *NUCLEOTIDES]))


def named_tokenizer(name: str) -> Any:
    """The tokenizer of such a name: bytes; python_4k, byte-level BPE made from the topics of Python's help; nucleotides and kmer6, for DNA."""
    from transformers import PreTrainedTokenizerFast

    if name == "bytes":
        return bytes_tokenizer()
    if name in NUCLEOTIDES:
        return nucleotide_tokenizer(NUCLEOTIDES[name])
    return PreTrainedTokenizerFast(tokenizer_file=str(SHIPPED / f"{name}.json"), bos_token="<s>", eos_token="</s>")


def fit_length(tokenizer: Any, config: Any) -> Any:
    """Gives a tokenizer that knows no longest text the positions of its model."""
    positions = getattr(config, "max_position_embeddings", None)
    if tokenizer is not None and positions and getattr(tokenizer, "model_max_length", 0) > NO_LENGTH:
        tokenizer.model_max_length = positions
    return tokenizer


def read_pickles(paths: Sequence[Path]) -> dict[str, Tensor]:
    """Tensors from pickled files that the user allowed; `weights_only` refuses everything else in them."""
    state: dict[str, Tensor] = {}
    for path in paths:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
        state |= loaded.get("state_dict", loaded)
    if not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError("a state dict holds tensors only")
    return state


def check_enough(config: Any, num_elements: int, where: str) -> None:
    """A config that asks for more numbers than the files hold is refused before they are allocated."""
    if getattr(config, "quantization_config", None) is None:
        asked = sum(parameter.numel() for parameter in build_meta(config, where).parameters())
        if asked > num_elements:
            raise corrupt(where, f"{asked:,} weights, as the config says", f"{num_elements:,}")


def check_complete(info: Any, where: str) -> None:
    """A parameter without a weight would be left to chance, and nobody would notice."""
    missing, wrong = sorted(info["missing_keys"]), sorted(str(key) for key in info["mismatched_keys"])
    if missing or wrong:
        got = f"{len(missing) + len(wrong):,} without one that fits, first {quoted((missing + wrong)[0])}"
        raise corrupt(where, "a weight for every parameter", got)
