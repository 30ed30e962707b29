"""Objectives whose gradients are made equally large at the last layer: the same however a window is cut, and on after a stop."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from limbeck.check.models import ALONE, Trial
from limbeck.check.window import SAME
from limbeck.errors import Refused
from limbeck.model.plain import Plain
from limbeck.objective.cross_entropy import CrossEntropy
from limbeck.objective.forward_kl import ForwardKL
from limbeck.objective.hidden_mse import HiddenMSE
from limbeck.start import run
from limbeck.train.stage import Turn
from limbeck.train.window import count, window
from toy import after, at_home, metrics, toy

__all__ = ["at_home"]
THREE = (CrossEntropy(), ForwardKL(), HiddenMSE(layers=(-1,), project=False))  # type: ignore[call-arg]
LAST = "model.layers.1."


def trial(*objectives: Any, **turn: Any) -> Trial:
    return Trial(width=16, objective=objectives or THREE, **turn)


def alone(objective: Any) -> torch.Tensor:
    """The gradient of one objective by itself."""
    return trial(objective).gradients()[0]


def at_last(found: torch.Tensor, one: Trial) -> torch.Tensor:
    """What of a gradient belongs to the last block."""
    pieces = found.split([p.numel() for _, p in one.parameters()])
    return torch.cat([piece for piece, (name, _) in zip(pieces, one.parameters(), strict=True) if name.startswith(LAST)])


def test_the_gradient_is_the_sum_of_equally_large_ones() -> None:
    each = [alone(objective) for objective in THREE]
    norms = [at_last(found, trial()).norm() for found in each]
    weights = [float((1 / norm) / sum(1 / n for n in norms)) for norm in norms]
    one = trial(balance="gradient_norm")
    expected = sum(weight * found for weight, found in zip(weights, each, strict=True))
    torch.testing.assert_close(one.gradients()[0], expected, rtol=1e-4, atol=1e-8)
    assert one.running.weights == pytest.approx(weights, rel=1e-4) and sum(one.running.weights) == pytest.approx(1)
    assert max(weights) > 3 * min(weights)  # else there was nothing to balance


@pytest.mark.parametrize("micro", [2, 3, ALONE])
def test_it_does_not_depend_on_how_the_window_is_cut(micro: int) -> None:
    one = trial(balance="gradient_norm")
    (whole, losses), (cut, same) = one.gradients(), one.gradients(micro=micro)
    assert (cut - whole).norm() <= SAME[0] * whole.norm() + SAME[1]
    assert [x.count for x in losses] == [x.count for x in same]


def test_how_large_a_loss_is_makes_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    before = trial(balance="gradient_norm").gradients()[0]
    folding = ForwardKL.folding

    def louder(self: ForwardKL, *args: Any, **said: Any) -> Any:
        found = folding(self, *args, **said)
        return found._replace(factors=1000 * found.factors)

    monkeypatch.setattr(ForwardKL, "folding", louder)
    after = trial(balance="gradient_norm").gradients()[0]
    torch.testing.assert_close(after / after.norm(), before / before.norm(), rtol=1e-4, atol=1e-7)


def test_one_without_anything_to_count_takes_no_part() -> None:
    one = trial(CrossEntropy(), ForwardKL(tag="nobody"), balance="gradient_norm")  # type: ignore[call-arg]
    torch.testing.assert_close(one.gradients()[0], alone(CrossEntropy()))
    assert one.running.weights == [1.0, 0.0]


def test_what_cannot_be_balanced_is_refused() -> None:
    with pytest.raises(ValidationError, match="one objective"):
        Turn.model_validate({"objective": ["cross_entropy"], "balance": "gradient_norm"})
    with pytest.raises(ValidationError, match="cancel"):
        Turn.model_validate({"objective": ["cross_entropy", {"kind": "forward_kl", "weight": 2}], "balance": "gradient_norm"})
    with pytest.raises(Refused) as caught:
        trial(balance="gradient_norm", freeze=(LAST + "*",))
    assert (caught.value.slug, caught.value.where) == ("balance", "train.0.balance")
    early = trial(CrossEntropy(), HiddenMSE(layers=(1,), project=False), balance="gradient_norm")  # type: ignore[call-arg]
    with early.models.turn("student"), pytest.raises(Refused) as caught:
        window(early.running, early.models, early.batch, 0, count(early.running.turn, early.batch))
    assert "does not" in caught.value.got and "objective.1" in caught.value.where


def test_the_last_layer_of_any_module_is_its_last_part() -> None:
    assert Plain(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))).last_layer == "2."
    assert Plain(nn.Linear(2, 2)).last_layer == ""
    assert trial().models["student"].last_layer == LAST


def test_weights_are_told_and_a_run_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    stage = {"objective": ["forward_kl", "cross_entropy"], "balance": "gradient_norm", "micro": 2}
    recipe = toy(tmp_path, stage, baseline=["text_only"], evaluate=["perplexity"])
    done = run(recipe, name="whole", runs=tmp_path)
    found = [r for r in metrics(tmp_path / "whole") if r["name"].endswith(".weight")]
    assert {r["name"] for r in found} == {"forward_kl.weight", "cross_entropy.weight"} and done.summary["baseline"]
    for step in range(4):
        assert sum(r["sum"] for r in found if r["step"] == step) == pytest.approx(1)
    run(recipe, name="stopped", runs=tmp_path, stop=after(2))
    run(recipe, name="stopped", runs=tmp_path)
    assert metrics(tmp_path / "stopped") == metrics(tmp_path / "whole")
