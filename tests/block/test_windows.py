"""Mixers in the place of attention that sees a window alone, as some blocks of Gemma 3 and Qwen2 do: against transformers, beyond the window."""

from typing import Any

import pytest
import torch
import transformers

from limbeck.block.base import Shape, module_of
from limbeck.block.grouped_attention import GroupedAttention
from limbeck.block.sliding_window import SlidingWindow
from limbeck.check.models import TOKENIZER
from limbeck.model.anatomy import anatomy
from limbeck.model.base import clone
from limbeck.model.blocks import attention_of
from limbeck.model.text import Text
from limbeck.planning.cost import cost
from limbeck.search.blockwise import Shelf
from limbeck.search.costs import library
from limbeck.search.library import Workload
from limbeck.student.linearize import Linearize

WINDOW = 4
SIZES: dict[str, Any] = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
FAMILIES: dict[str, Any] = {
    "gemma3_text": (transformers.Gemma3ForCausalLM, {"num_hidden_layers": 3, "head_dim": 8, "sliding_window_pattern": 3}, (4, 4, None)),
    "qwen2": (transformers.Qwen2ForCausalLM, {"num_hidden_layers": 3, "use_sliding_window": True, "max_window_layers": 1}, (None, 4, 4)),
}
IDS = torch.arange(3, 23)[None]


def windowed(family: str) -> Text:
    model, more, _ = FAMILIES[family]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = model(model.config_class(**SIZES, **more, sliding_window=WINDOW, max_position_embeddings=128)).double().eval()
        for parameter in module.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    role = Text(module, TOKENIZER, anatomy(module))
    role.requires_grad_(False)
    return role


@pytest.mark.parametrize("family", FAMILIES)
def test_a_shape_knows_how_far_its_block_sees(family: str) -> None:
    role = windowed(family)
    assert tuple(attention_of(role.module, layer).shape.window for layer in range(3)) == FAMILIES[family][2]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mixer", [GroupedAttention(kv_heads=2), SlidingWindow(window=64, sinks=0)], ids=repr)
def test_attention_that_is_taken_over_whole_says_the_same_beyond_its_window(family: str, mixer: Any) -> None:
    """With all key heads, and a window of its own that is wider than all that was read; Gemma norms queries and keys in float32."""
    role = windowed(family)
    before = role.module(IDS).logits
    module: Any = Linearize(mixer=mixer)(clone(role)).module.eval()
    torch.testing.assert_close(module(IDS).logits, before, rtol=0, atol=1e-6)
    how: dict[str, Any] = {"max_new_tokens": 7, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    told: dict[str, Any] = {"output_logits": True, "return_dict_in_generate": True, **how}
    wanted = role.module.generate(IDS, **told).logits  # type: ignore[operator]
    for cache in ("dynamic", "static"):
        torch.testing.assert_close(module.generate(IDS, cache_implementation=cache, **told).logits, wanted, rtol=0, atol=1e-6)
    short = torch.cat([torch.zeros(1, 9, dtype=torch.long), IDS[:, :11]], 1)
    batch, mask = torch.cat([IDS, short]), torch.cat([torch.ones_like(short), (short > 0).long()])
    alone = role.module.generate(IDS[:, :11], **told).logits  # type: ignore[operator]
    found = module.generate(batch, attention_mask=mask, **told).logits
    torch.testing.assert_close([x[1:] for x in found], list(alone), rtol=0, atol=1e-6)


def test_what_is_remembered_is_no_longer_than_the_window() -> None:
    role = windowed("gemma3_text")
    attention = attention_of(role.module, 0)
    module: Any = Linearize(mixer=GroupedAttention(kv_heads=1))(clone(role)).module
    cache, bytes_of = transformers.DynamicCache(config=module.config), []
    for ids in (IDS, IDS[:, :1], IDS[:, :5]):
        module(ids, past_key_values=cache, use_cache=True)
        bytes_of.append([sum(x.numel() * x.element_size() for x in layer.state.values()) for layer in cache.layers])
    mixer = GroupedAttention(kv_heads=1)
    assert [one[0] for one in bytes_of] == [mixer.state_bytes(attention.shape, length, 8) for length in (20, 21, 26)] == [3 * (2 * 8 * 8 + 1)] * 3
    whole = attention_of(role.module, 2).shape
    assert [one[2] for one in bytes_of] == [mixer.state_bytes(whole, length, 8) for length in (20, 21, 26)]


def test_costs_count_what_transformers_keeps_and_what_is_seen() -> None:
    role = windowed("gemma3_text")
    cache = transformers.DynamicCache(config=role.module.config)
    role.module(IDS, past_key_values=cache, use_cache=True)
    kept = sum(x.numel() * x.element_size() for layer in cache.layers for x in (layer.keys, layer.values))
    table = library(Shelf(role, (GroupedAttention(kv_heads=1),), ()))
    at, nothing = Workload(batch=1, prompt=20, answer=0), Workload(batch=1, prompt=0, answer=0)
    whole = (0,) * 3
    assert table.cost(whole, "memory_bytes", at) - table.cost(whole, "memory_bytes", nothing) == kept
    long, short = (cost(role, length).forward_flops for length in (20, WINDOW))
    assert long - short == 4 * 4 * 8 * (20 - WINDOW)  # one of three blocks sees more
    assert Shape(8, 2, 1, 4, 0.5, False, False, True).seen(20) == 20 == Shape(8, 2, 1, 4, 0.5, False, False, True).remembered(20)


def test_a_window_is_no_wider_than_that_of_the_attention_that_stood_there() -> None:
    attention = attention_of(windowed("gemma3_text").module, 0)
    mixer = SlidingWindow(window=64, sinks=2)
    assert mixer.spec(attention.shape)["window"] == WINDOW and mixer.state_bytes(attention.shape, 99) == 6 * (2 * 2 * 8 * 4 + 8) + 8
    assert SlidingWindow(window=3).spec(attention.shape)["window"] == 3


@pytest.mark.parametrize("sizes", [(20,), (1,) * 20, (7, 1, 8, 1, 3)])
def test_padding_takes_no_place_in_a_window(sizes: tuple[int, ...]) -> None:
    attention = attention_of(windowed("gemma3_text").module, 0)
    module = module_of(GroupedAttention(kv_heads=1).spec(attention.shape), 0).double().requires_grad_(False)
    x = torch.randn(3, 20, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mask = torch.ones(3, 20, dtype=torch.bool)
    mask[0, 7:12], mask[1, :3], mask[1, 9:15] = False, False, False
    said, state = [], None
    for here, there in zip(x.split(list(sizes), 1), mask.split(list(sizes), 1), strict=True):
        y, state = module.mix(here, None, there, state)
        said.append(y)
    for row in range(3):
        alone = module.mix(x[row, mask[row]][None], None, None, None)[0]
        torch.testing.assert_close(torch.cat(said, 1)[row, mask[row]][None], alone, rtol=0, atol=1e-10)
    assert state["k"].shape[1] == WINDOW - 1
