"""The folder of a run: which one, what it was made with, and on what machine."""

import contextlib
import os
import platform
import re
import sys
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from limbeck.component import canonical
from limbeck.errors import Refused
from limbeck.recipe import Recipe, load
from limbeck.store import read_json, write_json, write_text

ALLOWED = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "HF_HUB_OFFLINE", "LIMBECK_HOME", "LIMBECK_RUNS", "LIMBECK_LOG")
"""Variables that may be written down; no other leaves the machine's environment, so that no key does."""
PACKAGES = ("limbeck", "torch", "transformers", "tokenizers", "safetensors", "numpy", "pydantic")

CLOCKS = {"wall_seconds": "clock.json", "cpu_seconds": "processor.json"}
"""What a run is timed by -> the file that holds the seconds of each step."""


def runs_folder() -> Path:
    """Where runs live: LIMBECK_RUNS, else ./runs."""
    return Path(os.environ.get("LIMBECK_RUNS") or "runs")


def text_of(recipe: Recipe) -> str:
    """A recipe as YAML, resolved: every default written out; reads back as the same recipe."""
    plain = {name: value for name, value in recipe.model_dump(mode="json").items() if value not in (None, [], {}, "")}
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=120)


def computed(recipe: Recipe) -> dict[str, Any]:
    """What a recipe computes, without what only describes it."""
    return {name: value for name, value in canonical(recipe).items() if name not in Recipe.cosmetic}


def first_difference(mine: Any, theirs: Any, path: str = "") -> str | None:
    """The first place in which two recipes differ, as `train.0.steps 3000, was 2000`."""
    if isinstance(mine, dict) and isinstance(theirs, dict):
        for key in dict.fromkeys([*theirs, *mine]):
            if found := first_difference(mine.get(key), theirs.get(key), f"{path}.{key}".strip(".")):
                return found
        return None
    if isinstance(mine, list) and isinstance(theirs, list) and len(mine) == len(theirs):
        return next((d for i, (a, b) in enumerate(zip(mine, theirs, strict=True)) if (d := first_difference(a, b, f"{path}.{i}"))), None)
    return None if mine == theirs else f"{path} {short(mine)}, was {short(theirs)}"


def short(value: Any) -> str:
    text = str(value)
    return text if len(text) < 60 else text[:57] + "..."


def choose(recipe: Recipe, name: str, run: str | None = None, runs: Path | None = None) -> Path:
    """The folder of this recipe's run: the one that was made with it, or the next free number; `run` names one.

    Raises:
        Refused: `run` was made with another recipe.
    """
    root = runs or runs_folder()
    if run is not None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", run):
            raise Refused("run", "command line  --run", "a name of at most 100 letters, digits, ., _ and -", short(ascii(run)), "choose another name")
        folder = root / run
        if (folder / "recipe.yaml").is_file() and (found := first_difference(computed(recipe), computed(load(folder / "recipe.yaml")))):
            raise Refused(
                "run",
                str(folder),
                "the recipe this folder was made with",
                f"{found} (first difference)",
                f"leave out --run {run}, or choose another name",
            )
        return folder
    taken = sorted((int(m[1]), path) for path in root.glob(f"{name}-*") if (m := re.fullmatch(rf"{re.escape(name)}-(\d+)", path.name)))
    for _, path in taken:
        if (path / "recipe.yaml").is_file() and was_made_with(path, recipe):
            return path
    return root / f"{name}-{taken[-1][0] + 1 if taken else 1}"


def was_made_with(folder: Path, recipe: Recipe) -> bool:
    """Whether a run's recipe is this one; a recipe that can no longer be read is another one."""
    try:
        return computed(load(folder / "recipe.yaml")) == computed(recipe)
    except Refused:
        return False


def begin(folder: Path, recipe: Recipe, base: str) -> str:
    """Writes what a run was made with, once; returns the folder that its relative paths start from, the same whenever it goes on."""
    if not (folder / "recipe.yaml").is_file():
        write_text(folder / "base.txt", f"{Path(base).resolve()}\n")
        write_text(folder / "recipe.yaml", text_of(recipe))
    write_json(folder / "environment.json", environment())
    return base_of(folder)


def same_inputs(folder: Path, mine: dict[str, Any]) -> None:
    """Refuses to go on with other data or models than a run began with: tables and results would no longer belong together."""
    path = folder / "steps" / "inputs.json"
    theirs = read_json(path) if path.is_file() else mine
    changed = [name for name in dict.fromkeys([*theirs, *mine]) if theirs.get(name) != mine.get(name)]
    if changed:
        do = "put them back, or begin another run with --run NAME"
        raise Refused("inputs", str(folder), "the data and models that this run began with", f"other {', '.join(changed)}", do)
    write_json(path, mine)


def base_of(folder: Path) -> str:
    """The folder that the relative paths of a run's recipe start from."""
    path = folder / "base.txt"
    return path.read_text(encoding="utf-8").strip() if path.is_file() else str(folder)


def environment() -> dict[str, Any]:
    """Machine, versions, and the variables that may be told."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "packages": found,
        "byteorder": sys.byteorder,
        "variables": {name: os.environ[name] for name in ALLOWED if name in os.environ},
    }


def machine() -> str:
    """One line about where a figure was measured."""
    return f"{os.cpu_count()} CPU cores, {platform.machine()}"


@contextlib.contextmanager
def timed(steps: Path, name: str) -> Iterator[None]:
    """Adds the seconds that pass inside to those of a step of a run: by the clock, and of the processors that this process and its children used."""
    began = time.perf_counter(), processor_seconds()
    try:
        yield
    finally:
        for now, before, file in zip((time.perf_counter(), processor_seconds()), began, CLOCKS.values(), strict=True):
            kept = read_json(steps / file) if (steps / file).is_file() else {}
            write_json(steps / file, {**kept, name: kept.get(name, 0.0) + now - before})


def processor_seconds() -> float:
    """Of this process and the children that it has waited for."""
    return sum(os.times()[:4])


def spent(steps: Path) -> dict[str, float | None]:
    """Seconds of all steps of a run, in all its sessions; None for a clock that an earlier session did not have."""
    found = {name: read_json(steps / file) if (steps / file).is_file() else {} for name, file in CLOCKS.items()}
    every = set().union(*found.values())
    return {name: sum(clock.values()) if clock.keys() == every else None for name, clock in found.items()}
