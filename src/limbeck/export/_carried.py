"""Code beside weights: a folder of a hybrid that stock transformers opens with `trust_remote_code=True`, without limbeck."""

import ast
import importlib.util
import re
from pathlib import Path
from typing import Any

from limbeck.block.base import class_name, class_of, kinds_of
from limbeck.errors import Refused
from limbeck.model.anatomy import anatomy
from limbeck.store import read_json, write_json, write_text

FROM = re.compile(r"from\s+\S+\s+import")
OURS = "limbeck.block"
ALWAYS = {f"{OURS}._hybrid", f"{OURS}._mixing"}


def carry(module: Any, folder: Path) -> None:
    """Writes the code that a hybrid needs into the folder that holds its weights, and names it in config.json.

    Raises:
        Refused: `carried`, where a block of another package needs more of it than files beside it.
    """
    kinds = sorted(set().union(*(kinds_of(spec) for parts in module.config.layer_parts for spec in parts.values())))
    write_text(folder / "modeling_hybrid.py", modeling(module, kinds))
    wanted, written = ALWAYS | {class_of(kind).__module__ for kind in kinds}, set()
    while todo := wanted - written:
        name = min(todo)
        code, beside = carried(name)
        write_text(folder / f"{file_of(name)}.py", code)
        wanted |= beside
        written.add(name)
    values = read_json(folder / "config.json")
    auto = "AutoModelForCausalLM" if anatomy(module).causal else "AutoModelForMaskedLM"
    classes = {"AutoConfig": f"modeling_hybrid.{type(module.config).__name__}", auto: f"modeling_hybrid.{type(module).__name__}"}
    write_json(folder / "config.json", {**values, "auto_map": classes})


def carried(name: str) -> tuple[str, set[str]]:
    """The code of a module, as it stands in the folder, and the modules that it imports from there: those of blocks, and its own neighbours.

    Raises:
        Refused: `carried`, where it imports more of limbeck, or of its own package.
    """
    path, package = importlib.util.find_spec(name), name.rpartition(".")[0]
    lines, beside = Path(path.origin if path and path.origin else "").read_text(encoding="utf-8").splitlines(keepends=True), set()
    for node in ast.walk(ast.parse("".join(lines))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            other = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            if other.startswith("_", len(other.rpartition(".")[0]) + 1) and other.rpartition(".")[0] in (package, OURS):
                lines[node.lineno - 1] = FROM.sub(f"from .{file_of(other)} import", lines[node.lineno - 1], count=1)
                beside.add(other)
                continue
            names = [other]
        wrong = [other for other in names if other.partition(".")[0] in ("limbeck", package.partition(".")[0])]
        if wrong:
            expected = "of limbeck blocks alone (limbeck.block._*), and of its own package files beside it that are named _*"
            do = "move what it needs into such a file: the code of blocks is carried along"
            raise Refused("carried", f"export  {name}", expected, f"an import of {wrong[0]}", do)
    return "".join(lines), beside


def file_of(name: str) -> str:
    """What a module is called in the folder: `_retention`, and of another package `_mylab_retention`."""
    package, _, last = name.rpartition(".")
    return last if package == OURS else f"_{package.replace('.', '_')}{last}"


def modeling(module: Any, kinds: list[str]) -> str:
    """The file that config.json names: the two classes, made of those of the family and of the files beside it."""
    made = [type(part).__name__ for part in (module.config, module)]
    family = [name.removeprefix("Hybrid") for name in made]
    return "\n".join(
        (
            f'"""A {anatomy(module).family.family} with other modules in some of its blocks, as layer_parts in config.json says."""',
            "",
            f"from transformers import {', '.join(family)}",
            "",
            "from ._hybrid import built, hybrid_classes",
            "from ._mixing import hear_padding",
            *(f"from .{file_of(class_of(kind).__module__)} import {imported(kind)}" for kind in kinds),
            "",
            f"KINDS = {{{', '.join(f'{kind!r}: {called(kind)}' for kind in kinds)}}}",
            "",
            "",
            "def build(spec, layer):",
            "    return built(spec, layer, KINDS.__getitem__)",
            "",
            "",
            f"{', '.join(made)} = hybrid_classes({', '.join(family)}, build, hear_padding)",
            "",
        )
    )


def called(kind: str) -> str:
    """What a class is called in that file: `SlidingWindow`, and of another package `MylabRetention`."""
    return class_name(kind.replace(":", "_"))


def imported(kind: str) -> str:
    """How it is imported."""
    return called(kind) if ":" not in kind else f"{class_name(kind.rpartition(':')[2])} as {called(kind)}"
