"""A running mean of the student as its teacher."""

from typing import Any

import pytest
import torch
from torch import nn

from limbeck.check.models import fresh, move
from limbeck.component import validate
from limbeck.errors import Refused
from limbeck.model.base import Models, Role
from limbeck.model.plain import Plain
from limbeck.start import resume, run
from limbeck.store import load_state
from limbeck.student.drop_blocks import DropBlocks
from limbeck.student.lora import Lora
from limbeck.teacher.ema import EMA
from limbeck.train.loop import Loop
from toy import TINY, after, at_home, metrics, same, stages, state, toy  # noqa: F401

MODEL = f"config:{TINY}"
MEAN = {"kind": "ema", "model": MODEL, "decay": 0.5}
BOTH = {"objective": ["forward_kl", "cross_entropy"]}


def with_mean(student: Role, **fields: Any) -> tuple[EMA, Models]:
    """The teacher, and both roles at the start of a stage."""
    ema = EMA(model="a:b", **fields)
    models = Models({"student": student})
    models["teacher"] = ema.beside(student, models)
    return ema, models


class Counting(nn.Module):
    """A parameter, and buffers that count."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
        self.register_buffer("seen", torch.tensor(0))
        self.register_buffer("spread", torch.tensor([0.5]))


@pytest.mark.parametrize("decay", [0.0, 0.9, 1.0])
def test_beside_a_student_that_stands_still_the_mean_has_its_closed_form(decay):
    student = Plain(Counting())
    ema, models = with_mean(student, decay=decay)
    start, goal = torch.tensor([1.0, -2.0], dtype=torch.float64), torch.tensor([3.0, 5.0], dtype=torch.float64)
    student.module.w.data, student.module.seen, student.module.spread = goal.clone(), torch.tensor(7), torch.tensor([0.25])
    for n in range(1, 6):
        ema.follow(models)
        torch.testing.assert_close(models["teacher"].module.w.data, goal + decay**n * (start - goal), rtol=1e-12, atol=1e-12)
    assert int(models["teacher"].module.seen) == 7 and float(models["teacher"].module.spread) == 0.25, "buffers are copied"
    assert torch.equal(student.module.w.data, goal)


def test_it_starts_as_the_student_is_after_its_surgery_in_memory_of_its_own():
    student = DropBlocks(keep=(0, 3))(fresh())
    _, models = with_mean(student)
    mean = models["teacher"]
    assert mean.num_layers == 2 and same(mean.module.state_dict(), student.module.state_dict())
    assert mean.tokenizer is student.tokenizer and not {p.data_ptr() for p in mean.parameters()} & {p.data_ptr() for p in student.parameters()}
    move(student)
    assert not same(mean.module.state_dict(), student.module.state_dict())


def test_the_mean_of_narrow_weights_is_kept_in_float32():
    student = fresh().to(torch.bfloat16)
    ema, models = with_mean(student, decay=0.999)
    mean = models["teacher"].module
    assert {p.dtype for p in mean.parameters()} == {torch.float32} and {p.dtype for p in student.parameters()} == {torch.bfloat16}
    before = mean.model.norm.weight.clone()
    student.module.model.norm.weight.data += 1.0
    for _ in range(3):
        ema.follow(models)
    torch.testing.assert_close(mean.model.norm.weight - before, torch.full_like(before, 1 - 0.999**3), rtol=2e-2, atol=1e-5)
    # a bfloat16 mean would not have moved: its numbers near 1 lie 1/128 apart


def test_of_a_student_with_adapters_only_these_are_held_twice():
    student = Lora(rank=2)(fresh())
    ema, models = with_mean(student, decay=0.5)
    ours, theirs = ({name: p for name, p in role.module.named_parameters()} for role in (models["teacher"], student))
    twice = {name for name in ours if ours[name] is not theirs[name]}
    assert twice == {name for name in ours if "lora_" in name} == {name for name, _ in models.trainable("student")}
    fixed = {name: p.clone() for name, p in theirs.items() if name not in twice}
    before = {name: ours[name].clone() for name in twice}
    move(student)
    ema.follow(models)
    assert all(torch.equal(theirs[name], p) for name, p in fixed.items())
    for name in twice:
        torch.testing.assert_close(ours[name], (before[name] + theirs[name]) / 2)


def test_in_a_run_it_follows_every_step_by_its_schedule_and_begins_anew_with_each_stage(tmp_path, monkeypatch):
    weights: list[tuple[torch.Tensor, torch.Tensor]] = []
    select = Loop.select

    def look(self: Loop) -> Any:
        weights.append(tuple(self.world.models[r].module.model.norm.weight.detach().clone() for r in ("teacher", "student")))  # type: ignore[arg-type]
        return select(self)

    monkeypatch.setattr(Loop, "select", look)
    decay = {"kind": "linear", "start": 1.0, "end": 0.5, "steps": 1}
    recipe = toy(tmp_path, teacher={**MEAN, "decay": decay}, student={"start": "teacher"}, train=stages(BOTH, BOTH))
    folder = run(recipe).path
    start = state(folder, "student")["model.norm.weight"]
    (mean, _), (mean1, student1), (mean2, student2), (mean3, student3) = weights
    assert torch.equal(mean, start), "decay 1 at the first step: nothing moves"
    torch.testing.assert_close(mean1, (start + student1) / 2)
    assert torch.equal(mean2, student1), "the second stage begins with the student as the first one left it"
    torch.testing.assert_close(mean3, (student1 + student3) / 2)
    assert not torch.equal(student2, student1)
    first = [r["sum"] for r in metrics(folder) if r["name"] == "forward_kl" and r["step"] == 0]
    assert len(first) == 2 and all(abs(value) < 1e-3 for value in first), "at the start of a stage both say the same"


def test_stopped_anywhere_it_ends_bit_for_bit_like_a_run_that_was_not(tmp_path):
    recipe = toy(tmp_path, teacher=MEAN, student={"start": "teacher"}, train=stages({**BOTH, "steps": 3}, {**BOTH, "steps": 2}))
    whole = run(recipe)
    for step in (1, 2, 3, 4):  # within the first stage, between the two, within the second
        stopped = run(recipe, stop=after(step), runs=tmp_path / f"runs-{step}")
        assert not stopped.finished
        kept = {path.parent.name: load_state(path.parent, "state")["roles"] for path in stopped.path.glob("checkpoints/*/*/step-*/state.json")}
        assert kept and all(same(roles["teacher"], roles["student"]) == (name == "step-00000000") for name, roles in kept.items())
        done = resume(stopped.path)
        assert same(state(done.path, "stage-1"), state(whole.path, "stage-1")) and metrics(done.path) == metrics(whole.path), step


def test_it_matters_to_the_student_and_not_to_its_baseline(tmp_path):
    recipe = toy(tmp_path, BOTH, teacher=MEAN, student={"start": "teacher"}, baseline=["text_only"], evaluate=["agreement"])
    ours, still, live = run(recipe), run(recipe, "teacher.decay=1"), run({**recipe, "teacher": MODEL})
    assert not same(state(ours.path), state(live.path))
    assert same(state(still.path), state(live.path)), "a mean that does not move is the model that was opened"
    assert same(state(ours.path, arm="text_only"), state(live.path, arm="text_only"))
    assert ours.summary["teacher"]["kl"] == 0, "evaluations compare with the model that was opened"


@pytest.mark.parametrize("decay", [-0.1, 1.5])
def test_a_decay_that_is_no_share_is_refused(decay):
    with pytest.raises(Refused):
        validate(EMA, {"kind": "ema", "model": "a:b", "decay": decay})
