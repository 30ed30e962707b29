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
from limbeck.check.models import family_of, quiet
from limbeck.errors import LimbeckError, Refused
from limbeck.export.base import Parcel
from limbeck.export.safetensors import Safetensors
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


def test_a_static_cache_gives_what_a_growing_one_gives() -> None:
    module: Any = Linearize(layers=(1,))(family_of("llama", dtype=torch.float32)).module.eval()
    ids = torch.arange(3, 12)[None]
    how: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    assert torch.equal(module.generate(ids, cache_implementation="static", **how), module.generate(ids, **how))
