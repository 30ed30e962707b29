"""Architectures of timm: by name with options, from a config, or from a folder as timm writes them: config.json and model.safetensors."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.component import nearest
from limbeck.errors import Refused
from limbeck.model.folder import WEIGHTS, Folder, check_sizes
from limbeck.model.headers import corrupt, quoted
from limbeck.model.loading import MAX_BUFFER_BYTES, foreign
from limbeck.model.pixels import Preprocessing
from limbeck.model.reference import Reference, existing, identity, known, package_file
from limbeck.text.document import load, value

ARCHITECTURE = re.compile(r"[a-z][a-z0-9_]{0,99}", re.ASCII)
"""Never a scheme of timm's own, with which a name would reach to a hub or a folder."""
KEYS = ("architecture", "num_classes", "model_args", "pretrained_cfg", "seed")
REACHING = ("pretrained", "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir", "features_only", "out_indices")
"""Options that would read weights from elsewhere, or build something that is no classifier."""
OURS = ("num_classes", "seed", "size")
"""Options behind the name that are no arguments of the architecture."""


def is_timm(config: Any) -> bool:
    """Whether the plain values of a config name an architecture of timm."""
    return isinstance(config, Mapping) and isinstance(config.get("architecture"), str) and "model_type" not in config


def named(reference: Reference) -> dict[str, Any]:
    """The config of `timm:NAME?num_classes=10&in_chans=1&size=28`; what is none of ours goes to the architecture.

    Raises:
        Refused: `reference`, for options that cannot be read.
    """
    name, _, query = reference.name.partition("?")
    options: dict[str, Any] = {}
    for word in query.split("&") if query else ():
        key, equals, text = word.partition("=")
        if not equals or not key.isidentifier() or key in options:
            do = f"write timm:{name}?num_classes=10"
            raise Refused("reference", reference.text, "options as name=value, each once, with & between", quoted(word), do)
        options[key] = value(text)
    own = {key: options.pop(key) for key in OURS if key in options}
    size = own.pop("size", None)
    pixels = {} if size is None else {"pretrained_cfg": {"input_size": [None, size, size]}}
    return {"architecture": name, **own, "model_args": options, **pixels}


def described(reference: Reference) -> dict[str, Any] | None:
    """The config of a reference that names an architecture of timm and is no folder of it; None for any other."""
    if reference.scheme == "timm":
        return named(reference)
    if reference.scheme == "package":
        return packaged(reference)
    if reference.scheme != "config":
        return None
    path = existing(reference)
    config = load(path.read_text(encoding="utf-8", errors="replace"), str(path))[0]
    if not is_timm(config):
        return None
    check_sizes(path, config)
    if (other := next((key for key in config if key not in KEYS), None)) is not None:
        near = nearest(other, KEYS)
        raise Refused("key", f"{path}  {other}", ", ".join(KEYS), quoted(other), f"write {near}" if near in KEYS else "move it into model_args")
    return dict(config)


def packaged(reference: Reference) -> dict[str, Any] | None:
    """The config of an image model whose weights lie in a package."""
    entry = known("packages").get(reference.name, {})
    if "architecture" not in entry:
        return None
    pixels = {"mean": entry["mean"], "std": entry["std"], "input_size": [len(entry["mean"]), entry["size"], entry["size"]]}
    return {"architecture": entry["architecture"], "pretrained_cfg": pixels}


def open_packaged(reference: Reference, config: Mapping[str, Any]) -> nn.Module:
    """The module with the weights of a package, whose hash is pinned: named otherwise there, in the order of the architecture."""
    identity(reference)
    with foreign(reference.text, "a file of tensors"):
        state = torch.load(package_file(reference), map_location="cpu", weights_only=True)
    module = build(config, reference.text)
    own = module.state_dict()
    alike = [name.rpartition(".")[2] for name in own] == [name.rpartition(".")[2] for name in state]
    if not alike:
        raise corrupt(reference.text, f"the {len(own)} tensors of {config['architecture']}, in order", f"{len(state)} others")
    return filled(module, dict(zip(own, state.values(), strict=True)), reference.text)


def build(config: Mapping[str, Any], where: str, device: str = "cpu") -> nn.Module:
    """A module of a config, in eval mode, with random weights from its seed; it carries what it expects of pixels as `preprocessing`.

    Raises:
        Refused: `extra` without timm; `family` for a name that timm does not know; `key` and `value` for options that do not fit.
        Failed: `corrupt`, where timm cannot build it.
    """
    try:
        import timm
    except ImportError:
        raise Refused("extra", where, "the package timm", "not installed", "pip install 'limbeck[vision]'", 3) from None
    name, seed = str(config["architecture"]), config.get("seed", 0)
    if not ARCHITECTURE.fullmatch(name) or not timm.is_model(name):
        every = timm.list_models()
        near = nearest(name, every)
        do = f"write {near}" if near in every else "python -c 'import timm; print(timm.list_models())' lists them"
        raise Refused("family", where, f"one of the {len(every):,} architectures of timm {timm.__version__}", quoted(name), do)
    arguments = config.get("model_args") or {}
    if not isinstance(arguments, Mapping) or (got := next((key for key in arguments if key in REACHING), None)):
        raise Refused("key", f"{where}  model_args", f"what builds {name}, by name", quoted(got or arguments), "remove it")
    if type(seed) is not int or not 0 <= seed < 2**63:
        raise Refused("value", f"{where}  seed", "a whole number from 0", quoted(seed), "write seed: 0")
    classes = {"num_classes": config["num_classes"]} if "num_classes" in config else {}
    with foreign(where, f"options that {name} accepts"), torch.random.fork_rng(devices=[]), torch.device(device):
        torch.default_generator.manual_seed(seed)
        module = timm.create_model(name, pretrained=False, **classes, **arguments).eval()
    if sum(buffer.numel() * buffer.element_size() for buffer in module.buffers()) > MAX_BUFFER_BYTES:
        raise corrupt(where, "sizes that a model can have", "buffers of more than 2 GiB")
    module.preprocessing = preprocessing(module, config, where)  # type: ignore[assignment]
    module.config = {**{key: config[key] for key in KEYS[:3] if key in config}, "num_classes": module.num_classes}  # type: ignore[assignment]
    return module


def preprocessing(module: Any, config: Mapping[str, Any], where: str) -> Preprocessing:
    """What the config says of pixels, else what the architecture was published with; a size only where one is asked for, or fixed."""
    own, published = config.get("pretrained_cfg") or {}, module.pretrained_cfg
    mean, std = (own.get(name, published.get(name, (0.5,) * 3)) for name in ("mean", "std"))
    fixed = getattr(getattr(module, "patch_embed", None), "img_size", None) if published.get("fixed_input_size") else None
    size = own["input_size"][1:] if own.get("input_size") else list(fixed) if fixed else None
    channels = next((parameter.shape[1] for parameter in module.parameters() if parameter.ndim == 4), len(mean))
    return Preprocessing.read({"mean": list(mean), "std": list(std), "size": size}, where).fitted(channels)


def open_weights(folder: Folder, where: str) -> nn.Module:
    """The module of a folder that has been checked, with its weights."""
    from safetensors.torch import load_file

    meta = build(folder.config, where, "meta")
    asked = sum(x.numel() for x in meta.state_dict().values())
    if asked > folder.num_elements:
        raise corrupt(where, f"{asked:,} weights, as the config says", f"{folder.num_elements:,}")
    return filled(build(folder.config, where), load_file(folder.path / WEIGHTS), where)


def filled(module: nn.Module, state: Mapping[str, Tensor], where: str) -> nn.Module:
    """The module with these weights, each of which must have its place."""
    own = module.state_dict()
    wrong = [name for name in {**own, **state} if name not in own or name not in state or own[name].shape != state[name].shape]
    if wrong:
        raise corrupt(where, "a weight for every parameter, and no others", f"{len(wrong):,} that do not fit, first {quoted(sorted(wrong)[0])}")
    module.load_state_dict(state)
    return module


def config_json(module: Any) -> dict[str, Any]:
    """The config that timm and limbeck build the module from again."""
    found: Preprocessing = module.preprocessing
    pixels: dict[str, Any] = {"mean": list(found.mean), "std": list(found.std)}
    if found.size is not None:
        pixels["input_size"] = [found.channels, *found.size]
    return {**module.config, "num_features": module.num_features, "pretrained_cfg": pixels}
