"""Small models from configs, as text roles, for tests of surgeries."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from limbeck.model.anatomy import anatomy
from limbeck.model.base import Role
from limbeck.model.text import Text
from limbeck.text.bytes_tokenizer import ByteTokenizer

SIZES: dict[str, Any] = {
    "vocab_size": 258,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 256,
    "eos_token_id": None,
    "pad_token_id": 257,
}
FAMILIES: dict[str, tuple[Any, dict[str, Any]]] = {
    "llama": (transformers.LlamaForCausalLM, SIZES),
    "qwen2": (transformers.Qwen2ForCausalLM, SIZES),
    "qwen3": (transformers.Qwen3ForCausalLM, SIZES | {"head_dim": 16}),
    "gemma3_text": (
        transformers.Gemma3ForCausalLM,
        SIZES
        | {
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
        },
    ),
    "gpt2": (
        transformers.GPT2LMHeadModel,
        {"vocab_size": 258, "n_embd": 64, "n_layer": 4, "n_head": 4, "n_positions": 128, "bos_token_id": 256, "eos_token_id": None},
    ),
    "bert": (transformers.BertForMaskedLM, {name: size for name, size in SIZES.items() if name != "num_key_value_heads"}),
}
RELOAD = """
import sys
from pathlib import Path
import torch, transformers
for folder in map(Path, sys.argv[1:]):
    seen = torch.load(folder / "seen.pt", weights_only=True)
    model, info = getattr(transformers, seen["class"]).from_pretrained(folder, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), (folder, info)
    assert torch.equal(model.eval()(seen["ids"]).logits, seen["logits"]), folder
"""


def build(family: str, seed: int = 0, **changes: Any) -> Text:
    """A small model whose weights are large enough for its blocks to matter, and whose norms and biases are not those it was born with."""
    model_class, sizes = FAMILIES[family]
    torch.manual_seed(seed)
    module = model_class(model_class.config_class(**sizes | changes)).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    return Text(module, ByteTokenizer(), anatomy(module))


@pytest.fixture
def tiny() -> Callable[..., Text]:
    """Makes a small model of a family."""
    return build


@pytest.fixture
def ids() -> torch.Tensor:
    """Two rows of 24 bytes: three windows of the small Gemma."""
    return torch.randint(256, (2, 24), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def logits(ids: torch.Tensor) -> Callable[[Role], torch.Tensor]:
    """What a model says about these rows."""

    def say(role: Role) -> torch.Tensor:
        with torch.no_grad():
            return role.module(ids).logits

    return say


@pytest.fixture
def against(logits: Callable[[Role], torch.Tensor]) -> Callable[[Role], Callable[[Role], float]]:
    """The score that measures the mean KL from a teacher."""

    def score_of(teacher: Role) -> Callable[[Role], float]:
        p = logits(teacher).log_softmax(-1)
        return lambda role: float((p.exp() * (p - logits(role).log_softmax(-1))).sum(-1).mean())

    return score_of


@pytest.fixture
def reloads(tmp_path: Path, ids: torch.Tensor, logits: Callable[[Role], torch.Tensor]) -> Callable[[dict[str, Role]], None]:
    """Saves models, opens them in a fresh process that knows transformers only, and compares logits bit by bit."""

    def check(roles: dict[str, Role]) -> None:
        for name, role in roles.items():
            role.module.save_pretrained(tmp_path / name)
            torch.save({"class": type(role.module).__name__, "ids": ids, "logits": logits(role)}, tmp_path / name / "seen.pt")
        done = subprocess.run([sys.executable, "-c", RELOAD, *(str(tmp_path / name) for name in roles)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]

    return check


@pytest.fixture
def generates(ids: torch.Tensor) -> Callable[[Role], None]:
    """Holds what is generated with a cache of keys and values against what is generated without."""

    def check(role: Role) -> None:
        torch.manual_seed(0)
        seen = {"input_ids": ids[:, :6], "attention_mask": torch.ones_like(ids[:, :6])}
        plain, cached = (
            role.module.generate(
                **seen, max_new_tokens=12, do_sample=False, use_cache=cache, output_logits=True, return_dict_in_generate=True, eos_token_id=None
            )
            for cache in (False, True)
        )
        assert torch.equal(plain.sequences, cached.sequences)
        torch.testing.assert_close(torch.stack(cached.logits), torch.stack(plain.logits), atol=1e-4, rtol=1e-4)

    return check
