"""A run that is killed anywhere and started again ends as if it had never been killed, and leaves nothing over."""

import os
import signal
from pathlib import Path

import pytest
import torch

from limbeck.start import run
from limbeck.store import CRASH_POINTS, Log, load_state

RECIPE = {
    "about": "A toy of two stages: blocks by themselves, then all together.",
    "data": [{"kind": "text", "path": str(Path(__file__)), "split": 0.0}, {"kind": "pack", "length": 48, "shortest": 47}],
    "teacher": {"kind": "live", "model": f"config:{Path(__file__).parents[2] / 'src/limbeck/recipes/models/tiny_llama.json'}"},
    "student": {"start": "teacher", "surgery": [{"kind": "drop_blocks", "keep": [0, 3]}]},
    "train": [
        {
            "name": "layers",
            "steps": 3,
            "batch": 2,
            "forward": "layerwise",
            "align": [{"kind": "layer_map", "map": "explicit", "pairs": [[1, 1], [2, 4]]}],
            "objective": [{"kind": "hidden_mse", "layers": "all"}],
            "checkpoint": {"every": 1},
            "optimiser": {"lr": 1e-3},
        },
        {
            "name": "whole",
            "steps": 3,
            "batch": 2,
            "micro": 2,
            "objective": ["forward_kl", {"kind": "hidden_cosine", "weight": 0.1}],
            "checkpoint": {"every": 1},
        },
    ],
}


def go(root: Path, crash: str = "") -> int:
    """Runs the toy in a child process; returns its exit status, negative for a signal."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            torch.set_num_threads(1)
            os.environ.update(LIMBECK_CRASH_AT=crash, LIMBECK_HOME=str(root / "home"))
            run(RECIPE, name="toy", runs=root / "runs")
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def outcome(root: Path):
    folder = root / "runs" / "toy"
    states = {name: load_state(folder / "results" / "student" / name, "state") for name in ("student", "layers", "whole")}
    metrics = [{k: v for k, v in r.items() if k != "time"} for r in Log(folder / "metrics.jsonl").read() if not r["name"].endswith("_seconds")]
    return states, metrics


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return a == b


def left_over(root: Path) -> list[str]:
    folder = root / "runs"
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if ".limbeck-" in p.name or p.name.startswith("step-"))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    root = tmp_path_factory.mktemp("whole")
    assert go(root) == 0
    return outcome(root)


@pytest.mark.parametrize("point", [f"{name}:{n}" for name in CRASH_POINTS for n in (1, 7) if not name.startswith(("pointer", "cache"))])
def test_killed_at_every_crash_point_it_ends_the_same(point, uninterrupted, tmp_path):
    status = go(tmp_path, point)
    assert status in (0, -signal.SIGKILL), "the run failed by itself"
    if point.endswith(":1") and not point.startswith("folder.aside"):  # no folder is ever replaced in this run
        assert status == -signal.SIGKILL, f"{point} was never passed"
    assert go(tmp_path) == 0
    states, metrics = outcome(tmp_path)
    assert same(states, uninterrupted[0])
    assert metrics == uninterrupted[1]
    assert left_over(tmp_path) == []


def test_metrics_hold_every_step_once(uninterrupted):
    _, metrics = uninterrupted
    for stage, name in (("layers", "hidden_mse"), ("whole", "forward_kl"), ("whole", "hidden_cosine")):
        assert [r["step"] for r in metrics if (r["stage"], r["name"]) == (stage, name)] == [0, 1, 2]
