"""Shape probes: methods that the loop does not know run in it, with components of the test's own, and resume bit for bit."""

from dataclasses import replace
from typing import Any, ClassVar, Literal

import pytest
import torch
from torch import nn

from limbeck.data.base import Step
from limbeck.forward.base import Forward
from limbeck.model.base import Models
from limbeck.model.plain import Plain
from limbeck.numerics import Streams
from limbeck.objective.base import Objective
from limbeck.signals import Batch, Signals, View
from limbeck.store import load_state, save_state
from limbeck.train.loop import Loop, World
from limbeck.train.stage import Stage

CENTRES = torch.tensor([[2.0, 0.0], [-2.0, 0.0], [0.0, 2.0], [0.0, -2.0]])
ROLLOUT = 3


class Points(Step):
    """Noise for the generator, and real points of a mixture of four Gaussians for the critic."""

    kind: Literal["probe:points"] = "probe:points"
    rows_a_window: int = 32

    def window(self, batch: Any, place: Any, memory: Any) -> Batch:
        random, n = place.streams("points", place.window), self.rows_a_window
        real = CENTRES[torch.randint(4, (n,), generator=random)] + 0.1 * torch.randn(n, 2, generator=random)
        view = View({"noise": torch.randn(n, 2, generator=random), "sample": real})
        return Batch({"student": view}, ("",) * n, torch.arange(n), tuple(map(str, range(n))), torch.ones(n))


class Adversarial(Forward):
    """The student refines noise in several steps, of which one has a gradient; the critic scores real and made points."""

    kind: Literal["probe:adversarial"] = "probe:adversarial"

    def requires(self, needs: Any) -> Any:
        return {"student": ("sample",), "critic": ("score",)}

    def draw(self, batch: Batch, streams: Streams, place: tuple) -> Batch:
        step = torch.randint(ROLLOUT, (1,), generator=streams("rollout", *place))
        return batch.with_inputs("student", time=step.expand(len(batch.tags)).float())

    def __call__(self, models: Any, batch: Batch, needs: Any) -> dict[str, Signals]:
        view = batch.view("student")
        taught, point = (int(view.inputs["time"][0]) if len(batch.tags) else 0), view.inputs["noise"]
        for k in range(ROLLOUT):
            with torch.set_grad_enabled(torch.is_grad_enabled() and k == taught):
                point = point + models.says("student", batch.with_inputs("student", noise=point), ("sample",))["sample"]
        real = models.says("critic", batch, ("score",))
        made = models.says("critic", batch.with_inputs("critic", sample=point), ("score",))
        both = replace(real, values={"score.real": real["score"], "score.made": made["score"]})
        return {"critic": both, "student": batch.signals("student", {"sample": point})}


class Judge(Objective):
    """The critic tells real points from made ones."""

    kind: Literal["probe:judge"] = "probe:judge"
    teaches: ClassVar[str] = "critic"
    unit = property(lambda self: "row")
    needs = property(lambda self: {"critic": ("score.real", "score.made")})

    def values(self, critic: Signals) -> torch.Tensor:
        return nn.functional.softplus(-critic["score.real"]) + nn.functional.softplus(critic["score.made"])


class Fool(Objective):
    """The student's points are to be taken for real."""

    kind: Literal["probe:fool"] = "probe:fool"
    descends: ClassVar[bool] = False
    unit = property(lambda self: "row")
    needs = property(lambda self: {"student": ("sample",), "critic": ("score.made",)})

    def values(self, student: Signals, critic: Signals) -> torch.Tensor:
        return nn.functional.softplus(-critic["score.made"])


class Squeeze(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[..., 0]


def adversarial(steps: int = 12) -> Loop:
    torch.manual_seed(0)
    student = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 2))
    critic = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 1), Squeeze())
    models = Models({"student": Plain(student, "sample", ("noise",)), "critic": Plain(critic, "score", ("sample",))})
    turns = [
        {"trains": "critic", "forward": "probe:adversarial", "objective": ["probe:judge"], "optimiser": {"lr": 1e-2}},
        {
            "trains": "student",
            "through": ["critic"],
            "every": 3,
            "micro": 2,
            "forward": "probe:adversarial",
            "objective": ["probe:fool"],
            "optimiser": {"lr": 5e-3},
        },
    ]
    stage = Stage.model_validate({"steps": steps, "turn": turns})
    return Loop(stage, World(models, steps=(Points(),), streams=Streams(3)))


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def test_two_turns_train_in_their_own_rhythm_and_reach_the_real_points():
    loop, records = adversarial(900), []
    assert loop.run(lambda loop, new: records.extend(new))
    assert sum(r["name"] == "0.probe:judge" for r in records) == 3 * sum(r["name"] == "1.probe:fool" for r in records) == 900
    point = torch.randn(500, 2, generator=torch.Generator().manual_seed(1))
    before = torch.cdist(point, CENTRES).min(1).values.median()
    with torch.no_grad():
        for _ in range(ROLLOUT):
            point = point + loop.world.models["student"].module(point)
    assert torch.cdist(point, CENTRES).min(1).values.median() < 0.7 * before


def test_only_the_role_whose_turn_it_is_moves():
    loop = adversarial()
    before = {name: {k: v.clone() for k, v in loop.world.models[name].module.state_dict().items()} for name in ("student", "critic")}
    loop.take(1, loop.running[1])
    assert equal(before["critic"], loop.world.models["critic"].module.state_dict())
    assert not equal(before["student"], loop.world.models["student"].module.state_dict())
    assert all(p.grad is None for p in loop.world.models["critic"].parameters())


@pytest.mark.parametrize("stop", [1, 4, 6])
def test_the_adversarial_probe_resumes_bit_for_bit(stop, tmp_path):
    whole, first, found = adversarial(), adversarial(), []
    whole.run(lambda loop, new: found.extend(new))
    again = []
    assert not first.run(lambda loop, new: again.extend(new), stop=lambda: first.step == stop)
    save_state(tmp_path, "state", first.state())
    torch.manual_seed(99)  # another process has another global generator
    second = adversarial().load(load_state(tmp_path, "state"))
    second.run(lambda loop, new: again.extend(new))
    assert equal(second.state(), whole.state())
    strip = [[{k: v for k, v in r.items()} for r in records if not r["name"].endswith("_seconds")] for records in (found, again)]
    assert strip[0] == strip[1]


def test_the_gradient_at_one_rollout_step_does_not_depend_on_the_cut():
    found = []
    for micro in (1, 2, 5):
        loop = adversarial()
        loop.running[1].turn = loop.running[1].turn.model_copy(update={"micro": micro})
        loop.take(1, loop.running[1])
        found.append([p.grad.clone() for p in loop.world.models["student"].parameters()])
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-4, atol=2e-6)
