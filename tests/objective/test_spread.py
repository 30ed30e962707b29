"""The spread of a window's samples, and a run that it stops."""

from pathlib import Path

import pytest
import torch

from limbeck.errors import Failed
from limbeck.objective.spread import Spread
from limbeck.signals import Signals
from limbeck.start import run
from toy import at_home, metrics  # noqa: F401

MODELS = Path(__file__).parents[2] / "src/limbeck/recipes/models"


def signals(made: torch.Tensor) -> Signals:
    num = len(made)
    return Signals({"made": made}, {"row": torch.arange(num)}, ("",) * num, torch.arange(num), torch.ones(num))


def test_it_is_the_variance_over_the_window() -> None:
    made = torch.randn(64, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    total, count = Spread()({"student": signals(made)})
    assert count == 64 and float(total) / count == pytest.approx(float(made.var(0, unbiased=False).mean()))


def test_samples_that_are_alike_have_none_however_large_they_are() -> None:
    assert float(Spread()({"student": signals(torch.full((8, 3), 5.0))}).total) == 0


def collapsing(**alarm: object) -> dict[str, object]:
    """A student that is moved towards a teacher that knows one point only."""
    objectives = ["distribution_matching", {"kind": "spread", "weight": 0}]
    return {
        "data": [{"kind": "gaussian_mixture", "num": 64}],
        "teacher": f"config:{MODELS / 'ring.json'}",
        "student": {"start": f"config:{MODELS / 'point_denoiser.json'}"},
        "role": {"critic": {"start": f"config:{MODELS / 'point_denoiser.json'}"}},
        "threads": 1,
        "train": [
            {
                "steps": 12,
                "turn": [{"forward": {"kind": "rollout", "rungs": 1}, "batch": 8, "objective": objectives, "optimiser": {"lr": 1e-3}}],
                "alarm": [{"metric": "spread", "patience": 2, **alarm}],
                "checkpoint": {"every": 1},
            }
        ],
    }


def test_a_run_whose_samples_become_alike_is_stopped_with_its_last_checkpoint_from_before(tmp_path: Path) -> None:
    run(collapsing(below=0.0), name="fine", runs=tmp_path)
    found = [r["sum"] / r["count"] for r in metrics(tmp_path / "fine") if r["name"] == "spread"]
    assert len(found) == 12 and min(found) > 0
    with pytest.raises(Failed) as told:  # a bound above all that there is: it sounds as soon as it may
        run(collapsing(below=2 * max(found), after=4), name="r", runs=tmp_path)
    assert told.value.slug == "alarm" and "spread" in told.value.where and "at step 5" in told.value.got
    assert "step-00000004 is from before" in told.value.do
