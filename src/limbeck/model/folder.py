"""A model folder is checked before transformers sees it: which files it names, what code it wants to run, how its weights are kept."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from limbeck.errors import Refused
from limbeck.model.headers import Stored, check_safetensors, corrupt, quoted, read_json

WEIGHTS = "model.safetensors"
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
"""Endings of weight files that run code when they are read carelessly."""
REACHING = (
    "attn_implementation",
    "_attn_implementation",
    "_attn_implementation_internal",
    "experts_implementation",
    "_experts_implementation",
    "_experts_implementation_internal",
    "transformers_weights",
    "fusion_config",
    "auto_map",
    "name_or_path",
    "_name_or_path",
    "_commit_hash",
)
"""Keys of a config with which it would name files, kernels or code elsewhere: they are dropped."""
HYBRID = "hybrid_"
"""What stands before a family in the `model_type` of its models whose blocks hold other modules."""
MAX_LAYERS, MAX_SIZE = 4096, 2**40


@dataclass(frozen=True)
class Folder:
    """A model folder whose files have been checked."""

    path: Path
    config: dict[str, Any]
    """config.json, without the keys that reach out of the folder."""
    auto_map: dict[str, Any]
    """The classes that the folder brings along, by Auto class; empty unless its code is trusted."""
    stored: dict[str, Stored] = field(default_factory=dict)
    """Every tensor of its safetensors files."""
    pickles: tuple[Path, ...] = ()
    """Its weights, if there are no safetensors and pickles are allowed."""

    @property
    def num_elements(self) -> int:
        """Numbers in its safetensors files."""
        return sum(prod(tensor.shape) for tensor in self.stored.values())


def trusted_root(folder: Path) -> Path:
    """The folder that links may not leave: itself, or for a snapshot in the hub's cache the model's whole entry (its files are links)."""
    real = folder.resolve()
    return real.parent.parent if real.parent.name == "snapshots" and (real.parent.parent / "blobs").is_dir() else real


def inside(root: Path, name: str) -> Path:
    """A file named by a foreign document, which has to lie inside a folder, also after following links.

    Raises:
        Failed: `corrupt`, if the name leads out of it.
    """
    if isinstance(name, str) and name and "\0" not in name and "\\" not in name and not Path(name).is_absolute():
        path = root / name
        if ".." not in Path(name).parts and path.resolve().is_relative_to(trusted_root(root)):
            return path
    raise corrupt(root, "files inside this folder", quoted(name))


def check_index(folder: Path, name: str = WEIGHTS + ".index.json") -> dict[str, Path]:
    """Reads the index of a sharded model: tensor name -> shard, each a file that exists inside the folder.

    Raises:
        Failed: `corrupt`, for a name that leads out of the folder or to no file.
    """
    shards = read_json(inside(folder, name)).get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(shard, str) for shard in shards.values()):
        raise corrupt(folder / name, "weight_map: tensor name to file name", quoted(shards))
    paths = {shard: inside(folder, shard) for shard in set(shards.values())}
    for shard, path in paths.items():
        if not path.is_file():
            raise corrupt(folder / name, f"the shard {quoted(shard)}", "no such file")
    return {tensor: paths[shard] for tensor, shard in shards.items()}


def check_folder(path: Path, where: str, *, allow_pickle: bool = False, trust_code: str | None = None, weights: bool = True) -> Folder:
    """Checks config, code and weights of a model folder; nothing of it is run, no weight is read.

    Args:
        path: the folder.
        where: the reference, for errors.
        allow_pickle: whether weights may be kept as pickles (they are read with `weights_only=True`).
        trust_code: the hash of the folder's code, from whoever has read it.
        weights: False looks at the config alone.

    Raises:
        Refused: `reference` (no model), `code` (code that is not trusted), `pickle`.
        Failed: `corrupt`.
    """
    if not (path / "config.json").is_file():
        raise Refused("reference", where, "a model folder, with config.json in it", describe(path), "name the folder that save_pretrained wrote")
    if (path / "adapter_config.json").exists():
        raise Refused("reference", where, "a whole model", "an adapter (adapter_config.json)", "merge it into its base model and save that")
    config = read_json(inside(path, "config.json"), 10_000_000)
    check_sizes(path / "config.json", config)
    auto_map = check_code(path, where, config, trust_code)
    kept = {key: value for key, value in config.items() if key not in REACHING}
    if not weights:
        return Folder(path, kept, auto_map)
    if any(file.name.startswith("shard-") for file in path.glob("*.safetensors")):
        raise Refused("reference", where, "weights in one piece or in shards with an index", "a distributed checkpoint", "consolidate it first")
    if (path / WEIGHTS).is_file():
        return Folder(path, kept, auto_map, check_safetensors(inside(path, WEIGHTS)))
    if (path / (WEIGHTS + ".index.json")).is_file():
        return Folder(path, kept, auto_map, check_shards(path))
    return Folder(path, kept, auto_map, pickles=find_pickles(path, where, allow_pickle))


def check_shards(path: Path) -> dict[str, Stored]:
    """The tensors of a sharded model; index and shards have to agree."""
    index = check_index(path)
    stored: dict[str, Stored] = {}
    for shard in sorted(set(index.values())):
        tensors = check_safetensors(shard)
        wrong = [name for name, at in index.items() if at == shard and name not in tensors]
        if wrong:
            raise corrupt(shard, f"the tensor {quoted(wrong[0])}, as the index says", "no such tensor")
        stored |= tensors
    return stored


def find_pickles(path: Path, where: str, allow_pickle: bool) -> tuple[Path, ...]:
    """The weight files of a folder without safetensors."""
    beside = ("training_args", "optimizer", "scheduler")
    found = sorted(file for file in path.iterdir() if file.suffix in PICKLES and file.is_file() and file.stem not in beside)
    if not found:
        raise Refused("reference", where, f"weights: {WEIGHTS}, or an index", describe(path), "name the folder that save_pretrained wrote")
    if not allow_pickle:
        raise Refused(
            "pickle",
            where,
            f"weights as safetensors ({WEIGHTS})",
            f"{found[0].name}: pickles can run code when they are read",
            "save them as safetensors, or repeat with --allow-pickle if you trust the source (read with weights_only)",
        )
    index = path / "pytorch_model.bin.index.json"
    if index.is_file():
        return tuple(sorted(set(check_index(path, index.name).values())))
    found = [file for file in found if file.name == "pytorch_model.bin"] or found
    if len(found) > 1:
        raise Refused("reference", where, "one file of weights", ", ".join(file.name for file in found[:4]), "move the others away")
    return (inside(path, found[0].name),)


def check_sizes(path: Path, config: Any, key: str = "") -> None:
    """Sizes that no model has would fill the memory before anything else could be noticed."""
    if isinstance(config, dict):
        for name, value in config.items():
            check_sizes(path, value, name)
    elif isinstance(config, list) and len(config) > 100_000:
        raise corrupt(path, "lists of at most 100,000 items", f"{quoted(key)}: {len(config):,}")
    elif type(config) is int and abs(config) > (MAX_LAYERS if key.endswith(("layers", "n_layer")) else MAX_SIZE):
        raise corrupt(path, "sizes that a model can have", f"{quoted(key)}: {quoted(config)}")


def check_code(path: Path, where: str, config: dict[str, Any], trust_code: str | None) -> dict[str, Any]:
    """The folder's own classes if its code is needed or wanted, and trusted; else nothing."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    auto_map, model_type = config.get("auto_map") or {}, config.get("model_type")
    if model_type is None and isinstance(config.get("architecture"), str) and not auto_map and trust_code is None:
        return {}  # an architecture of timm, which brings no code along
    if is_hybrid(config) and trust_code is None:  # limbeck has the code that lies beside these weights
        known_hybrid(str(model_type))
    if not auto_map or not isinstance(auto_map, dict):
        if trust_code is not None:
            raise Refused("code", where, "a folder whose config.json names code (auto_map)", "none", "leave out --trust-code")
        if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
            raise Refused(
                "family",
                f"{where}  config.json  model_type",
                "a model type of the installed transformers",
                quoted(model_type),
                "install a newer transformers, or save the model with a class it has",
            )
        return {}
    if trust_code is None and isinstance(model_type, str) and model_type in CONFIG_MAPPING:
        return {}
    elsewhere = [value for value in auto_map.values() if "--" in str(value)]
    if elsewhere:
        raise Refused("code", where, "code inside the folder, which can be read and hashed", quoted(elsewhere[0]), "copy that code into the folder")
    code = code_digest(path)
    if trust_code != code:
        got = f"model_type {quoted(model_type)} in its own code" if trust_code is None else f"--trust-code {quoted(trust_code)}"
        raise Refused(
            "code",
            where,
            "a model class of transformers, or code with a hash that you trust",
            got,
            f"read the .py files of the folder, then repeat with --trust-code {code}",
        )
    return auto_map


def is_hybrid(config: Any) -> bool:
    """Whether a config (or the plain values of one) is of a model whose blocks hold other modules."""
    model_type = config.get("model_type") if isinstance(config, Mapping) else getattr(config, "model_type", None)
    return isinstance(model_type, str) and model_type.startswith(HYBRID)


def known_hybrid(model_type: str) -> None:
    """Lets transformers know the class of a hybrid of a family whose anatomy is known; of another one it stays unknown."""
    from limbeck.model.anatomy import family_files
    from limbeck.model.hybrid import hybrid

    family = model_type.removeprefix(HYBRID)
    if family in family_files():
        hybrid(family)


def code_digest(path: Path) -> str:
    """sha256 over names and content of every .py file below a folder."""
    out = hashlib.sha256()
    for file in sorted(path.rglob("*.py")):
        name = file.relative_to(path).as_posix()
        out.update(f"{name}\0{hashlib.sha256(inside(path, name).read_bytes()).hexdigest()}\n".encode())
    return out.hexdigest()


def describe(path: Path) -> str:
    """The first names in a folder, for errors."""
    names = sorted(file.name for file in path.iterdir())
    return ", ".join(quoted(name)[1:-1] for name in names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") or "an empty folder"
