"""Small models of every family, with the padding of two sizes of heads and windows shorter than rows."""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
import transformers

from limbeck.model.anatomy import anatomy
from limbeck.model.text import Text
from limbeck.text.bytes_tokenizer import ByteTokenizer

TOKENIZER = ByteTokenizer()
SIZES: dict[str, Any] = {
    "vocab_size": 264,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": 257,
}
FAMILIES: dict[str, tuple[Any, dict[str, Any]]] = {
    "llama": (transformers.LlamaForCausalLM, SIZES),
    "qwen2": (transformers.Qwen2ForCausalLM, SIZES),
    "qwen3": (transformers.Qwen3ForCausalLM, SIZES | {"head_dim": 8}),
    "gemma3_text": (
        transformers.Gemma3ForCausalLM,
        SIZES
        | {
            "head_dim": 8,
            "query_pre_attn_scalar": 8,
            "sliding_window": 5,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "gpt2": (
        transformers.GPT2LMHeadModel,
        {"vocab_size": 264, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64, "bos_token_id": 256, "eos_token_id": 257},
    ),
    "bert": (transformers.BertForMaskedLM, {name: size for name, size in SIZES.items() if name != "num_key_value_heads"}),
}


@cache
def build(family: str, **changes: Any) -> Text:
    """A small model in double precision, whose norms and biases are not those it was born with."""
    model_class, sizes = FAMILIES[family]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = model_class(model_class.config_class(**sizes | changes)).double().eval()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return Text(module, TOKENIZER, anatomy(module))


@pytest.fixture
def small() -> Callable[..., Text]:
    """The small model of a family, as it was: frozen, in its own choice of layout."""

    def of(family: str, **changes: Any) -> Text:
        role = build(family, **changes)
        role.layout, role.state = "auto", "frozen"
        role.requires_grad_(True).zero_grad()
        return role

    return of
