"""Other mixers and MLPs, block by block: what is changed, what stays, and that what is written can be opened anywhere."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from limbeck.check.models import family_of, fresh
from limbeck.check.surgery import logits
from limbeck.errors import Refused
from limbeck.export.base import Parcel
from limbeck.export.safetensors import Safetensors
from limbeck.model.hybrid import parts_of
from limbeck.student.replace_parts import ReplaceParts

MIXED = [
    {"mixer": {"kind": "grouped_attention", "kv_heads": 1}, "mlp": {"kind": "narrow_mlp", "inner": 0.25}},
    {"mlp": "linear_mlp"},
    {"mixer": "self_value", "mlp": "no_mlp"},
    {"mixer": "no_mixer"},
]


def replaced(role, blocks):
    return ReplaceParts.model_validate({"blocks": blocks})(role)


def test_only_what_is_named_is_changed_and_all_else_keeps_its_tensors():
    role = fresh()
    before = dict(role.module.named_parameters())
    after = replaced(role, MIXED)
    mixer, mlp = "self_attn", "mlp"
    norms = ["input_layernorm", "post_attention_layernorm"]
    assert [sorted(parts) for parts in parts_of(after.module)] == [[mlp, mixer], [mlp], sorted([mixer, mlp, norms[1]]), sorted([mixer, norms[0]])]
    changed = ("0.self_attn", "0.mlp", "1.mlp", "2.self_attn")
    for name, p in after.module.named_parameters():
        assert (p is not before.get(name)) == any(f"layers.{place}." in name for place in changed), name
    gone = before.keys() - dict(after.module.named_parameters()).keys()
    assert {name for name in gone if "norm" in name} == {f"model.layers.{layer}.{norm}.weight" for layer, norm in ((2, norms[1]), (3, norms[0]))}


def test_sizes_are_those_that_the_parts_say_and_the_config_says_them_too():
    after = replaced(fresh(), MIXED)
    block = after.module.model.layers[0]
    assert block.self_attn.k_proj.weight.shape == (8, 32) and block.mlp.up_proj.weight.shape == (16, 32)  # one head of 8; a quarter of 64
    told = json.loads(after.module.config.to_json_string())["layer_parts"]
    assert told[0]["self_attn"]["kv_heads"] == 1 and told[0]["mlp"]["inner"] == 16 and told[3]["input_layernorm"] == {"kind": "no_norm"}
    assert after.origins["model.layers.0.mlp.up_proj.weight"] == "copied: up" and not [how for how in after.origins.values() if how == "new"]


def test_attention_that_was_replaced_is_kept_beside_and_where_nothing_stands_it_is_not():
    assert sorted(replaced(fresh(), MIXED).aside) == [0, 2]


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "gemma3_text", "gpt2"])
def test_models_of_other_families_are_put_together_from_parts_too(family):
    role = family_of(family, dtype=torch.float32)
    before = logits(copy.deepcopy(role))
    after = replaced(role, MIXED[:1] + MIXED[2:3])
    said = logits(after)
    assert said.isfinite().all() and not torch.allclose(said, before, atol=1e-3)
    assert sum(p.numel() for p in after.module.parameters()) < sum(p.numel() for p in family_of(family).module.parameters())


@pytest.mark.parametrize("blocks, got", [(MIXED[:3], "3 blocks"), (MIXED + [{}], "5 blocks"), ([{}] * 4, "0 of them changed")])
def test_another_number_of_blocks_and_no_change_at_all_are_refused(blocks, got):
    with pytest.raises(Refused, match="4 blocks, one at least changed") as error:
        replaced(fresh(), blocks)
    assert got in error.value.got


def test_a_part_in_the_wrong_place_and_one_that_is_not_there_are_refused():
    for blocks in ([{"mixer": "no_mlp"}], [{"mlp": "self_value"}], [{"attention": "self_value"}]):
        with pytest.raises(ValidationError):
            ReplaceParts.model_validate({"blocks": blocks})


def test_a_block_that_was_changed_before_is_refused():
    once = replaced(fresh(), [{"mlp": "linear_mlp"}, {}, {}, {}])
    with pytest.raises(Refused, match="was changed before"):
        replaced(once, [{"mlp": "linear_mlp"}, {}, {}, {}])
    assert [sorted(parts) for parts in parts_of(replaced(once, [{"mixer": "self_value"}, {}, {}, {}]).module)][0] == ["mlp", "self_attn"]


FRESH = """
import sys, torch, transformers
seen = torch.load(sys.argv[2], weights_only=True)
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
assert "limbeck" not in sys.modules
torch.testing.assert_close(model(seen["ids"]).logits, seen["logits"], rtol=1e-5, atol=1e-5)
written = model.generate(seen["ids"][:, :5], max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=257)
assert torch.equal(written, seen["written"])
"""


@pytest.mark.slow
def test_the_folder_opens_and_decodes_in_a_process_without_limbeck(tmp_path: Path):
    after = replaced(fresh(), MIXED).eval()
    ids = torch.arange(40, 58).view(2, 9)
    with torch.no_grad():
        said = after.module(ids).logits
        written = after.module.generate(ids[:, :5], max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=257, use_cache=False)
    torch.save({"ids": ids, "logits": said, "written": written}, tmp_path / "seen.pt")
    Safetensors()(Parcel(after, tmp_path / "model", {}, ()))
    done = subprocess.run(
        [sys.executable, "-I", "-c", FRESH, str(tmp_path / "model"), str(tmp_path / "seen.pt")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
