"""Models whose blocks hold other modules: written with their code, opened with limbeck and without."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import limbeck
from limbeck.block.gated_sum import GatedSum
from limbeck.block.grouped_attention import GroupedAttention
from limbeck.block.sliding_window import SlidingWindow
from limbeck.check.models import TOKENIZER, family_of, quiet
from limbeck.errors import LimbeckError, Refused
from limbeck.export.base import Parcel
from limbeck.export.safetensors import Safetensors
from limbeck.model.anatomy import anatomy
from limbeck.model.opening import open_pretrained
from limbeck.model.text import Text
from limbeck.student.linearize import Linearize

WITHOUT_LIMBECK = """
import sys, torch
from transformers import AutoModelForCausalLM
folder = sys.argv[1]
seen = torch.load(folder + "/seen.pt", weights_only=True)
model, info = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
assert torch.allclose(model(seen["ids"]).logits, seen["logits"], atol=1e-6)
assert torch.equal(model.generate(seen["ids"], max_new_tokens=5, do_sample=False), seen["written"])
assert "limbeck" not in sys.modules
"""


def written(folder: Path, family: str = "llama") -> tuple[Text, Any]:
    """A student with two mixers side by side in one block, as it is exported."""
    role = Linearize(mixer=GatedSum.example(), layers=(1,))(family_of(family, dtype=torch.float32))
    with quiet():
        Safetensors()(Parcel(role, folder, {}, ()))
    assert isinstance(role, Text)
    return role, role.module


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma3_text", "gpt2"])
def test_a_process_without_limbeck_opens_it_with_the_code_beside_its_weights(family: str, tmp_path: Path) -> None:
    _, module = written(tmp_path, family)
    ids = torch.arange(3, 19)[None]
    with torch.no_grad():
        seen = {"ids": ids, "logits": module(ids).logits, "written": module.generate(ids, max_new_tokens=5, do_sample=False)}
    torch.save(seen, tmp_path / "seen.pt")
    outside = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", WITHOUT_LIMBECK, str(tmp_path)], capture_output=True, text=True, env=outside)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_code_beside_the_weights_names_nothing_of_limbeck(tmp_path: Path) -> None:
    written(tmp_path)
    code = {file.name: file.read_text() for file in tmp_path.glob("*.py")}
    assert {"modeling_hybrid.py", "_hybrid.py", "_mixing.py", "_gated_sum.py", "_sliding_window.py", "_linear_attention.py"} <= code.keys()
    assert not [name for name, text in code.items() if "limbeck" in text]
    for text in code.values():
        compile(text, "carried", "exec")


def test_limbeck_opens_it_with_classes_of_its_own_and_runs_no_code_of_the_folder(tmp_path: Path) -> None:
    role, module = written(tmp_path)
    (tmp_path / "modeling_hybrid.py").write_text("raise SystemExit('this was run')")
    again = open_pretrained(f"path:{tmp_path}").module
    ids = torch.arange(3, 19)[None]
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, module(ids).logits, rtol=1e-5, atol=1e-6)
    assert type(again).__module__ == "limbeck.model.hybrid"


def test_transformers_refuses_code_that_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path)
    monkeypatch.setattr("builtins.input", lambda question: "no")  # it asks whoever sits at a terminal
    values = json.loads((tmp_path / "config.json").read_text())
    # in a process that has not imported limbeck the type is as unheard of as this one, and only the code beside the weights knows it
    (tmp_path / "config.json").write_text(json.dumps({**values, "model_type": "hybrid_unheard_of"}))
    (tmp_path / "modeling_hybrid.py").write_text("raise SystemExit('this was run')")
    with pytest.raises(ValueError) as caught:
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    said = str(caught.value)
    assert f"The repository {tmp_path} contains custom code which must be executed to correctly load the model" in said
    assert "Please pass the argument `trust_remote_code=True` to allow custom code to be run." in said


def test_limbeck_refuses_code_that_is_not_trusted(tmp_path: Path) -> None:
    written(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**values, "model_type": "hybrid_unheard_of"}))
    with pytest.raises(Refused, match="code with a hash that you trust"):
        open_pretrained(f"path:{tmp_path}")


def test_after_register_the_auto_classes_of_transformers_know_it(tmp_path: Path) -> None:
    _, module = written(tmp_path)
    limbeck.register()
    with quiet():
        again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = torch.arange(3, 19)[None]
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, module(ids).logits, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "spec",
    [
        {"kind": "no_such_block"},
        {"kind": "../evil"},
        {"kind": "nolab:retention"},
        {"kind": "os:path"},
        {"kind": "gated_sum", "width": 16, "first": {"kind": "../evil"}, "second": {}},
        {"kind": "sliding_window", "window": 4},
        {"kind": ["sliding_window"]},
        {},
    ],
    ids=str,
)
def test_a_config_that_names_no_block_or_other_numbers_is_refused(spec: dict[str, Any], tmp_path: Path) -> None:
    written(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    values["layer_parts"][1]["self_attn"] = spec
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(LimbeckError, match="kind"):
        open_pretrained(f"path:{tmp_path}")


def test_padding_behind_the_text_is_refused_where_a_state_would_remember_it() -> None:
    module: Any = Linearize()(family_of("llama", dtype=torch.float32)).module
    mask = torch.tensor([[1, 1, 1, 0]])
    with pytest.raises(ValueError, match="pad on the left"):
        module(torch.arange(4)[None], attention_mask=mask, past_key_values=transformers.DynamicCache(config=module.config), use_cache=True)


def test_a_state_cannot_be_taken_back() -> None:
    module: Any = Linearize()(family_of("llama", dtype=torch.float32)).module
    cache = transformers.DynamicCache(config=module.config)
    module(torch.arange(4)[None], past_key_values=cache, use_cache=True)
    with pytest.raises(RuntimeError, match="without a draft model"):
        cache.crop(-1)


WINDOWED: dict[str, Any] = {"sliding_window": 4, "sliding_window_pattern": 3}
"""Blocks 2 and 5 see all, the others four positions."""
FAMILIES: dict[str, Any] = {"llama": (transformers.LlamaForCausalLM, {}), "gemma3_text": (transformers.Gemma3ForCausalLM, WINDOWED)}


def converted_with_sdpa(family: str, num_layers: int, layers: tuple[int, ...], mixer: Any = None) -> Any:
    """As transformers opens it: its usual attention makes no mask where it thinks that none is needed."""
    model, more = FAMILIES[family]
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": num_layers, "num_attention_heads": 4}
    config = model.config_class(**sizes, num_key_value_heads=2, head_dim=8, max_position_embeddings=128, **more)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = model(config).double().eval()
        for parameter in module.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
        role = Linearize(layers=layers, **({} if mixer is None else {"mixer": mixer}))(Text(module, TOKENIZER, anatomy(module)))
    made: Any = role.module.eval()
    assert made.config._attn_implementation == "sdpa"
    return made


PLACES = [
    ("llama", 4, (0, 1, 2, 3)),
    ("llama", 4, (0, 2)),
    ("llama", 4, (3,)),
    ("gemma3_text", 6, (0,)),
    ("gemma3_text", 6, (1,)),
    ("gemma3_text", 6, (2, 5)),
    ("gemma3_text", 6, (0, 1, 3, 4)),
    ("gemma3_text", 2, (0,)),
    ("gemma3_text", 2, (1,)),
]


@pytest.mark.parametrize("family, num_layers, layers", PLACES)
def test_every_cache_gives_what_no_cache_gives_alone_and_beside_a_longer_row(family: str, num_layers: int, layers: tuple[int, ...]) -> None:
    module = converted_with_sdpa(family, num_layers, layers)
    how: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    rows = torch.arange(3, 12)[None], torch.arange(20, 25)[None]
    alone = [module.generate(row, use_cache=False, output_logits=True, return_dict_in_generate=True, **how) for row in rows]
    both = torch.cat([rows[0], torch.cat([torch.zeros(1, 4, dtype=torch.long), rows[1]], 1)])
    mask = (both > 0).long()
    for cache in ("dynamic", "static"):
        told: dict[str, Any] = {"cache_implementation": cache, "output_logits": True, "return_dict_in_generate": True, **how}
        single, batch = module.generate(rows[0], **told), module.generate(both, attention_mask=mask, **told)
        for t in range(8):
            torch.testing.assert_close(single.logits[t], alone[0].logits[t], rtol=0, atol=1e-10)
            torch.testing.assert_close(batch.logits[t], torch.cat([one.logits[t] for one in alone]), rtol=0, atol=1e-10)


@pytest.mark.parametrize("mixer", [SlidingWindow(window=3), GroupedAttention(kv_heads=1)], ids=repr)
def test_so_do_attentions_of_ones_own(mixer: Any) -> None:
    module = converted_with_sdpa("llama", 3, (1,), mixer)
    ids, how = torch.arange(3, 12)[None], {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    told: dict[str, Any] = {"output_logits": True, "return_dict_in_generate": True, **how}
    found = module.generate(ids, cache_implementation="static", **told).logits
    torch.testing.assert_close(found, module.generate(ids, use_cache=False, **told).logits, rtol=0, atol=1e-10)


def test_a_static_cache_that_is_handed_on_is_read_where_something_was_written() -> None:
    """As in a loop of one's own: no mask is given, one position follows the other."""
    module, ids = converted_with_sdpa("llama", 4, (0, 2)), torch.arange(3, 15)[None]
    cache = transformers.StaticCache(module.config, max_cache_len=20)
    with torch.no_grad():
        said = [module(ids[:, :5], past_key_values=cache, use_cache=True).logits[:, -1]]
        said.append(module(ids[:, 5:9], past_key_values=cache, use_cache=True).logits[:, -1])
        said += [module(input_ids=ids[:, i : i + 1], past_key_values=cache, use_cache=True).logits[:, -1] for i in range(9, 12)]
        whole = module(ids, use_cache=False).logits
    torch.testing.assert_close(torch.stack(said, 1), whole[:, [4, 8, 9, 10, 11]], rtol=0, atol=1e-10)
