"""Several layers of the teacher from one of the student."""

from typing import Any

import pytest
import torch

from limbeck.check.example import build, say
from limbeck.check.models import clips, hearing_model
from limbeck.data.base import Part, Rows
from limbeck.errors import Refused
from limbeck.model.base import Models
from limbeck.numerics import Streams
from limbeck.objective.layer_heads import Heads, LayerHeads
from limbeck.signals import Signals
from limbeck.train.loop import Loop, World
from limbeck.train.stage import Stage


def signals(**values: torch.Tensor) -> Signals:
    num = len(next(iter(values.values())))
    rows = {"row": torch.zeros(1, dtype=torch.long), "pos": torch.zeros(num, dtype=torch.long)}
    return Signals(values, rows, ("",), torch.zeros(1, dtype=torch.long), torch.ones(1))


@pytest.mark.parametrize(
    ("said", "size", "direction"),
    [
        ([3.0, 4.0], 0.0, 0.31326),  # the same: -log sigmoid(1), which is not 0
        ([-4.0, 3.0], 4.0, 0.69315),  # at a right angle: (|-4 - 3| + |3 - 4|) / 2, -log sigmoid(0)
        ([-3.0, -4.0], 7.0, 1.31326),  # opposite: (6 + 8) / 2, -log sigmoid(-1)
        ([6.0, 8.0], 3.5, 0.31326),  # twice as long: (3 + 4) / 2
    ],
)
def test_size_and_direction_by_hand(said: list[float], size: float, direction: float) -> None:
    teacher, student = signals(**{"hidden.2": torch.tensor([[3.0, 4.0]])}), signals(**{"hidden.-1": torch.zeros(1, 5)})

    def head(_: torch.Tensor) -> torch.Tensor:
        return torch.tensor([[said]])

    for weight in (1.0, 0.0, 2.0):
        values = LayerHeads(layers=(2,), cosine=weight).values(student, teacher, head)  # type: ignore[arg-type]
        assert values.tolist() == pytest.approx([size + weight * direction], abs=1e-5)


def test_the_mean_is_over_layers_and_each_has_a_map_of_its_own() -> None:
    objective, said = LayerHeads(layers=(1, 3)), say(LayerHeads(layers=(1, 3)))
    learned: Any = build(objective, said)
    assert sum(p.numel() for p in learned.parameters()) == (6 * 16 + 16) + 2 * (8 * 8 + 8)  # 6 wide to twice 8; two maps of 8 to 8
    x = said["student"]["hidden.-1"]
    inner = torch.nn.functional.gelu(x @ learned.shared.weight.mT + learned.shared.bias)
    each = []
    for i, name in enumerate(("hidden.1", "hidden.3")):
        pred = inner[:, 8 * i : 8 * i + 8] @ learned.each[i].weight.mT + learned.each[i].bias
        target = said["teacher"][name]
        cosine = (pred * target).sum(-1) / pred.norm(dim=-1) / target.norm(dim=-1)
        each.append((pred - target).abs().mean(-1) + (1 + (-cosine).exp()).log())
    assert torch.allclose(objective.values(**said, learned=learned), (each[0] + each[1]) / 2)


def test_a_student_that_cuts_other_frames_is_refused() -> None:
    said = say(LayerHeads(layers=(1, 3)))
    said["student"] = said["student"].at(torch.arange(5))
    with pytest.raises(Refused, match="25 positions"):
        LayerHeads(layers=(1, 3)).build(said)


def test_the_loss_of_a_window_of_unequal_clips_is_the_mean_over_real_frames() -> None:
    models = Models({"student": hearing_model(), "teacher": hearing_model(1, layers=3, width=24)})
    objective, rows = LayerHeads(layers=(1, 3)), clips()[:5]
    batch = models.batch(rows)
    torch.manual_seed(0)
    learned = Heads(16, 24, 2).double()
    with models.turn("student"):
        whole = objective({role: models.says(role, batch, objective.needs[role]) for role in models}, learned)
        parts = [models.batch([row]) for row in rows]
        alone = [objective({role: models.says(role, part, objective.needs[role]) for role in models}, learned) for part in parts]
    assert whole.count == sum(x.count for x in alone) == sum((len(row.content["wave"]) - 16) // 8 // 8 for row in rows)
    assert whole.total.item() == pytest.approx(sum(x.total.item() for x in alone), rel=1e-10)


def test_heads_learn_with_the_student_and_stay_out_of_it() -> None:
    models = Models({"student": hearing_model(dtype=torch.float32), "teacher": hearing_model(1, torch.float32, layers=3)})
    before = set(models["student"].state_dict())
    stage: Any = {"steps": 2, "objective": [{"kind": "layer_heads", "layers": [1, 3]}], "batch": 4}
    loop = Loop(Stage.model_validate(stage), World(models, Rows((Part(clips()[:8]),)), (), None, {}, Streams(0)))
    heads = loop.running[0].learned[0]
    assert isinstance(heads, Heads)
    start = {name: x.clone() for name, x in heads.state_dict().items()}
    assert loop.run()
    assert not any(torch.equal(x, start[name]) for name, x in heads.state_dict().items())
    assert set(models["student"].state_dict()) == before
