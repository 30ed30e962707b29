"""Attention back into some blocks: the blocks that matter are found, and get their original weights."""

import json
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

import limbeck
import recall
from limbeck import start
from limbeck.block.gated_delta_net import GatedDeltaNet
from limbeck.check.models import fresh
from limbeck.check.surgery import logits
from limbeck.errors import Refused
from limbeck.examine import Calibration
from limbeck.model.base import Role, clone
from limbeck.model.text import Text
from limbeck.student.drop_blocks import DropBlocks
from limbeck.student.linearize import Linearize
from limbeck.student.restore_attention import RestoreAttention
from toy import after, at_home, same, state, toy  # noqa: F401

PLANTED = [(0, 2), (1, 0), (2, 3)]
"""Seed, and the block whose attention recalls."""
HELD_OUT = recall.rows(7, 64)


@cache
def converted(seed: int, block: int) -> tuple[Text, Text]:
    """The planted teacher, and a student of mixers that have learned to stand in for its attention."""
    teacher = recall.teacher(seed, block)
    return teacher, recall.aligned(teacher, GatedDeltaNet(), 5, seed)


@pytest.mark.parametrize("seed, block", PLANTED)
def test_the_planted_teacher_recalls_with_one_block_and_needs_no_other_attention(seed: int, block: int) -> None:
    teacher = recall.teacher(seed, block)
    others = [i for i in range(4) if i != block]
    assert recall.share(teacher, HELD_OUT) == recall.share(recall.apart(teacher, others), HELD_OUT) == 1
    assert recall.share(recall.apart(teacher, [block]), HELD_OUT) < 0.3  # by chance 1 of 8


@pytest.mark.parametrize("seed, block", PLANTED)
@pytest.mark.parametrize("choose", ["restore_one", "greedy", "supervised"])
def test_the_one_block_that_recalls_ranks_first(seed: int, block: int, choose: str) -> None:
    teacher, student = converted(seed, block)
    how = {"steps": 3} if choose == "supervised" else {}
    settled = RestoreAttention(num=1, choose=choose, **how).settle(clone(student), recall.Distance(teacher, recall.rows(8, 16), seed))  # type: ignore[arg-type]
    assert settled == RestoreAttention(num=1, choose="given", layers=(block,))


@pytest.mark.parametrize("seed, block", PLANTED)
def test_with_the_block_that_was_found_the_student_recalls_all_and_without_it_no_other_one_helps(seed: int, block: int) -> None:
    teacher, student = converted(seed, block)
    distance = recall.Distance(teacher, HELD_OUT)
    each = [RestoreAttention(choose="given", layers=(i,))(clone(student)) for i in range(4)]
    others = [one for i, one in enumerate(each) if i != block]
    assert recall.share(each[block], HELD_OUT) == 1 and all(recall.share(one, HELD_OUT) < 0.8 for one in others)
    assert distance(each[block]) < 0.01 * min(map(distance, others))


def test_all_restored_it_is_the_teacher_again_to_the_last_bit() -> None:
    teacher = fresh()
    student = Linearize(mixer=GatedDeltaNet())(fresh())
    assert not torch.equal(logits(student), logits(teacher))
    back = RestoreAttention(num=4, choose="uniform")(student)
    assert torch.equal(logits(back), logits(teacher)) and not back.origins and "query" in back.offers


def test_the_other_blocks_keep_what_they_have_learned() -> None:
    student = Linearize(mixer=GatedDeltaNet())(fresh())
    with torch.no_grad():
        for p in student.module.parameters():
            p += 0.1
    kept = student.module.get_submodule("model.layers.1.self_attn.g_proj").weight.clone()  # type: ignore[union-attr, operator]
    RestoreAttention(choose="given", layers=(0,))(student)
    assert torch.equal(student.module.get_submodule("model.layers.1.self_attn.g_proj").weight, kept)  # type: ignore[arg-type]
    restored = student.module.get_submodule("model.layers.0.self_attn.q_proj").weight
    assert torch.equal(restored, fresh().module.get_submodule("model.layers.0.self_attn.q_proj").weight)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "num, found, expected", [(1, (0, 1, 2, 3), (2,)), (2, (0, 1, 2, 3, 4, 5), (1, 4)), (2, (1, 3, 5), (1, 5)), (3, (0, 1, 2), (0, 1, 2))]
)
def test_uniform_spreads_them(num: int, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
    assert RestoreAttention(num=num, choose="uniform").chosen(found, None) == expected  # the middles of equal stretches


def test_equal_scores_restore_the_earlier_block() -> None:
    assert RestoreAttention(num=2).chosen((3, 5, 8), lambda some: 1.0) == (3, 5)


def test_greedy_scores_sets_and_restore_one_scores_blocks() -> None:
    # 0 and 1 are each good alone, and no better together; 2 is worse alone, and complements 0
    scores = {(0,): 1.0, (1,): 1.1, (2,): 1.5, (0, 1): 0.9, (0, 2): 0.2, (1, 2): 0.3}
    assert RestoreAttention(num=2).chosen((0, 1, 2), scores.__getitem__) == (0, 1)
    assert RestoreAttention(num=2, choose="greedy").chosen((0, 1, 2), scores.__getitem__) == (0, 2)


def test_blocks_that_were_dropped_before_do_not_shift_what_comes_back() -> None:
    student = DropBlocks(keep=(0, 2, 3))(Linearize(mixer=GatedDeltaNet())(fresh()))
    RestoreAttention(choose="given", layers=(1,))(student)
    restored = student.module.get_submodule("model.layers.1.self_attn.q_proj").weight
    assert torch.equal(restored, fresh().module.get_submodule("model.layers.2.self_attn.q_proj").weight)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "surgery", [RestoreAttention(num=3, choose="uniform"), RestoreAttention(choose="given", layers=(0,))], ids=["too many", "not converted"]
)
def test_more_than_were_converted_are_refused(surgery: RestoreAttention) -> None:
    with pytest.raises(Refused, match="some of the converted blocks: 1, 2"):
        surgery(Linearize(layers=(1, 2))(fresh()))


def test_layers_without_given_are_refused() -> None:
    with pytest.raises(ValidationError, match="if, and only if"):
        RestoreAttention(layers=(1,))


@pytest.mark.parametrize("fields", [{"seed": 1}, {"steps": 5}, {"choose": "random", "steps": 5}, {"choose": "supervised", "seed": 1}])
def test_a_seed_that_draws_nothing_and_steps_that_teach_nothing_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="steps where choose is supervised, seed where it is random"):
        RestoreAttention(**fields)


def test_a_seed_draws_the_same_blocks_and_all_seeds_each_set_as_often_as_any_other() -> None:
    drawn = [RestoreAttention(num=2, choose="random", seed=seed).chosen((1, 3, 4, 6), None) for seed in range(600)]
    assert drawn == [RestoreAttention(num=2, choose="random", seed=seed).chosen((1, 3, 4, 6), None) for seed in range(600)]
    # 600 draws of 6 sets: each 100 times, standard deviation sqrt(600 * 1/6 * 5/6) = 9.1; within four of them
    assert len(num := Counter(drawn)) == 6 and all(abs(times - 100) < 37 for times in num.values())


class Lesson:
    """A score that is told: for each block what a model with its attention back scores at once, and what after it has learned."""

    def __init__(self, before: tuple[float, ...], after: tuple[float, ...]):
        self.scores, self.learned, self.asked = (before, after), [], []

    def restored(self, role: Role) -> int:
        return next(i for i in range(4) if "Attention" in type(role.module.get_submodule(f"model.layers.{i}.self_attn")).__name__)

    def learn(self, role: Role, steps: int) -> None:
        assert torch.equal(next(role.module.parameters()), next(fresh().module.parameters()))  # it has not learned in another one's lesson
        with torch.no_grad():
            next(role.module.parameters()).zero_()
        self.learned.append((self.restored(role), steps))

    def __call__(self, role: Role) -> float:
        after = not bool(next(role.module.parameters()).any())
        self.asked.append((block := self.restored(role), after))
        return self.scores[after][block]


def test_supervised_ranks_by_what_each_block_is_worth_after_learning() -> None:
    student = Linearize(mixer=GatedDeltaNet())(fresh())
    was = {name: x.clone() for name, x in student.module.state_dict().items()}
    lesson = Lesson(before=(1.0, 2.0, 3.0, 4.0), after=(0.5, 0.1, 0.4, 0.2))
    assert RestoreAttention(num=2, choose="supervised", steps=7).settle(student, lesson).layers == (1, 3)
    assert lesson.learned == [(i, 7) for i in range(4)] and lesson.asked == [(i, True) for i in range(4)]
    assert all(torch.equal(x, was[name]) for name, x in student.module.state_dict().items())
    assert RestoreAttention(num=2).settle(student, lesson).layers == (0, 1)


def test_supervised_outside_of_a_stage_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="supervised, outside of a stage"):
        RestoreAttention(choose="supervised").settle(Linearize(mixer=GatedDeltaNet())(fresh()), lambda role: 0.0)
    surgery = [{"kind": "linearize", "mixer": "gated_delta_net"}, {"kind": "restore_attention", "choose": "supervised"}]
    with pytest.raises(Refused, match="a stage in which its candidates can learn") as caught:
        limbeck.plan(toy(tmp_path, student={"surgery": surgery}), probe=False)
    assert caught.value.where == "student.surgery.1"


def supervised(folder: Path, steps: int, **stage: Any) -> dict[str, Any]:
    surgery = [{"kind": "restore_attention", "choose": "supervised", "steps": steps}]
    return toy(folder, {"steps": 3, "surgery": surgery, **stage}, student={"surgery": [{"kind": "linearize", "mixer": "self_value"}]}, evaluate=[])


def test_in_a_run_a_candidate_is_what_the_stage_makes_of_it_and_the_stage_begins_without_what_candidates_learned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[tuple[float, dict[str, Tensor]]] = []
    own = Calibration.__call__

    def keep(self: Calibration, role: Role) -> float:
        measured.append((own(self, role), {name: x.clone() for name, x in role.module.state_dict().items()}))
        return measured[-1][0]

    monkeypatch.setattr(Calibration, "__call__", keep)
    recipe = supervised(tmp_path, steps=3)
    done = start.run(recipe, name="supervised", runs=tmp_path, stop=after(4))
    assert not done.finished and len(measured) == 1  # stopped while the second one learned: nothing of it is kept
    assert not (done.path / "results/student/main").exists() and not (done.path / "checkpoints/student/main").exists()
    limbeck.resume(done.path)
    (chosen,) = json.loads((done.path / "results/student/main/surgery.json").read_text())[0]["layers"]
    again, scores = measured[0], [score for score, _ in measured[1:]]
    assert len(scores) == len(set(scores)) == 4 and scores[chosen] == min(scores)
    assert again[0] == scores[0] and same(again[1], measured[1][1])  # each learns on the same rows, whatever was before
    # the stage takes as many steps as candidates did: it ends where the chosen one did, to the last bit
    assert same(state(done.path), measured[1 + chosen][1])


def test_a_plan_prices_candidates_that_learn_and_refuses_more_steps_than_the_stage_has(tmp_path: Path) -> None:
    lines = {line.step: line for line in limbeck.plan(supervised(tmp_path, steps=2), probe=False).steps}
    assert lines["surgery"].what == "candidates learn, at most 8 steps in all"
    # four blocks, 2 of 3 steps each; a live teacher is heard again each time
    assert lines["surgery"].seconds == pytest.approx(8 / 3 * (lines["train"].seconds + lines["teacher"].seconds))
    with pytest.raises(Refused, match="at most 3 steps, as many as the stage has"):
        limbeck.plan(supervised(tmp_path, steps=4), probe=False)
    with pytest.raises(Refused, match="the recipe's data and a teacher that stays"):
        limbeck.plan(supervised(tmp_path, steps=2, teacher=toy(tmp_path)["teacher"]), probe=False)
