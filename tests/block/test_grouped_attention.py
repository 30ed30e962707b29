"""Fewer key heads: nothing is lost where they were alike, and else each is the mean of those that it stands for."""

import pytest
import torch

from limbeck.block.base import module_of
from limbeck.block.grouped_attention import GroupedAttention
from limbeck.check.models import family_of
from limbeck.errors import Refused
from limbeck.model.blocks import attention_of
from limbeck.student.replace_parts import ReplaceParts

IDS = torch.arange(40, 58).view(2, 9)
EXACT = {"rtol": 1e-10, "atol": 1e-10}
SINGLE = {"rtol": 1e-5, "atol": 1e-6}
"""Where transformers computes the norms of queries and keys in single precision, in whatever the model is."""


def logits(role):
    with torch.no_grad():
        return role.module(IDS).logits


def with_heads(role, num):
    """The model with that many key heads in every block."""
    return ReplaceParts.model_validate({"blocks": [{"mixer": {"kind": "grouped_attention", "kv_heads": num}}] * role.num_layers})(role)


def small(family, **sizes):
    """A small model whose attention is computed in double precision throughout, as transformers' eager form is not."""
    role = family_of(family, **sizes)
    role.module.config._attn_implementation = "sdpa"
    return role


def wide(family):
    """One with as many key heads as query heads."""
    return small(family, heads=4, kv_heads=4)


@pytest.mark.parametrize("family, kv_heads", [("llama", 2), ("qwen2", 1), ("qwen3", 2), ("gpt2", 2)])
def test_with_all_heads_it_is_the_attention_that_stood_there(family, kv_heads):
    role = small(family, kv_heads=kv_heads)
    before = logits(role)
    torch.testing.assert_close(logits(with_heads(role, kv_heads)), before, **(SINGLE if family == "qwen3" else EXACT))


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_heads_that_are_alike_are_averaged_without_loss(family):
    role = wide(family)
    for layer in range(role.num_layers):
        taught = attention_of(role.module, layer)
        with torch.no_grad():
            for x in (taught.weights["key"], taught.weights["value"], taught.biases["key"], taught.biases["value"]):
                if x is not None:  # heads 0 and 1 alike, 2 and 3 alike, the two pairs not
                    rows = x.unflatten(0, (2, 2, taught.shape.head_dim))
                    rows[:, 1] = rows[:, 0]
    before = logits(role)
    torch.testing.assert_close(logits(with_heads(role, 2)), before, **(SINGLE if family == "qwen3" else EXACT))
    assert not torch.allclose(logits(with_heads(wide(family), 1)), before, atol=1e-3)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_a_new_head_is_the_mean_of_whole_heads_row_by_row(family):
    taught = attention_of(wide(family).module, 0)
    module = module_of(GroupedAttention(kv_heads=2).spec(taught.shape), 0).double()
    GroupedAttention(kv_heads=2).begin(module, taught)
    size = taught.shape.head_dim
    for name, part in (("k_proj", "key"), ("v_proj", "value")):
        for new in range(2):
            for row in range(size):
                first, second = (taught.weights[part][(2 * new + old) * size + row] for old in range(2))
                torch.testing.assert_close(getattr(module, name).weight[new * size + row], (first + second) / 2, **EXACT)
                if taught.biases[part] is not None:
                    mean = (taught.biases[part][2 * new * size + row] + taught.biases[part][(2 * new + 1) * size + row]) / 2
                    torch.testing.assert_close(getattr(module, name).bias[new * size + row], mean, **EXACT)
    assert torch.equal(module.q_proj.weight, taught.weights["query"]) and torch.equal(module.o_proj.weight, taught.weights["output"])


@pytest.mark.parametrize("num", [3, 8])
def test_a_number_of_heads_that_does_not_divide_those_there_is_refused(num):
    with pytest.raises(Refused, match="kv_heads: 1 or 2 or 4"):
        with_heads(wide("llama"), num)


def test_its_state_holds_a_row_of_keys_and_values_a_position_and_is_smaller_with_fewer_heads():
    shape = attention_of(wide("llama").module, 0).shape
    # 10 positions, 2 heads of 8 channels, keys and values, 4 bytes; and a byte that says that the position is there
    assert GroupedAttention(kv_heads=2).state_bytes(shape, 10) == 10 * (2 * 2 * 8 * 4 + 1)
    assert GroupedAttention(kv_heads=1).state_bytes(shape, 10, itemsize=2) == 10 * (2 * 8 * 2 + 1)


def test_rows_of_a_batch_that_is_padded_in_front_are_decoded_as_they_are_alone():
    taught = attention_of(wide("llama").module, 0)
    module = module_of(GroupedAttention(kv_heads=2).spec(taught.shape), 0).double()
    GroupedAttention(kv_heads=2).begin(module, taught)
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(2, 9, taught.shape.width, generator=draw, dtype=torch.float64)
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[1, :4] = False
    with torch.no_grad():  # rope is left out: only the order of positions is at stake
        _, state = module.mix(x[:, :7], None, mask[:, :7], None)
        steps = []
        for t in (7, 8):
            y, state = module.step(x[:, t : t + 1], None, None, state)
            steps.append(y)
        for row, first in ((0, 0), (1, 4)):
            alone = module.mix(x[row : row + 1, first:], None, None, None)[0]
            torch.testing.assert_close(torch.cat(steps, 1)[row], alone[0, -2:], **EXACT)
    assert state["k"].shape == (2, 9, 2, 8)
