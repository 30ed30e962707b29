"""What is compiled, and how often. The backend here is `eager`: it needs no compiler, and counts the same."""

from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.roles import shutil as tools
from limbeck.start import run
from toy import stages, state, toy


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Blocks that were compiled, by a backend that needs no compiler."""
    blocks: list[Any] = []
    original = torch.nn.Module.compile

    def eager(block: Any) -> None:
        blocks.append(block)
        original(block, backend="eager")

    monkeypatch.setattr(torch.nn.Module, "compile", eager)
    monkeypatch.setattr(tools, "which", lambda name: name)
    return blocks


def graphs(folder: Path, **stage: Any) -> int:
    """Graphs that a run of 20 steps compiles."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    run(toy(folder, {"steps": 20, "checkpoint": {"every": 100}, **stage}, compile=True), runs=folder / "runs")
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def test_twenty_values_of_a_schedule_are_one_compilation(tmp_path: Path, compiled: list[Any]) -> None:
    share, weight = ({"kind": kind, "start": 0.1, "end": 0.9, "steps": 20} for kind in ("linear", "cosine"))
    moving = {"kind": "jsd", "share": share, "weight": weight}
    fixed = graphs(tmp_path / "fixed", objective=[{"kind": "jsd", "share": 0.3}])
    assert 0 < fixed == graphs(tmp_path / "moving", objective=[moving])


def test_a_student_that_a_stage_rebuilds_is_compiled_again(tmp_path: Path, compiled: list[Any]) -> None:
    narrow, branch = stages({"name": "narrow", "surgery": [{"kind": "keep_width", "mlp": 0.5}]}, {"name": "branch", "start": "student"})
    run({**toy(tmp_path, compile=True), "train": [narrow, branch]}, runs=tmp_path / "runs")
    first, second = compiled[:2], compiled[-2:]
    assert {id(block) for block in first}.isdisjoint(id(block) for block in second), "the branch has a student of its own"
    assert [block.mlp.up_proj.out_features for block in (*first, *second)] == [64, 64, 128, 128]


def test_compiled_blocks_are_fitted_as_others_are(tmp_path: Path, compiled: list[Any]) -> None:
    torch._dynamo.reset()
    for name, how in {"compiled": True, "plain": False}.items():
        run(toy(tmp_path, {"reconstruct": {}}, compile=how), name=name, runs=tmp_path)
    ours, theirs = (state(tmp_path / name) for name in ("compiled", "plain"))
    assert compiled and all(torch.allclose(x, theirs[name], atol=1e-5) for name, x in ours.items())
