"""run and resume: from a recipe to a finished run."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limbeck.errors import Refused
from limbeck.job import Job
from limbeck.recipe import find, load
from limbeck.store import disk, lock, read_json
from limbeck.tell import Quiet, Tell
from limbeck.workspace import base_of, begin, choose


@dataclass(frozen=True)
class Run:
    """A run, finished or stopped."""

    path: Path
    finished: bool
    summary: Mapping[str, Any]

    @property
    def verdict(self) -> str:
        """One sentence: did it work?"""
        return str(self.summary.get("verdict", ""))

    def load(self) -> Any:
        """The student, as a plain transformers model."""
        from limbeck.model.opening import open_pretrained

        return open_pretrained(f"path:{self.path / 'student'}").module


def run(
    source: Any,
    *changes: str,
    name: str | None = None,
    runs: Path | str | None = None,
    toy: bool = False,
    tell: Tell | None = None,
    stop: Callable[[], bool] = lambda: False,
    base: Path | str | None = None,
) -> Run:
    """Runs a recipe to its end, or goes on with it; a finished run costs nothing.

    Args:
        source: a recipe, its file, or the name of a shipped one.
        changes: like `train.0.steps=50`.
        name: of the run's folder; none: the recipe's name and a number.
        runs: folder of all runs; none: LIMBECK_RUNS, else ./runs.
        toy: runs the recipe's toy form, in seconds.
        tell: hears how it goes.
        stop: asked between steps; after a True the run is saved and returns.
        base: folder that relative paths of a recipe start from; none: that of its file, else this one.

    Raises:
        Refused, Failed: in one sentence each.
    """
    recipe = load(source, changes, toy)
    own = find(str(source)) if isinstance(source, (str, Path)) else None
    folder = choose(recipe, (named(own) if own else "run") + "-toy" * toy, name, Path(runs) if runs else None)
    with disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with lock(folder / "run"):
        if (folder / "summary.json").is_file():
            return Run(folder, True, read_json(folder / "summary.json"))
        there = Path(base) if base else own.parent if own else None
        start = begin(folder, recipe, base_of(there) if there else ".")
        summary = Job(recipe, folder, tell or Quiet(), start).go(stop)
        return Run(folder, summary is not None, summary or {})


def named(path: Path) -> str:
    """What runs of a recipe are called: its file's name, or that of the recipe that a run was made with."""
    return re.sub(r"-\d+$", "", path.parent.name) if path.name == "recipe.yaml" else path.stem


def resume(folder: str | Path, tell: Tell | None = None, stop: Callable[[], bool] = lambda: False) -> Run:
    """Goes on with the run in a folder."""
    path = Path(folder)
    return run(path / "recipe.yaml", name=path.name, runs=path.parent, tell=tell, stop=stop)


def evaluate(folder: str | Path, kinds: tuple[str, ...] = (), tell: Tell | None = None) -> Run:
    """Measures a finished run again, with its own evaluators or others, and writes its report anew."""
    path = Path(folder)
    if not (path / "summary.json").is_file():
        raise Refused("run", str(path), "a finished run", "one that was stopped, or none", f"limbeck resume {path.name}")
    recipe = load(path / "recipe.yaml", [f"evaluate=[{', '.join(kinds)}]"] if kinds else [])
    with lock(path / "run"):
        job = Job(recipe, path, tell or Quiet(), begin(path, recipe, "."))
        job.open()
        job.steps_auto = job.settle_steps()
        before, parts = read_json(path / "summary.json"), job.measure()
        merged = {
            name: {**before["parts"][name], **part} if isinstance(part, dict) and isinstance(before["parts"].get(name), dict) else part
            for name, part in parts.items()
        }
        exported = path / "steps" / "export.json"
        return Run(path, True, job.close(read_json(exported) if exported.is_file() else [], {**before["parts"], **merged}))
