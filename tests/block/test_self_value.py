"""Attention to oneself: what attention says of a row of one position, whatever its sizes."""

import pytest
import torch

from limbeck.block.self_value import SelfValue
from limbeck.check.models import family_of
from limbeck.model.blocks import attention_of
from limbeck.student.replace_parts import ReplaceParts

ONE = torch.arange(40, 58)[:, None]
EXACT = {"rtol": 1e-10, "atol": 1e-10}


def replaced(role):
    return ReplaceParts.model_validate({"blocks": [{"mixer": "self_value"}] * role.num_layers})(role)


@pytest.mark.parametrize(
    "family, sizes",
    [
        ("llama", {}),  # two query heads read one value head
        ("llama", {"heads": 4, "kv_heads": 2}),  # 4 heads of 8 channels: 32, of a width of 16
        ("llama", {"heads": 6, "kv_heads": 3, "head_dim": 6, "width": 24}),
        ("qwen2", {}),  # biases of values
        ("qwen3", {"heads": 4}),  # norms of queries and keys, which do not matter here
        ("gpt2", {}),  # biases of values and of the output, transposed weights
        ("gemma3_text", {}),  # norms behind it
    ],
)
def test_on_rows_of_one_position_the_model_says_exactly_what_it_said(family, sizes):
    role = family_of(family, **sizes)
    with torch.no_grad():
        before = role.module(ONE).logits
        after = replaced(role).module(ONE).logits
    torch.testing.assert_close(after, before, **EXACT)


def test_on_longer_rows_positions_do_not_hear_each_other():
    role = replaced(family_of("llama"))
    ids = torch.arange(40, 58).view(2, 9)
    with torch.no_grad():
        torch.testing.assert_close(role.module(ids).logits.flatten(0, 1), role.module(ONE).logits[:, 0], **EXACT)


def test_its_matrix_is_the_product_written_out_head_by_head():
    taught = attention_of(family_of("qwen2", heads=4, kv_heads=2).module, 0)
    spec = SelfValue().spec(taught.shape)
    assert spec == {"kind": "self_value", "width": 16, "bias": True}
    size, expected = taught.shape.head_dim, torch.zeros(16, 16, dtype=torch.float64)
    for head in range(4):
        into, out = taught.weights["value"][head // 2 * size : (head // 2 + 1) * size], taught.weights["output"][:, head * size : (head + 1) * size]
        expected += torch.einsum("od,di->oi", out, into)
    module = replaced(family_of("qwen2", heads=4, kv_heads=2)).module.model.layers[0].self_attn
    torch.testing.assert_close(module.proj.weight.detach(), expected, **EXACT)


def test_half_precision_weights_are_multiplied_in_single_precision():
    taught = attention_of(family_of("llama", dtype=torch.bfloat16).module, 0)
    module = torch.nn.Module()
    module.proj = torch.nn.Linear(16, 16, bias=False, dtype=torch.bfloat16)
    SelfValue().begin(module, taught)
    exact = taught.weight("output").double() @ taught.weight("value", True).double()
    assert torch.equal(module.proj.weight.detach(), exact.float().bfloat16())
