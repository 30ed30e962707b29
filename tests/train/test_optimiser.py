"""AdamW: one step by hand, rates by hand, and every parameter in one group."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from limbeck.check.models import Trial, pair
from limbeck.errors import Refused
from limbeck.model.base import Models, clone
from limbeck.objective.forward_kl import ForwardKL
from limbeck.schedule.linear import Linear
from limbeck.start import run
from limbeck.train.optimiser import Group, Optimiser
from toy import after, at_home, metrics, same, state, toy

__all__ = ["at_home"]
CONVERSION: dict[str, Any] = {
    "lr": 1e-2,
    "betas": (0.9, 0.95),
    "weight_decay": 0.1,
    "warm_up": 0.25,
    "decay": "linear",
    "decay_share": 0.5,
    "floor": 0.1,
    "clip": None,
    "groups": [{"match": ["*.k_proj.*"], "weight_decay": 0}, {"match": ["*.self_attn.*"]}, {"match": ["*"], "rate": 0.07}],
}
"""A rate for what is new, 0.07 of it for what was copied, and matrices that are not decayed."""


def rates(optimiser: Optimiser, steps: int) -> list[float]:
    return [optimiser.rate(step, steps) for step in range(steps)]


def test_a_constant_rate_stays_and_a_warm_up_rises_to_the_peak() -> None:
    assert rates(Optimiser(lr=0.5), 3) == [0.5] * 3
    assert rates(Optimiser(lr=0.8, warm_up=0.5), 8) == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8, 0.8, 0.8, 0.8])


def test_a_rate_falls_in_a_line_or_half_a_cosine_from_the_peak_towards_its_floor() -> None:
    assert rates(Optimiser(lr=1.0, decay="linear"), 4) == pytest.approx([1, 0.75, 0.5, 0.25])
    assert rates(Optimiser(lr=1.0, decay="linear", floor=0.2), 4) == pytest.approx([1, 0.8, 0.6, 0.4])
    assert rates(Optimiser(lr=2.0, decay="cosine"), 4) == pytest.approx([2, 1 + math.sqrt(0.5), 1, 1 - math.sqrt(0.5)])
    assert rates(Optimiser(lr=1.0, warm_up=0.5, decay="linear"), 4) == pytest.approx([0.5, 1, 1, 0.5])


def test_a_rate_that_rises_stays_and_falls_at_the_end() -> None:
    assert rates(Optimiser(lr=1.0, warm_up=0.2, decay="linear", decay_share=0.4), 10) == pytest.approx([0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25])
    half = 0.5 * (1 + math.sqrt(0.5))
    assert rates(Optimiser(lr=2.0, decay="cosine", decay_share=0.5, floor=0.5), 8) == pytest.approx([2] * 5 + [1 + half, 1.5, 2 - half])
    for warm_up in (0.0, 0.25):  # all that the warm-up leaves: what it is without a share
        long, plain = (Optimiser(lr=1.0, warm_up=warm_up, decay="linear", **share) for share in ({"decay_share": 1 - warm_up}, {}))
        assert rates(long, 12) == rates(plain, 12)


@pytest.mark.parametrize("decay", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warm_up", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 3, 100])
def test_a_rate_is_never_zero_before_the_end_and_never_above_the_peak(steps: int, warm_up: float, decay: str) -> None:
    found = rates(Optimiser(lr=0.1, warm_up=warm_up, decay=decay), steps)  # type: ignore[arg-type]
    assert all(0 < r <= 0.1 + 1e-15 for r in found) and max(found) == pytest.approx(0.1)


def test_a_schedule_is_the_rate_itself_and_takes_no_warm_up_besides() -> None:
    assert rates(Optimiser(lr=Linear(start=1.0, end=0.0, steps=2)), 3) == [1.0, 0.5, 0.0]
    for more in ({"warm_up": 0.1}, {"decay": "cosine"}):
        with pytest.raises(ValidationError, match="not both"):
            Optimiser.model_validate({"lr": "linear", **more})


@pytest.mark.parametrize(
    "fields",
    [
        {"lr": 0},
        {"lr": -1},
        {"warm_up": 1.5},
        {"betas": [1.0, 0.9]},
        {"eps": 0},
        {"clip": 0},
        {"weight_decay": -1},
        {"decay": "fast"},
        {"decay_share": 0.1},
        {"decay": "linear", "decay_share": 0},
        {"decay": "linear", "decay_share": 0.6, "warm_up": 0.5},
        {"lr": "linear", "decay_share": 0.1},
        {"groups": [{"match": []}]},
    ],
)
def test_values_that_make_no_sense_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Optimiser.model_validate(fields)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.fc, self.norm = nn.Embedding(5, 3), nn.Linear(3, 5), nn.LayerNorm(3)
        self.fc.weight = self.embed.weight  # tied


def test_every_parameter_stands_in_one_group_matrices_are_decayed_and_the_first_match_counts() -> None:
    net, learned = Net(), nn.Linear(2, 2)
    how = Optimiser(
        weight_decay=0.1, groups=(Group(match=("embed.*",), rate=0.5), Group(match=("embed.weight", "norm.*"), rate=3.0, weight_decay=0.7))
    )
    made = how.build(list(net.named_parameters()), [None, learned])
    every = [p for group in made.param_groups for p in group["params"]]
    assert len(every) == len({id(p) for p in every}) == len(list(net.parameters())) + 2
    of = {id(p): (group["rate"], group["weight_decay"]) for group in made.param_groups for p in group["params"]}
    assert of[id(net.embed.weight)] == (0.5, 0.1) and of[id(net.fc.bias)] == (1.0, 0.0) and of[id(net.norm.weight)] == (3.0, 0.0)
    assert of[id(learned.weight)] == (1.0, 0.0)
    assert all(group["betas"] == (0.9, 0.999) and group["lr"] == 0.0 for group in made.param_groups)


def test_parameters_of_one_rate_and_decay_share_a_group() -> None:
    made = Optimiser(weight_decay=0.1).build(list(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).named_parameters()), [])
    assert [(len(group["params"]), group["weight_decay"]) for group in made.param_groups] == [(2, 0.1), (2, 0.0)]


def test_a_step_by_hand() -> None:
    weight = nn.Parameter(torch.tensor([[2.0]], dtype=torch.float64))
    how = Optimiser(lr=0.1, weight_decay=0.5, betas=(0.9, 0.99), eps=1e-8)
    made = how.build([("weight", weight)], [])
    m = v = 0.0
    by_hand = 2.0
    for step, gradient in enumerate((3.0, -1.0), start=1):
        weight.grad = torch.tensor([[gradient]], dtype=torch.float64)
        made.param_groups[0]["lr"] = how.rate(step - 1, 2) * made.param_groups[0]["rate"]
        made.step()
        by_hand *= 1 - 0.1 * 0.5  # decoupled: before the step, by the rate
        m, v = 0.9 * m + 0.1 * gradient, 0.99 * v + 0.01 * gradient**2
        by_hand -= 0.1 * (m / (1 - 0.9**step)) / (math.sqrt(v / (1 - 0.99**step)) + 1e-8)
        assert weight.item() == pytest.approx(by_hand, rel=1e-9)


def test_a_first_step_of_a_turn_moves_each_parameter_by_the_rate_and_decay_of_its_group() -> None:
    models = Models({name: clone(role) for name, role in pair().items()})
    turn = {"objective": (ForwardKL(),), "optimiser": Optimiser.model_validate(CONVERSION)}  # type: ignore[call-arg]
    trial = Trial(models=models, **turn)
    pieces = trial.gradients()[0].split([p.numel() for _, p in trial.parameters()])
    before = {name: (p.clone(), g.view_as(p)) for (name, p), g in zip(trial.parameters(), pieces, strict=True)}
    loop = trial.loop(turn)
    loop.take(0, loop.running[0])
    seen = set()
    for name, parameter in trial.parameters():
        old, gradient = before[name]
        share = 1 if ".self_attn." in name else 0.07
        rate = 1e-2 * share  # of 4 steps one warms up, and ends at the peak
        decay = 0.1 if old.ndim > 1 and ".k_proj." not in name else 0.0
        by_hand = old * (1 - rate * decay) - rate * gradient / (gradient.abs() + 1e-8)  # both means are those of one gradient
        torch.testing.assert_close(parameter, by_hand, rtol=1e-9, atol=1e-12, msg=name)
        seen.add((share, decay))
    assert seen == {(1, 0.1), (1, 0.0), (0.07, 0.1), (0.07, 0.0)}


def test_a_pattern_that_fits_no_parameter_is_refused() -> None:
    with pytest.raises(Refused) as caught:
        Trial(objective=(ForwardKL(),), optimiser=Optimiser(groups=(Group(match=("*.self_attn.*", "*.decay"), weight_decay=0),)))  # type: ignore[call-arg]
    assert (caught.value.slug, caught.value.where, caught.value.got) == ("pattern", "train.0.optimiser.groups.0.match", "*.decay")


def test_groups_and_a_rate_that_falls_at_the_end_go_on_where_they_were_stopped(tmp_path: Path) -> None:
    recipe = toy(tmp_path, {"optimiser": CONVERSION})
    run(recipe, name="whole", runs=tmp_path)
    run(recipe, name="stopped", runs=tmp_path, stop=after(3))
    run(recipe, name="stopped", runs=tmp_path)
    assert [r["sum"] for r in metrics(tmp_path / "whole") if r["name"] == "learning_rate"] == pytest.approx([1e-2, 1e-2, 1e-2, 0.55e-2])
    assert metrics(tmp_path / "stopped") == metrics(tmp_path / "whole")
    assert same(state(tmp_path / "stopped"), state(tmp_path / "whole"))


def test_a_factor_on_gradients_is_there_before_they_are_clipped_together() -> None:
    norms: dict[float, float] = {}
    for factor in (1.0, 0.1, 0.0):
        how = Optimiser(groups=(Group(match=("model.embed*",), gradient=factor),))  # type: ignore[call-arg]
        trial = Trial(objective=(ForwardKL(),), optimiser=how)
        trial.models["student"] = clone(trial.models["student"])
        loop = trial.loop({"trains": "student", "objective": (ForwardKL(),), "optimiser": how})
        (record,) = (r for r in loop.take(0, loop.running[0]) if r["name"] == "gradient_norm")
        norms[factor] = record["sum"]
    embedding = norms[1.0] ** 2 - norms[0.0] ** 2  # the square of its part
    assert embedding > 0 and norms[0.1] ** 2 == pytest.approx(norms[0.0] ** 2 + 0.01 * embedding, rel=1e-6)
