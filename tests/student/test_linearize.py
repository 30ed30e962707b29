"""Other mixers in the place of attention: what is converted, what stays, what is copied."""

import copy
import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from limbeck.block.base import Attention, module_of
from limbeck.block.bidirectional import Bidirectional
from limbeck.block.gated_delta_net import GatedDeltaNet
from limbeck.block.self_value import SelfValue
from limbeck.block.sliding_window import SlidingWindow
from limbeck.check.models import family_of, fresh, quiet
from limbeck.check.surgery import logits
from limbeck.errors import Refused
from limbeck.export.base import Parcel
from limbeck.export.safetensors import Safetensors
from limbeck.model.blocks import attention_of
from limbeck.model.hybrid import parts_of
from limbeck.model.opening import open_pretrained
from limbeck.signals import Row
from limbeck.student.drop_blocks import DropBlocks
from limbeck.student.keep_width import KeepWidth
from limbeck.student.linearize import Linearize
from limbeck.student.lora import Lora
from limbeck.student.quantize import Quantize
from limbeck.student.replace_parts import ReplaceParts


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma3_text", "gpt2"])
def test_a_window_that_sees_the_whole_row_says_what_the_attention_of_any_family_said(family: str) -> None:
    role = family_of(family, dtype=torch.float32)
    before = logits(role)
    after = Linearize(mixer=SlidingWindow(window=64))(copy.deepcopy(role))
    assert type(after.module).__name__.startswith("Hybrid")
    torch.testing.assert_close(logits(after), before, rtol=1e-5, atol=1e-6)


def test_only_the_blocks_that_are_named_are_converted_and_all_else_keeps_its_tensors() -> None:
    role = fresh()
    before = {name: p for name, p in role.module.named_parameters()}
    after = Linearize(mixer=GatedDeltaNet(), layers=(1, 3))(role)
    assert [list(parts) for parts in parts_of(after.module)] == [[], ["self_attn"], [], ["self_attn"]]
    for name, p in after.module.named_parameters():
        converted = ".layers.1.self_attn." in name or ".layers.3.self_attn." in name
        assert (p is not before.get(name)) == converted, name


def test_those_that_are_kept_are_the_others() -> None:
    assert Linearize(keep=(0, 2)).converted(4) == [1, 3] and Linearize().converted(2) == [0, 1]


@pytest.mark.parametrize(
    "surgery, got",
    [(Linearize(layers=(4,)), "block 4"), (Linearize(keep=(-1,)), "block -1"), (Linearize(keep=(0, 1, 2, 3)), "none to convert")],
    ids=["beyond", "negative", "nothing"],
)
def test_blocks_that_are_not_there_are_refused(surgery: Linearize, got: str) -> None:
    with pytest.raises(Refused, match="some of the blocks 0 to 3") as error:
        surgery(fresh())
    assert got in error.value.got


def test_layers_and_keep_together_are_refused() -> None:
    with pytest.raises(ValidationError, match="not both"):
        Linearize(layers=(1,), keep=(0,))


def test_a_masked_language_model_is_refused() -> None:
    with pytest.raises(Refused, match="a causal language model"):
        Linearize()(family_of("bert"))


def test_a_block_that_was_converted_is_not_converted_again() -> None:
    role = Linearize(layers=(1,))(fresh())
    with pytest.raises(Refused, match="was converted before"):
        Linearize()(role)


def test_each_new_weight_says_where_it_comes_from() -> None:
    role = Linearize(mixer=GatedDeltaNet(), layers=(0,))(fresh())
    path = "model.layers.0.self_attn"
    assert role.origins[f"{path}.k_proj.weight"] == "copied: key" and role.origins[f"{path}.A_log"] == "new"
    assert role.origins.keys() == {name for name, _ in role.module.named_parameters() if name.startswith(path)}


def test_scores_from_keys_that_were_expanded_are_those_of_grouped_attention() -> None:
    from transformers.models.llama.modeling_llama import repeat_kv

    role = fresh()
    attention = attention_of(role.module, 0)
    shape = attention.shape
    x = torch.randn(1, 5, shape.width, generator=torch.Generator().manual_seed(0))

    def heads(weight: torch.Tensor, num: int) -> torch.Tensor:
        return (x @ weight.mT).unflatten(-1, (num, -1)).transpose(1, 2)

    grouped = repeat_kv(heads(attention.weights["key"], shape.kv_heads), shape.group)
    expected = heads(attention.weights["query"], shape.heads) @ grouped.mT
    got = heads(attention.weights["query"], shape.heads) @ heads(attention.weight("key", per_query=True), shape.heads).mT
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


def test_single_rows_repeated_would_scramble_the_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    # what two public code bases do: the shapes agree, and heads are mixed up
    role, right = fresh(), Linearize(mixer=GatedDeltaNet())(fresh())
    monkeypatch.setattr(Attention, "expanded", lambda self, x: x.repeat_interleave(self.shape.group, 0))
    wrong = Linearize(mixer=GatedDeltaNet())(role)
    k: Any = [other.module.get_submodule("model.layers.0.self_attn.k_proj").weight for other in (right, wrong)]
    assert k[0].shape == k[1].shape and (k[0] - k[1]).norm() > 0.5 * k[0].norm()


def test_a_plan_knows_its_parameters_without_weights() -> None:
    role = fresh()
    real = sum(p.numel() for p in Linearize(mixer=GatedDeltaNet())(copy.deepcopy(role)).module.parameters())
    planned = Linearize(mixer=GatedDeltaNet())(copy.deepcopy(role).to("meta")).module
    assert real == sum(p.numel() for p in planned.parameters()) and all(p.is_meta for p in planned.parameters())


@pytest.mark.parametrize("before", [Lora(), Quantize(weights="int8")], ids=["lora", "quantize"])
def test_parts_that_would_not_learn_or_not_be_rounded_are_refused(before: Lora | Quantize) -> None:
    with pytest.raises(Refused, match="before parts are replaced"):
        Linearize(layers=(1,))(before(fresh()))


@pytest.mark.parametrize(
    "then, expected",
    [(Lora(), "attention, or parts named as in it"), (KeepWidth(mlp=0.5), "as their family builds them")],
    ids=["lora", "keep_width"],
)
def test_surgeries_that_find_no_attention_say_so(then: Lora | KeepWidth, expected: str) -> None:
    with pytest.raises(Refused, match=expected):
        then(Linearize(mixer=SelfValue(), layers=(1,))(fresh()))


def test_blocks_that_are_dropped_leave_no_word_of_what_was_converted_in_them() -> None:
    role = DropBlocks(keep=(1, 2, 3))(Linearize(mixer=GatedDeltaNet(), layers=(0,))(fresh()))
    assert not role.origins and "query" in role.offers
    role = DropBlocks(keep=(0, 3))(Linearize(mixer=GatedDeltaNet(), layers=(3,))(fresh()))
    assert "model.layers.1.self_attn.A_log" in role.origins and role.origins.keys() <= {name for name, _ in role.module.named_parameters()}


def replaced(mixer: Any, **seed: int) -> ReplaceParts:
    return ReplaceParts.model_validate({"blocks": [{"mixer": mixer}] * 4, **seed})


@pytest.mark.parametrize("make", [Linearize, replaced])
def test_a_seed_draws_what_is_new_alone_and_without_one_it_is_what_it_always_was(make: Any) -> None:
    students = [make(mixer=GatedDeltaNet(), **seed)(fresh()).module for seed in ({}, {"seed": 0}, {"seed": 1}, {"seed": 1})]
    none, zero, one, again = [dict(student.named_parameters()) for student in students]
    drawn = {name for name, p in none.items() if not torch.equal(p, one[name])}
    assert all(torch.equal(p, zero[name]) for name, p in none.items()) and all(torch.equal(p, again[name]) for name, p in one.items())
    new = {"a_proj.weight", "b_proj.weight", "g_proj.weight", "A_log", "dt_bias"}
    assert drawn == {f"model.layers.{i}.self_attn.{name}" for i in range(4) for name in new}
    # before there were seeds: drawn from the first 56 bits of sha256 over 0, the place and the block
    number = int.from_bytes(hashlib.sha256(repr((0, "mixer", 2)).encode()).digest()[:7], "big")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(number)
        module = module_of(GatedDeltaNet().spec(attention_of(fresh().module, 2).shape), 2)
    assert torch.equal(none["model.layers.2.self_attn.g_proj.weight"], module.get_parameter("g_proj.weight"))


def encoder() -> Any:
    return family_of("modernbert", dtype=torch.float32, kv_heads=2)


def test_a_masked_model_gets_a_mixer_that_reads_in_both_directions_and_keeps_one_attention() -> None:
    role = encoder()
    before = dict(role.module.named_parameters())
    after = Linearize(mixer=Bidirectional(), keep=(1,))(role)
    assert type(after.module).__name__ == "HybridModernBertForMaskedLM" and [list(parts) for parts in parts_of(after.module)] == [["attn"], []]
    for name, p in after.module.named_parameters():
        assert (p is not before.get(name)) == (".layers.0.attn." in name), name
    assert after.origins["model.layers.0.attn.ahead.q_proj.weight"] == "copied: query"
    torch.testing.assert_close(after.module.model.layers[0].attn.ahead.k_proj.weight, before["model.layers.0.attn.Wqkv.weight"][16:32])
    assert "text" not in after.offers and "key" not in after.offers and "hidden" in after.offers


def test_in_a_masked_model_each_row_of_a_padded_batch_is_read_as_if_it_were_alone() -> None:
    role = Linearize(mixer=Bidirectional(), keep=(1,))(encoder())
    rows = [Row(f"row-{n}", {"text": "the lambda expression"[:n]}) for n in (21, 3, 9)]
    with torch.no_grad():
        whole = role.says(role.view(rows), ("hidden.2",), {})["hidden.2"]
        alone = torch.cat([role.says(role.view([row]), ("hidden.2",), {})["hidden.2"] for row in rows])
    torch.testing.assert_close(whole, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("surgery", [None, Linearize(mixer=Bidirectional(), keep=(1,))], ids=["attention alone", "one attention"])
def test_positions_that_are_not_to_be_seen_change_nothing_for_the_others(surgery: Any) -> None:
    role = encoder() if surgery is None else surgery(encoder())
    view = role.view([Row("a", {"text": "the lambda expression"}), Row("b", {"text": "yields a function"})])
    seen = torch.ones_like(view.inputs["ids"], dtype=torch.bool)
    seen[[4, 5, 6, 25]] = False
    with torch.no_grad():

        def said(ids: torch.Tensor, **more: torch.Tensor) -> torch.Tensor:
            return role.says(replace(view, inputs={"ids": ids, **more}), ("hidden.2",), {})["hidden.2"]

        other = view.inputs["ids"].masked_fill(~seen, 7)
        torch.testing.assert_close(said(other, seen=seen)[seen], said(view.inputs["ids"], seen=seen)[seen], rtol=1e-5, atol=1e-6)
        assert not torch.allclose(said(other)[seen], said(view.inputs["ids"])[seen]), "without it, they are seen"


def test_a_masked_model_that_is_written_beside_its_code_opens_again_and_says_the_same(tmp_path: Path) -> None:
    role = Linearize(mixer=Bidirectional(), keep=(1,))(encoder())
    with quiet():
        Safetensors()(Parcel(role, tmp_path, {}, ()))
        again = open_pretrained(f"path:{tmp_path}").module
    assert "AutoModelForMaskedLM" in (tmp_path / "config.json").read_text() and type(again).__module__.startswith("limbeck.")
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(ids).logits, role.module.eval()(ids).logits, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("family", "mixer", "slug", "do"),
    [
        ("modernbert", GatedDeltaNet(), "mixer", "bidirectional"),
        ("llama", Bidirectional(), "mixer", "looks back alone"),
        ("bert", Bidirectional(), "family", "start from such a model"),
    ],
)
def test_mixers_that_see_other_than_attention_saw_and_attention_within_its_norms_are_refused(family: str, mixer: Any, slug: str, do: str) -> None:
    with pytest.raises(Refused) as caught:
        Linearize(mixer=mixer)(family_of(family))
    assert caught.value.slug == slug and do in caught.value.do
    if slug == "mixer":
        with pytest.raises(Refused):
            ReplaceParts.model_validate({"blocks": [{"mixer": mixer}, {}]})(family_of(family))
