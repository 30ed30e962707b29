"""Code beside weights: a folder of a hybrid that stock transformers opens with `trust_remote_code=True`, without limbeck."""

import re
from pathlib import Path
from typing import Any

from limbeck.block.base import class_name, kinds_of
from limbeck.model.anatomy import anatomy
from limbeck.store import read_json, write_json, write_text

BLOCK = Path(__file__).parent.parent / "block"
OURS = re.compile(r"^from limbeck\.block\.(_\w+) import", re.M)
def carry(module: Any, folder: Path) -> None:
    """Writes the code that a hybrid needs into the folder that holds its weights, and names it in config.json."""
    kinds = sorted(set().union(*(kinds_of(spec) for parts in module.config.layer_parts for spec in parts.values())))
    write_text(folder / "modeling_hybrid.py", modeling(module, kinds))
    wanted = {"_hybrid", "_mixing", *(f"_{kind}" for kind in kinds)}
    written: set[str] = set()
    while todo := wanted - written:
        name = min(todo)
        code = (BLOCK / f"{name}.py").read_text(encoding="utf-8")
        wanted |= set(OURS.findall(code))
        write_text(folder / f"{name}.py", OURS.sub(r"from .\1 import", code))
        written.add(name)
    values = read_json(folder / "config.json")
    classes = {"AutoConfig": f"modeling_hybrid.{type(module.config).__name__}", "AutoModelForCausalLM": f"modeling_hybrid.{type(module).__name__}"}
    write_json(folder / "config.json", {**values, "auto_map": classes})


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
            "from ._hybrid import hybrid_classes",
            "from ._mixing import hear_padding",
            *(f"from ._{kind} import {class_name(kind)}" for kind in kinds),
            "",
            f"KINDS = {{{', '.join(f'{kind!r}: {class_name(kind)}' for kind in kinds)}}}",
            "",
            "",
            "def build(spec, layer):",
            "    numbers = dict(spec)",
            '    return KINDS[numbers.pop("kind")](**numbers, layer_idx=layer)',
            "",
            "",
            f"{', '.join(made)} = hybrid_classes({', '.join(family)}, build, hear_padding)",
            "",
        )
    )
