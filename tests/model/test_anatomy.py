import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from limbeck.errors import Refused
from limbeck.model import anatomy as module_under_test
from limbeck.model.anatomy import Anatomy, anatomy, describe, family_files, read_family
from limbeck.model.reference import known

SMALL: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
CONFIGS: dict[str, Any] = {
    "llama": lambda: transformers.LlamaConfig(**SMALL, tie_word_embeddings=False),
    "qwen2": lambda: transformers.Qwen2Config(**SMALL, tie_word_embeddings=False),
    "qwen3": lambda: transformers.Qwen3Config(**SMALL, head_dim=8, tie_word_embeddings=False),
    "gemma3_text": lambda: transformers.Gemma3TextConfig(**SMALL, head_dim=8, sliding_window=4, tie_word_embeddings=False),
    "gpt2": lambda: transformers.GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=4, n_positions=32, pad_token_id=0, tie_word_embeddings=False),
    "bert": lambda: transformers.BertConfig(**{**SMALL, "num_key_value_heads": None}),
    "modernbert": lambda: transformers.ModernBertConfig(**{n: x for n, x in SMALL.items() if n != "num_key_value_heads"}, norm_bias=True),
}
HEAD_DIM = {"llama": 4, "qwen2": 4, "qwen3": 8, "gemma3_text": 8, "gpt2": 4, "bert": 4, "modernbert": 4}
SPEECH: dict[str, Any] = {
    "whisper": lambda: transformers.WhisperConfig(
        vocab_size=40, d_model=16, encoder_layers=3, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=24,
        decoder_ffn_dim=24, max_source_positions=4, max_target_positions=32, pad_token_id=0, tie_word_embeddings=False
    ),
}  # fmt: skip
FOUND = {**family_files("speech"), **family_files()}
CASES = [(family, name) for family in (*CONFIGS, *SPEECH) for name in read_family(FOUND[family]).classes]


def build(family: str, name: str) -> nn.Module:
    torch.manual_seed(0)
    return getattr(transformers, name)({**CONFIGS, **SPEECH}[family]())


def test_every_family_in_the_folder_is_tested_here():
    folder = Path(module_under_test.__file__).parent / "families"
    assert set(CONFIGS) == {path.stem for path in folder.glob("*.json")} and set(SPEECH) == {path.stem for path in (folder / "speech").glob("*.json")}
    assert all(about.endswith(".") for about in describe().values())


@pytest.mark.parametrize(("family", "name"), CASES)
def test_every_path_of_every_class_leads_to_a_module(family: str, name: str):
    model = build(family, name)
    parts = anatomy(model)
    for part in parts.parts:
        layers = range(2) if "{}" in parts.pattern(part) else (None,)
        for layer in layers:
            assert isinstance(model.get_submodule(parts.path(part, layer)), nn.Module)
    blocks = model.get_submodule(parts.path("blocks"))
    assert isinstance(blocks, nn.ModuleList) and len(blocks) == parts.num_layers(model.config) == 2


@pytest.mark.parametrize(("family", "name"), CASES)
def test_every_parameter_belongs_to_one_part_or_is_listed_as_other(family: str, name: str):
    model = build(family, name)
    parts = anatomy(model)
    owners: dict[str, tuple[tuple[str, ...], int | None]] = {key: parts.owner(key) for key, _ in model.named_parameters()}
    for key, (found, layer) in owners.items():
        places = {parts.path(part, layer) for part in found}
        assert len(places) == 1 or not found and key.removeprefix(f"{parts.places.body}.").startswith(parts.family.other), key
        assert not found or key.startswith(places.pop() + ".")
    held = {part for found, _ in owners.values() for part in found}
    assert held == set(parts.parts) - {"body", "blocks", "block", "mixer", "mlp"}  # those hold other parts; each part holds something
    assert {layer for _, layer in owners.values()} == {None, 0, 1}


def test_a_parameter_that_nobody_listed_has_no_owner():
    with pytest.raises(KeyError):
        anatomy("llama").owner("model.layers.0.self_attn.sinks.weight")
    with pytest.raises(KeyError):
        anatomy("llama").owner("model.layers.0.self_attn.q_projection.weight")


@pytest.mark.parametrize("family", CONFIGS)
def test_sizes_are_those_of_the_built_layers(family: str):
    model = build(family, next(iter(read_family(family_files()[family]).classes)))
    parts, config = anatomy(model), model.config
    size = {name: parts.size(config, name) for name in module_under_test.SIZES}
    kv_heads, mlp_width = (2, 24) if family not in ("gpt2", "bert", "modernbert") else (4, 64 if family == "gpt2" else 24)  # GPT-2: four widths
    assert size == {
        "layers": 2,
        "width": 16,
        "heads": 4,
        "kv_heads": kv_heads,
        "head_dim": HEAD_DIM[family],
        "mlp_width": mlp_width,
        "vocab": 40,
        "context": 32,
    }
    assert parts.weight(model, "query", 1).shape == (size["heads"] * size["head_dim"], size["width"])
    assert parts.weight(model, "key", 1).shape == (size["kv_heads"] * size["head_dim"], size["width"])
    assert parts.weight(model, "value", 0).shape == (size["kv_heads"] * size["head_dim"], size["width"])
    assert parts.weight(model, "output", 0).shape == (size["width"], size["heads"] * size["head_dim"])
    assert parts.weight(model, "up", 0).shape == (size["mlp_width"], size["width"])
    assert parts.weight(model, "down", 0).shape == (size["width"], size["mlp_width"])
    assert parts.weight(model, "embedding").shape == (size["vocab"], size["width"])
    assert parts.context(config) == 32


@pytest.mark.parametrize("family", CONFIGS)
def test_a_family_sees_what_its_causal_flag_says(family: str):
    name = next(iter(read_family(family_files()[family]).classes))
    model = build(family, name).eval()
    parts = anatomy(model)
    ids = torch.tensor([[3, 4, 5, 6, 7, 8]])
    changed = ids.clone()
    changed[0, -1] = 9  # only the last token differs
    with torch.no_grad():
        body = model.get_submodule(parts.path("body"))
        first = (body(ids).last_hidden_state - body(changed).last_hidden_state)[0, 0].abs().max()
    assert (first < 1e-6) == parts.causal


@pytest.mark.parametrize("family", CONFIGS)
def test_query_key_value_of_the_anatomy_are_what_the_layer_computes(family: str):
    model = build(family, next(iter(read_family(family_files()[family]).classes))).eval()
    parts = anatomy(model)
    heard: dict[str, torch.Tensor] = {}
    for part in ("query", "key", "value"):
        model.get_submodule(parts.path(part, 1)).register_forward_hook(
            lambda _, args, out, part=part: heard.update({part: out, part + "_input": args[0]})
        )
    with torch.no_grad():
        model(torch.tensor([[3, 4, 5]]))
        for part in ("query", "key", "value"):
            cut = parts.part(part)
            said = heard[part] if cut is None else heard[part].chunk(cut[1], -1)[cut[0]]
            ours = nn.functional.linear(heard[part + "_input"], parts.weight(model, part, 1), parts.bias(model, part, 1))
            torch.testing.assert_close(ours, said)


def test_a_slice_of_gpt2_is_a_view_and_the_three_are_in_order():
    model = build("gpt2", "GPT2LMHeadModel")
    parts = anatomy(model)
    assert [parts.part(part) for part in ("query", "key", "value", "output")] == [(0, 3), (1, 3), (2, 3), None]
    parts.weight(model, "key", 0).fill_(7.0)
    weight = model.get_submodule("transformer.h.0.attn.c_attn").weight  # Conv1D: [in, out], key in the middle third
    assert isinstance(weight, torch.Tensor)
    assert (weight[:, 16:32] == 7).all() and not (weight[:, :16] == 7).any() and not (weight[:, 32:] == 7).any()
    bias = parts.bias(model, "key", 0)
    assert bias is not None and bias.shape == (16,)


def test_the_class_decides_where_the_body_is():
    assert anatomy(build("llama", "LlamaModel")).path("mixer", 1) == "layers.1.self_attn"
    assert anatomy(build("llama", "LlamaForCausalLM")).path("mixer", 1) == "model.layers.1.self_attn"
    assert anatomy(build("bert", "BertForMaskedLM")).path("body") == "bert" and anatomy(build("bert", "BertModel")).path("body") == ""
    assert anatomy("bert").model_class == "BertModel" and anatomy("gpt2").path("head") == "lm_head"
    config = CONFIGS["bert"]()
    config.architectures = ["BertForMaskedLM"]
    assert anatomy(config).path("head") == "cls"


def test_a_subclass_and_another_head_keep_the_anatomy_of_the_body():
    class Mine(transformers.LlamaForCausalLM):
        pass

    assert anatomy(Mine(CONFIGS["llama"]())).path("head") == "lm_head"
    other = transformers.LlamaForQuestionAnswering(CONFIGS["llama"]())
    parts = anatomy(other)
    assert not parts.has("head") and other.get_submodule(parts.path("query", 0)).weight.shape == (16, 16)


def test_a_part_that_is_not_there_and_a_missing_layer_are_refused():
    parts = anatomy("bert")
    for call, told in (
        (lambda: parts.path("head"), "a part of this class"),
        (lambda: parts.path("block"), "the number of a block"),
        (lambda: parts.path("embedding", 1), "no number"),
        (lambda: anatomy("llama").path("wheel"), "wheel"),
    ):
        with pytest.raises(Refused, match=told):
            call()


def test_an_unknown_family_says_how_many_parts_are_named_as_in_the_nearest_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LIMBECK_HOME", str(tmp_path))
    model = transformers.MistralForCausalLM(transformers.MistralConfig(**SMALL))
    with pytest.raises(Refused) as caught:
        anatomy(model)
    error = caught.value
    assert error.slug == "family" and error.got == "'mistral'; 17 of 17 parts are named as in llama"
    assert f"{len(family_files())} known families" in error.expected
    assert str(tmp_path / "families" / "mistral.json") in error.do
    with pytest.raises(Refused, match="parts are named as in llama"):
        anatomy(transformers.MistralConfig(**SMALL))
    with pytest.raises(Refused, match="'oddformer'\n"):
        anatomy("oddformer")
    for bad in ("../llama", "", "A" * 100):
        with pytest.raises(Refused):
            anatomy(bad)


def test_a_family_of_ones_own_is_a_json_file_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LIMBECK_HOME", str(tmp_path))
    (tmp_path / "families").mkdir()
    classes = {"MistralForCausalLM": {"body": "model", "head": "lm_head"}}
    own = json.loads(family_files()["llama"].read_text()) | {"family": "mistral", "classes": classes}
    (tmp_path / "families" / "mistral.json").write_text(json.dumps(own))
    model = transformers.MistralForCausalLM(transformers.MistralConfig(**SMALL))
    assert isinstance(anatomy(model), Anatomy) and anatomy(model).path("down", 1) == "model.layers.1.mlp.down_proj"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"causl": True}, "causl"),
        ({"family": "other"}, "family: mine"),
        ({"parts": {"wheel": "w"}}, "wheel"),
        ({"classes": {}}, "at least one class"),
        ({"parts": {"query": {"path": "q", "part": 0}}}, "of"),
    ],
)
def test_a_family_file_with_a_mistake_is_refused_with_the_mistake(tmp_path: Path, change: dict[str, Any], told: str):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(json.loads(family_files()["llama"].read_text()) | {"family": "mine"} | change))
    with pytest.raises(Refused) as caught:
        read_family(path)
    assert told in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize("name", known("shapes"))
def test_a_known_shape_has_as_many_parameters_as_stated_and_says_where_it_is_from(name: str):
    from limbeck.model.opening import open_meta

    entry = known("shapes")[name]
    module, config = open_meta(f"hf:{name}")
    assert sum(parameter.numel() for parameter in module.parameters()) == entry["num_parameters"]
    assert {parameter.device.type for parameter in module.parameters()} == {"meta"}
    assert entry["source"] and entry["licence"] and anatomy(module).num_layers(config) == entry["config"][anatomy(module).family.sizes["layers"]]
