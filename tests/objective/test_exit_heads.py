import copy
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from limbeck.check.models import classifier, pictures
from limbeck.data.base import Part, Rows
from limbeck.model.base import Models
from limbeck.numerics import Streams
from limbeck.objective.exit_heads import ExitHeads
from limbeck.objective.target_aware_ce import TargetAwareCE
from limbeck.signals import Signals
from limbeck.train.loop import Loop, World
from limbeck.train.stage import Stage, Turn


def signals(**values: Tensor) -> Signals:
    num = len(next(iter(values.values())))
    rows = {"row": torch.arange(num), "target": torch.arange(num)}
    return Signals(values, rows, ("",) * num, torch.arange(num), torch.ones(num))


def said(*shapes: tuple[int, int, int], num: int = 3, classes: int = 5) -> dict[str, Signals]:
    torch.manual_seed(0)
    stages = {f"stage.{i}": torch.randn(num, *shape) for i, shape in enumerate(shapes, 1)}
    student = signals(**stages, logits=torch.randn(num, classes), label=torch.arange(num))
    return {"student": student, "teacher": signals(logits=torch.randn(num, classes))}


PYRAMID = ((8, 16, 16), (16, 8, 8), (32, 4, 4), (64, 2, 2))
GRID = ((16, 4, 4),) * 4


def names(module: nn.Module) -> set[str]:
    return {type(part).__name__ for part in module.modules()}


def test_maps_that_shrink_get_convolutions_and_maps_of_one_grid_attention() -> None:
    convolutions, attention = (ExitHeads().build(said(*shapes)) for shapes in (PYRAMID, GRID))
    assert {"Conv2d", "GroupNorm"} <= names(convolutions) and "MultiheadAttention" not in names(convolutions)
    assert {"MultiheadAttention", "LayerNorm"} <= names(attention) and "Conv2d" not in names(attention)
    assert "MultiheadAttention" in names(ExitHeads(branch="attention").build(said(*PYRAMID)))


def test_an_earlier_stage_is_halved_more_often_and_an_earlier_block_attends_more_often() -> None:
    branches: Any = ExitHeads().build(said(*PYRAMID))
    assert [sum(part.stride == (2, 2) for part in branch.modules() if isinstance(part, nn.Conv2d)) for branch in branches] == [3, 2, 1, 0]
    assert [branch.layers(torch.zeros(1, *shape)).shape[1:] for branch, shape in zip(branches, PYRAMID, strict=True)] == [(64, 2, 2)] * 4
    branches = ExitHeads().build(said(*GRID))
    assert [len(branch.blocks) for branch in branches] == [3, 2, 1, 1]  # max(4 - k, 1), as published


def test_a_large_grid_of_tokens_is_merged_to_at_most_seven_by_seven() -> None:
    branches: Any = ExitHeads(stages=(1, 2)).build(said((8, 14, 14), (8, 14, 14)))
    assert branches[0].merges(torch.zeros(1, 8, 14, 14)).shape == (1, 8, 7, 7)


def test_it_is_the_sum_of_the_inner_objective_over_what_the_branches_answer() -> None:
    objective, found = ExitHeads(stages=(1, 2), objective=TargetAwareCE(gamma=1.5)), said((8, 8, 8), (16, 4, 4))
    learned: Any = objective.build(found)
    expected = 0.0
    for branch, name in zip(learned, ("stage.1", "stage.2"), strict=True):
        log_q = branch(found["student"][name]).log_softmax(-1)
        p, y = found["teacher"]["logits"].softmax(-1), torch.eye(5)[found["student"]["label"]]
        expected -= (((p + y) ** 1.5 - y) * log_q).sum().item()
    total, count = objective(found, learned)
    assert total.item() == pytest.approx(expected, rel=1e-5) and count == 3


@pytest.mark.parametrize(
    "fields",
    [
        {"objective": {"kind": "hidden_mse"}},
        {"objective": {"kind": "target_aware_ce", "weight": 0.5}},
        {"objective": {"kind": "forward_kl", "tag": "a"}},
        {"stages": (1, 1)},
        {"stages": ()},
    ],
)
def test_what_cannot_be_held_against_an_exit_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ExitHeads(**fields)


@pytest.mark.parametrize("inner", ["forward_kl", "cross_entropy"])
def test_other_objectives_of_logits_go_in_its_place(inner: str) -> None:
    objective, found = ExitHeads(stages=(1,), objective={"kind": inner}), said((8, 4, 4))  # type: ignore[arg-type]
    total, count = objective(found, objective.build(found))
    assert total.isfinite() and total.requires_grad and count == 3


def loop(seed: int = 0, micro: int = 1) -> Loop:
    """A small ViT taught by another one, by all three terms of the published loss."""
    models = Models({"student": copy.deepcopy(classifier(seed)), "teacher": classifier(seed + 1, width=24)})
    objectives = ({"kind": "cross_entropy"}, {"kind": "target_aware_ce", "gamma": 1.5}, {"kind": "exit_heads", "stages": (1, 2)})
    turn = Turn(objective=objectives, batch=12, micro=micro, optimiser={"lr": 1e-2})  # type: ignore[arg-type]
    made = Loop(Stage(steps=2, turn=(turn,)), World(models, Rows((Part(pictures()),)), streams=Streams(seed)))
    running = made.running[0]
    running.learned = [m if m is None else m.double() for m in running.learned]
    running.optimiser = running.turn.optimiser.build(models.trainable("student"), running.learned)
    return made


def test_how_a_window_of_images_is_cut_does_not_change_what_is_learnt() -> None:
    states = []
    for micro in (1, 5):
        run = loop(micro=micro)
        run.run()
        states.append({**run.world.models["student"].module.state_dict(), **run.running[0].learned[2].state_dict()})
    assert all(torch.allclose(x, states[1][name], atol=1e-7) for name, x in states[0].items())


def test_branches_learn_with_the_student_and_are_no_part_of_it() -> None:
    run = loop()
    before, names = copy.deepcopy(run.running[0].learned[2].state_dict()), set(run.world.models["student"].module.state_dict())
    run.run()
    after = run.running[0].learned[2].state_dict()
    assert all(not torch.equal(after[name], x) for name, x in before.items() if "norm" not in name)
    assert set(run.world.models["student"].module.state_dict()) == names
