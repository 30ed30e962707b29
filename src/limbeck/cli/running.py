"""run, resume, evaluate: from words on the command line to a run."""

import re
import time
from pathlib import Path
from typing import Any

from limbeck.cli import Stop
from limbeck.errors import Refused
from limbeck.recipe import Recipe, find, load
from limbeck.start import evaluate, run
from limbeck.terminal import Progress, console, summary_lines
from limbeck.workspace import base_of, runs_folder


def folder_of(run: str) -> Path:
    """The folder of a run: a path, its name, or a recipe's name for its last run."""
    root = runs_folder()
    named = [path for path in (Path(run), root / run) if (path / "recipe.yaml").is_file()]
    places = [(int(m[1]), path.parent) for path in root.glob("*/recipe.yaml") if (m := re.fullmatch(rf"{re.escape(run)}-(\d+)", path.parent.name))]
    numbered = [path for _, path in sorted(places)]
    if not named and not numbered:
        there = ", ".join(sorted(p.parent.name for p in root.glob("*/recipe.yaml"))) or "none"
        raise Refused("run", run, f"a run in {root}/: {there}", run, f"limbeck run {run}")
    return (named or numbered[::-1])[0]


def recipe_of(source: str, changes: list[str], toy: bool) -> tuple[Recipe, str, str]:
    """A recipe, its name, and the folder that its paths start from."""
    try:
        path = find(source)
    except Refused:
        path = folder_of(source) / "recipe.yaml"
    name = path.parent.name if path.name == "recipe.yaml" and path.parent.parent == runs_folder() else path.stem
    return load(path, changes, toy), name + "-toy" * toy, base_of(path.parent)


def begin(source: str, changes: list[str], name: str | None, toy: bool, quiet: bool, as_json: bool, stop: Stop, runs: Path | None = None) -> int:
    """Runs or goes on, and prints what came of it."""
    began, said = time.monotonic(), console(stderr=True)
    of_run = runs_folder() / source / "recipe.yaml"
    if not Path(source).is_file() and not toy and of_run.is_file():
        source, name = str(of_run), name or (None if changes else source)
    if not quiet:
        said.print(f"limbeck run {source} · Ctrl-C stops safely; the same command goes on")
    done = run(source, *changes, name=name, runs=runs, toy=toy, tell=Progress(quiet), stop=stop)
    if not done.finished:
        said.print(f"saved in {done.path}. Go on: limbeck resume {done.path.name}")
        return 128 + stop.signal
    if as_json:
        import json

        print(json.dumps(dict(done.summary), indent=1))
    else:
        print("\n".join(summary_lines(dict(done.summary), done.path)))
        if not quiet and time.monotonic() - began < 2:
            said.print("  finished before: nothing was computed again")
    return 0


def again(folder: Path, kinds: list[str], samples: bool) -> dict[str, Any]:
    """Evaluates a finished run anew: with other evaluators, or the report without held-out texts."""
    from limbeck.conclude import refresh

    if not (folder / "summary.json").is_file():
        raise Refused("run", str(folder), "a finished run", "one that was stopped", f"limbeck resume {folder.name}")
    done = evaluate(folder, tuple(kinds), Progress())
    if not samples:
        refresh(folder, samples)
    return dict(done.summary)
