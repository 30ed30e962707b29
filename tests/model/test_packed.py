"""Folders of codes and scales: which are read, and that damaged ones end in one sentence."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from limbeck.check.export import PROVENANCE
from limbeck.check.models import fresh, quiet
from limbeck.errors import Failed
from limbeck.export.base import Parcel
from limbeck.export.packed import Packed
from limbeck.formats.binary import Binary
from limbeck.formats.fp8 import FP8
from limbeck.formats.integer import Integer
from limbeck.formats.nvfp4 import NVFP4
from limbeck.model.opening import open_meta, open_pretrained
from limbeck.model.packed import CONFIG, Scheme, codes_in, scheme_of, words_of
from limbeck.student.quantize import Quantize

SCHEMES = (
    Scheme(NVFP4()),
    Scheme(NVFP4(), NVFP4()),
    Scheme(FP8()),
    Scheme(FP8(), FP8()),
    Scheme(Integer(8)),
    Scheme(Integer(8, 32)),
    Scheme(Integer(8), Integer(8)),
    Scheme(Integer(4, 128)),
    Scheme(Binary(64)),
)
Q = "model.layers.0.self_attn.q_proj"


def said(scheme: Scheme, **changes: Any) -> dict[str, Any]:
    """A config with the scheme; changes go to the part for weights."""
    plain = scheme.config(["lm_head"])
    plain["config_groups"]["group_0"]["weights"] |= changes
    return {CONFIG: plain}


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_what_a_config_says_is_understood(scheme):
    assert scheme_of(json.loads(json.dumps(said(scheme)))) == scheme


@pytest.mark.parametrize(
    "config",
    [
        {},
        {CONFIG: None},
        {CONFIG: {"quant_method": "gptq", "bits": 4}},
        said(Scheme(Integer(4, 128)), symmetric=False),
        said(Scheme(Integer(4, 128)), actorder="group"),
        said(Scheme(Integer(4, 128)), group_size="128"),
        said(Scheme(Integer(4, 128)), group_size=-1),
        said(Scheme(Integer(4, 128)), num_bits=3),
        said(Scheme(NVFP4()), group_size=32),
        said(Scheme(FP8()), strategy="block"),
        {CONFIG: {**said(Scheme(FP8()))[CONFIG], "format": "pack-quantized"}},
        {CONFIG: {**said(Scheme(FP8()))[CONFIG], "kv_cache_scheme": {"num_bits": 8}}},
        {CONFIG: {**said(Scheme(FP8()))[CONFIG], "transform_config": {"config_groups": {}}}},
        {CONFIG: {**said(Scheme(FP8()))[CONFIG], "config_groups": {"a": 1}}},
        {CONFIG: {**said(Scheme(FP8()))[CONFIG], "config_groups": {"a": {}, "b": {}}}},
        {CONFIG: {**said(Scheme(FP8()))[CONFIG], "config_groups": {"a": {"weights": {}, "input_activations": {"dynamic": True}}}}},
    ],
)
def test_what_asks_for_more_than_codes_and_scales_is_left_to_others(config):
    assert scheme_of(config) is None


def test_what_layers_hear_in_a_way_that_is_not_known_is_left_to_others():
    config = said(Scheme(FP8()))
    config[CONFIG]["config_groups"]["group_0"]["input_activations"] = {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True}
    assert scheme_of(config) is None


@pytest.mark.parametrize("bits, width", [(4, 64), (8, 64), (8, 13)])
def test_words_hold_codes_from_the_lowest_bits_and_give_them_back(bits, width):
    codes = Integer(bits).encode(torch.randn(3, width, generator=torch.Generator().manual_seed(0)))
    words = words_of(codes.packed)
    assert words.dtype == torch.int32 and words.shape == (3, -(-width * bits // 32))
    first = Integer(bits).unpack(codes.packed)[0]
    by_hand = sum(int(first[i] + 2 ** (bits - 1)) << bits * i for i in range(32 // bits))
    assert words[0, 0].item() & 0xFFFFFFFF == by_hand
    assert torch.equal(codes_in(words, bits, width), codes.packed)


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """Writes a small rounded model."""

    def make(weights: str = "nvfp4", activations: str = "none") -> Path:
        ids = torch.arange(20)[None]
        surgery = Quantize(weights=weights, activations=activations)  # type: ignore[arg-type]
        role = surgery.settle(fresh(), lambda role: float(role.module(ids).logits.detach().sum()))(fresh())
        with quiet():
            Packed()(Parcel(role, tmp_path, {"verdict": "x"}, PROVENANCE))
        return tmp_path

    return make


def spoilt(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> Failed:
    """The error of opening it after its tensors were changed."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(Failed) as caught, quiet():
        open_pretrained(f"path:{folder}")
    return caught.value


@pytest.mark.parametrize(
    "weights, change",
    [
        ("nvfp4", lambda t: t.pop(f"{Q}.weight_global_scale")),
        ("nvfp4", lambda t: t.pop(f"{Q}.weight_packed")),
        ("nvfp4", lambda t: t.update({f"{Q}.weight_packed": t[f"{Q}.weight_packed"].int()})),
        ("nvfp4", lambda t: t.update({f"{Q}.weight_packed": t[f"{Q}.weight_packed"][:, :8].clone()})),
        ("nvfp4", lambda t: t.update({f"{Q}.weight_packed": t[f"{Q}.weight_packed"][0].clone()})),
        ("nvfp4", lambda t: t.update({f"{Q}.weight_scale": t[f"{Q}.weight_scale"][:1].clone()})),
        ("nvfp4", lambda t: t.update({f"{Q}.weight_global_scale": torch.zeros(1)})),
        ("nvfp4", lambda t: t.update({f"{Q}.weight_global_scale": torch.ones(2)})),
        ("nvfp4", lambda t: t.update({f"{Q}.weight_zero_point": torch.ones(1)})),
        ("nvfp4", lambda t: t.update({"model.norm.weight_scale": torch.ones(1)})),
        ("int4", lambda t: t.update({f"{Q}.weight_shape": torch.tensor([32, 2**40])})),
        ("int4", lambda t: t.update({f"{Q}.weight_shape": torch.tensor([31, 32])})),
        ("int4", lambda t: t.update({f"{Q}.weight_shape": torch.tensor([-1, -32])})),
        ("int4", lambda t: t.update({f"{Q}.weight_shape": torch.tensor([32])})),
        ("int4", lambda t: t.update({f"{Q}.weight_packed": t[f"{Q}.weight_packed"][:, :2].clone()})),
        ("fp8", lambda t: t.update({f"{Q}.weight_scale": torch.full((32, 1), float("inf"))})),
        ("fp8", lambda t: t.update({f"{Q}.weight": t[f"{Q}.weight"][:16].clone(), f"{Q}.weight_scale": t[f"{Q}.weight_scale"][:16].clone()})),
        ("binary", lambda t: t.update({f"{Q}.weight_packed": t[f"{Q}.weight_packed"][:, :3].clone()})),
        ("nvfp4", lambda t: [t.pop(name) for name in list(t) if name.startswith(Q)]),
    ],
)
def test_tensors_that_do_not_fit_each_other_are_refused_in_one_sentence(weights, change, folder):
    error = spoilt(folder(weights), change)
    assert error.slug == "corrupt" and len(str(error).splitlines()) == 4


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_a_frozen_scale_that_is_none_is_refused(scale, folder):
    error = spoilt(folder("int8", "int8"), lambda t: t.update({f"{Q}.input_scale": torch.tensor([scale])}))
    assert error.slug == "corrupt" and "scales of" in error.expected


def test_a_packed_embedding_is_no_linear_layer(folder):
    def change(tensors: dict[str, torch.Tensor]) -> None:
        codes = NVFP4().encode(tensors.pop("model.embed_tokens.weight"))
        assert codes.whole is not None
        for name, part in (("packed", codes.packed), ("scale", codes.scale), ("global_scale", codes.whole)):
            tensors[f"model.embed_tokens.weight_{name}"] = part

    error = spoilt(folder(), change)
    assert error.slug == "corrupt" and "model.embed_tokens" in error.got


def test_a_config_that_asks_for_more_than_the_codes_hold_is_refused_before_it_is_built(folder):
    path = folder()
    plain = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**plain, "num_hidden_layers": 400}))
    with pytest.raises(Failed) as caught:
        open_pretrained(f"path:{path}")
    assert caught.value.slug == "corrupt" and "weights, as the config says" in caught.value.expected


def test_shards_are_read_through_their_index(folder):
    path = folder()
    whole = open_pretrained(f"path:{path}").module.state_dict()
    tensors = load_file(path / "model.safetensors")
    halves = {f"model-{i}.safetensors": dict(list(tensors.items())[i::2]) for i in range(2)}
    (path / "model.safetensors").unlink()
    for name, half in halves.items():
        save_file(half, path / name)
    index = {"weight_map": {tensor: name for name, half in halves.items() for tensor in half}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    again = open_pretrained(f"path:{path}").module.state_dict()
    assert all(torch.equal(again[name], p) for name, p in whole.items())


def test_a_plan_sees_the_shapes_of_a_stock_model(folder):
    module, _ = open_meta(f"path:{folder()}")
    assert {name: p.shape for name, p in module.named_parameters()} == {name: p.shape for name, p in fresh().module.named_parameters()}
