"""AdamW: one step by hand, rates by hand, and every parameter in one group."""

import math

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from limbeck.schedule.linear import Linear
from limbeck.train.optimiser import Group, Optimiser


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
