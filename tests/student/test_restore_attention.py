"""Attention back into some blocks: the blocks that matter are found, and get their original weights."""

import copy

import pytest
import torch
from pydantic import ValidationError

from limbeck.block.gated_delta_net import GatedDeltaNet
from limbeck.check.models import family_of, fresh
from limbeck.check.surgery import logits, score_of
from limbeck.errors import Refused
from limbeck.model.text import Text
from limbeck.student.drop_blocks import DropBlocks
from limbeck.student.linearize import Linearize
from limbeck.student.restore_attention import RestoreAttention


def planted(seed: int, block: int) -> Text:
    """A model in which the attention of one block alone says anything."""
    role = family_of("llama", seed, torch.float32, layers=4, width=32, heads=4, kv_heads=2, mlp_width=64)
    with torch.no_grad():
        for i in range(4):
            role.module.get_submodule(f"model.layers.{i}.self_attn.o_proj").weight.mul_(20 if i == block else 1e-3)  # type: ignore[operator, union-attr]
    return role


@pytest.mark.parametrize("seed, block", [(0, 2), (1, 0), (2, 3)])
@pytest.mark.parametrize("choose", ["restore_one", "greedy"])
def test_the_one_block_whose_attention_matters_is_found(seed: int, block: int, choose: str) -> None:
    teacher = planted(seed, block)
    student = Linearize(mixer=GatedDeltaNet())(copy.deepcopy(teacher))
    settled = RestoreAttention(num=1, choose=choose).settle(student, score_of(teacher, seed))  # type: ignore[arg-type]
    assert settled == RestoreAttention(num=1, choose="given", layers=(block,))


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
