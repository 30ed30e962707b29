"""A whole run in about a second: a recipe of four steps, and what tests ask about its folder."""

import random
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import limbeck.cli
from limbeck.examine import draw_samples
from limbeck.store import Log, load_state
from limbeck.train.loop import Loop

TINY = Path(__file__).parents[1] / "src/limbeck/recipes/models/tiny_llama.json"
"""A llama of four blocks with limbeck's byte tokenizer."""
FEW = {"kind": "text", "path": "words.txt", "separator": "\n\n", "split": 0.2}


def words(folder: Path, name: str = "words.txt", seed: int = 0, num: int = 24) -> Path:
    """A file of documents of one piece each, of which no two share 13 words in a row."""
    draw = random.Random(seed)
    letters = "abcdefghijklmnopqrstuvwxyz"
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n\n".join(" ".join("".join(draw.choices(letters, k=draw.randint(2, 5))) for _ in range(16)) for _ in range(num)))
    return path


def toy(folder: Path, stage: Mapping[str, Any] | None = None, **keys: Any) -> dict[str, Any]:
    """A recipe of one stage of four steps on a file of words in `folder`; `stage` changes the stage, `keys` the recipe."""
    one = {
        "name": "main",
        "steps": 4,
        "batch": 2,
        "objective": ["forward_kl"],
        "checkpoint": {"every": 1},
        "optimiser": {"lr": 1e-3},
        **(stage or {}),
    }
    recipe = {
        "data": [{**FEW, "path": str(words(folder))}, {"kind": "pack", "length": 40}],
        "teacher": f"config:{TINY}",
        "threads": 1,
        "student": {"start": "teacher", "surgery": [{"kind": "drop_blocks", "keep": [0, 3]}]},
        "train": [one],
    }
    return {name: value for name, value in {**recipe, **keys}.items() if value is not None}


def stages(*changes: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Stages of two steps."""
    return [
        {"steps": 2, "batch": 2, "objective": ["forward_kl"], "checkpoint": {"every": 1}, "optimiser": {"lr": 1e-3}, **change} for change in changes
    ]


STEPS = [0]
"""Optimiser steps that were taken in this process."""


def after(num: int) -> Callable[[], bool]:
    """A `stop` that says yes once so many optimiser steps were taken."""
    first = STEPS[0]
    return lambda: STEPS[0] - first >= num


def state(folder: Path, node: str = "main", arm: str = "student") -> dict[str, Any]:
    """Tensors of the student after a node."""
    return load_state(folder / "results" / arm / node, "state")["roles"]["student"]


def metrics(folder: Path) -> list[dict[str, Any]]:
    """All that was logged, but for what a clock says."""
    return [{k: v for k, v in r.items() if k != "time"} for r in Log(folder / "metrics.jsonl").read() if not r["name"].endswith("_seconds")]


def same(a: Any, b: Any) -> bool:
    """Bit for bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a) if isinstance(a, dict) else a == b


@pytest.fixture(autouse=True)
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Caches and runs of a test lie in its own folder; samples are short, since they would take half the time."""
    select = Loop.select

    def counted(self: Loop) -> list[dict[str, Any]]:
        STEPS[0] += 1
        return select(self)

    monkeypatch.setattr(Loop, "select", counted)
    monkeypatch.setattr("limbeck.job.draw_samples", lambda examiner, seed: draw_samples(examiner, seed, 1, 8, 2))
    monkeypatch.setenv("LIMBECK_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("LIMBECK_RUNS", str(tmp_path / "runs"))
    torch.set_num_threads(1)


Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(name="cli")
def command_line(monkeypatch, capfd) -> Iterator[Call]:
    """Runs a command in this process: exit code, stdout, stderr."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def call(*words: Any, **variables: str) -> tuple[int, str, str]:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["limbeck", *map(str, words)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as caught:
            limbeck.cli.main()
        out = capfd.readouterr()
        return int(caught.value.code or 0), out.out, out.err

    yield call
    for number, handler in kept.items():
        signal.signal(number, handler)
