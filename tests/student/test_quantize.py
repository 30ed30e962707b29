"""Rounded layers: which they are, what they compute, what their exact weights learn, and what is refused."""

import copy
import sys

import pytest
import torch
from torch import nn

from limbeck.check.export import PROVENANCE
from limbeck.check.models import move
from limbeck.component import validate
from limbeck.errors import Refused
from limbeck.export.base import Parcel
from limbeck.export.safetensors import Safetensors
from limbeck.formats.fp8 import FP8
from limbeck.formats.integer import Integer
from limbeck.formats.nvfp4 import NVFP4
from limbeck.model.adapters import merged, stock
from limbeck.model.base import Models, Role, clone
from limbeck.model.quantised import latent, quantised
from limbeck.numerics import kl, log_probs
from limbeck.planning import plan
from limbeck.recipe import load
from limbeck.start import resume, run
from limbeck.student.drop_blocks import DropBlocks
from limbeck.student.keep_width import KeepWidth
from limbeck.student.quantize import Quantize
from toy import after, at_home, metrics, same, state, toy  # noqa: F401

WEIGHTS = ("nvfp4", "fp8", "int8", "int4", "binary")
ACTIVATIONS = ("nvfp4", "fp8", "int8")
W4A4 = {"start": "teacher", "surgery": [{"kind": "quantize", "weights": "nvfp4", "activations": "nvfp4"}]}


def no_score(role: Role) -> float:
    raise AssertionError("nothing is to be measured")


@pytest.fixture
def rounded(tiny, logits):
    """Makes a small model, settles the surgery on some rows, and does it."""

    def make(family: str = "llama", **fields) -> Role:
        surgery = Quantize(**fields).settle(tiny(family), lambda role: float(logits(role).sum()))
        return surgery(tiny(family)).eval()

    return make


@pytest.mark.parametrize("family, num", [("llama", 28), ("qwen2", 28), ("qwen3", 28), ("gemma3_text", 28), ("gpt2", 16), ("bert", 25)])
def test_every_linear_layer_but_the_head_is_rounded_and_parameters_keep_their_names(family, num, rounded, tiny):
    role, before = rounded(family), tiny(family)
    assert len(quantised(role.module)) == len(latent(role.module)) == num  # 7 a block of Llama, 4 of GPT-2; 6 of BERT, and one before its head
    assert role.module.state_dict().keys() == before.module.state_dict().keys()
    assert all(torch.equal(p, before.module.state_dict()[name]) for name, p in role.module.state_dict().items()), "the exact weights stay"
    assert type(role.module.get_output_embeddings()) is nn.Linear and type(role.module) is type(before.module)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_it_says_what_a_stock_model_with_the_rounded_weights_says(family, weights, rounded, tiny, logits):
    role, by_hand = rounded(family, weights=weights), tiny(family)
    how = next(iter(latent(role.module).values())).weights
    with torch.no_grad():
        for name in latent(role.module):
            part = by_hand.module.get_submodule(name)
            rows = part.weight if isinstance(part, nn.Linear) else part.weight.T  # Conv1D: y = x W, so that W is summed over its first axis
            rounded_rows = how.decode(how.encode(rows.contiguous()))
            part.weight.copy_(rounded_rows if isinstance(part, nn.Linear) else rounded_rows.T)
    torch.testing.assert_close(logits(role), logits(by_hand), rtol=1e-5, atol=1e-5)
    assert not torch.equal(logits(role), logits(tiny(family)))
    once = merged(role)
    assert not quantised(once.module) and same(once.module.state_dict(), by_hand.module.state_dict()) and merged(once) is once
    assert latent(role.module), "the student itself is left alone"


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_exact_weights_get_the_gradient_of_the_rounded_ones(family, rounded, ids):
    role = rounded(family)
    other = merged(role)
    for one in (role, other):
        one.module.requires_grad_(True)
        one.module(ids, labels=ids).loss.backward()
    theirs = dict(other.module.named_parameters())
    for name, p in role.module.named_parameters():
        torch.testing.assert_close(p.grad, theirs[name].grad, rtol=1e-4, atol=1e-6)
        assert p.grad.any() or name.endswith("bias")


def test_the_model_that_it_came_from_is_untouched(tiny, logits):
    teacher = tiny("llama")
    said, before = logits(teacher), copy.deepcopy(teacher.module.state_dict())
    student = Quantize()(clone(teacher))
    move(student)
    assert not quantised(teacher.module) and torch.equal(logits(teacher), said) and same(dict(teacher.module.state_dict()), dict(before))
    assert all(type(part) is nn.Linear for part in teacher.module.modules() if isinstance(part, nn.Linear))


def test_taught_by_its_own_rounded_weights_there_is_no_distance_and_no_gradient(rounded, ids):
    role = rounded()
    with torch.no_grad():
        log_p = log_probs(merged(role).module(ids).logits)
    role.module.requires_grad_(True)
    distance = kl(log_p, log_probs(role.module(ids).logits)).sum()
    distance.backward()
    assert abs(distance.item()) < 1e-5
    assert max(float(p.grad.abs().max()) for p in role.module.parameters()) < 1e-4  # beside an exact model it is above 1: see below
    role.module.zero_grad()
    kl(log_p.roll(1, 1), log_probs(role.module(ids).logits)).sum().backward()
    assert max(float(p.grad.abs().max()) for p in role.module.parameters()) > 1


@pytest.mark.parametrize("activations", ACTIVATIONS)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_ranges_of_what_layers_hear_are_measured_on_the_exact_model_and_written_out(family, activations, tiny, logits):
    role, heard = tiny(family), {}

    def hear(name: str, x: torch.Tensor) -> None:
        heard[name] = float(x.abs().max())

    for name, part in role.module.named_modules():
        if isinstance(part, nn.Linear) or type(part).__name__ == "Conv1D":
            part.register_forward_hook(lambda part, args, out, name=name: hear(name, args[0]))
    logits(role)
    before = dict(tiny(family).module.state_dict())
    fresh = tiny(family)
    settled = Quantize(weights=activations, activations=activations).settle(fresh, lambda other: float(logits(other).sum()))
    assert settled.amax == {name: x for name, x in heard.items() if name != "lm_head"}
    assert not quantised(fresh.module) and same(dict(fresh.module.state_dict()), before)
    assert not any(part._forward_pre_hooks for part in fresh.module.modules()), "nobody listens any more"
    assert settled.settle(fresh, no_score) == settled


@pytest.mark.parametrize("how", [NVFP4(), FP8(), Integer(8)], ids=str)
def test_one_layer_by_hand(how, tiny):
    name = {NVFP4: "nvfp4", FP8: "fp8", Integer: "int8"}[type(how)]
    place = "model.layers.1.mlp.down_proj"
    settled = Quantize(weights=name, activations=name).settle(
        tiny("llama"), lambda role: float(role.module(torch.arange(40)[None]).logits.detach().sum())
    )
    layer = settled(tiny("llama")).module.get_submodule(place)
    x = torch.randn(3, 5, 96, generator=torch.Generator().manual_seed(0)) * settled.amax[place] / 2
    frozen = how.frozen(settled.amax[place])
    by_hand = how.decode(how.encode(x, frozen)) @ how.decode(how.encode(layer.weight)).mT
    torch.testing.assert_close(layer(x), by_hand, rtol=1e-5, atol=1e-5)
    assert float(x.abs().max()) > settled.amax[place], "some of it is clipped"


def test_narrow_weights_are_rounded_in_float32_and_stay_narrow(tiny, logits):
    role = Quantize()(tiny("llama").to(torch.bfloat16))
    layer = quantised(role.module)["model.layers.0.self_attn.q_proj"]
    assert logits(role).dtype == torch.bfloat16
    expected = NVFP4().decode(NVFP4().encode(layer.weight.float())).bfloat16()
    assert torch.equal(merged(role).module.get_submodule("model.layers.0.self_attn.q_proj").weight, expected)


def test_patterns_and_blocks_at_both_ends_stay_exact(rounded):
    names = set(quantised(rounded(skip=("down_proj", "*.1.self_attn.*"), edges=1).module))
    expected = {f"model.layers.{i}.{x}" for i in (1, 2) for x in ("mlp.gate_proj", "mlp.up_proj", *(f"self_attn.{y}_proj" for y in "qkvo"))}
    assert names == {name for name in expected if not name.startswith("model.layers.1.self_attn")}


def test_a_head_of_its_own_is_rounded_when_asked_for_and_a_tied_one_is_refused(tiny, logits):
    role = Quantize(head=True)(tiny("llama"))
    assert "lm_head" in quantised(role.module)
    head, how = role.module.lm_head, NVFP4()
    with torch.no_grad():
        final = role.module.model(torch.arange(20)[None]).last_hidden_state
        torch.testing.assert_close(role.module(torch.arange(20)[None]).logits, final @ how.decode(how.encode(head.weight)).mT, rtol=1e-5, atol=1e-5)
    with pytest.raises(Refused) as caught:
        Quantize(head=True)(tiny("llama", tie_word_embeddings=True))
    assert caught.value.slug == "tied"
    assert len(quantised(Quantize()(tiny("llama", tie_word_embeddings=True)).module)) == 28


@pytest.mark.parametrize("sizes, group", [({}, 32), ({"hidden_size": 128, "intermediate_size": 384}, 128), ({"intermediate_size": 72}, 8)])
def test_without_a_group_the_largest_that_divides_every_layer_is_taken(sizes, group, tiny):
    for kind in ("int4", "binary"):
        layers = quantised(Quantize(weights=kind)(tiny("llama", **sizes)).module)
        assert {part.weights.group for part in layers.values()} == {group}  # 64 and 96; 128 and 384; 64 and 72


@pytest.mark.parametrize(
    "fields, sizes, got, do",
    [
        ({"weights": "int4", "group": 64}, {}, "model.layers.0.mlp.down_proj has 96 inputs", "write group: 32"),
        ({"weights": "int8", "group": 128}, {}, "model.layers.0.self_attn.q_proj has 64 inputs", "write group: 32"),
        ({"weights": "nvfp4"}, {"intermediate_size": 72}, "model.layers.0.mlp.down_proj has 72 inputs", "skip: [model.layers.0.mlp.down_proj], or"),
        ({"weights": "binary"}, {"intermediate_size": 44}, "model.layers.0.mlp.down_proj has 44 inputs", "skip: [model.layers.0.mlp.down_proj], or"),
    ],
)
def test_groups_that_do_not_divide_are_refused_with_the_layer_and_what_would_do(fields, sizes, got, do, tiny):
    role = tiny("llama", **sizes)
    with pytest.raises(Refused) as caught:
        Quantize(**fields)(role)
    assert caught.value.slug == "group" and caught.value.got == got and caught.value.do.startswith(do)
    assert not quantised(role.module), "something was changed before it was refused"


@pytest.mark.parametrize(
    "fields, slug, words",
    [
        ({"skip": ("q_porj",)}, "pattern", "q_proj, k_proj"),
        ({"skip": ("*",)}, "layer", "layers to round"),
        ({"edges": 2}, "layer", "fewer than half of the 4 blocks"),
        ({"activations": "nvfp4"}, "settle", "the greatest magnitude that each layer heard"),
    ],
)
def test_what_cannot_take_effect_is_refused(fields, slug, words, tiny):
    with pytest.raises(Refused) as caught:
        Quantize(**fields)(tiny("llama"))
    assert caught.value.slug == slug and words in caught.value.expected


def test_a_rounded_model_is_not_rounded_again(rounded):
    with pytest.raises(Refused) as caught:
        Quantize()(rounded())
    assert caught.value.slug == "quantised"


@pytest.mark.parametrize(
    "fields",
    [
        {"weights": "int2"},
        {"weights": "int4", "activations": "nvfp4"},
        {"weights": "nvfp4", "activations": "int4"},
        {"weights": "nvfp4", "group": 32},
        {"weights": "fp8", "group": 16},
        {"weights": "int4", "group": 12},
        {"group": 0},
        {"edges": -1},
        {"amax": {"q": 0}},
    ],
)
def test_fields_that_do_not_go_together_are_refused(fields):
    with pytest.raises(Refused):
        validate(Quantize, {"kind": "quantize", **fields})


def test_adapters_may_learn_beside_rounded_weights_and_not_before_them(rounded, logits, tiny):
    pytest.importorskip("peft")
    from limbeck.student.lora import Lora

    role = Lora(rank=3, targets=("*",))(rounded())
    assert torch.equal(logits(role), logits(rounded())) and len(latent(role.module)) == 28
    assert {name.split(".")[-3] for name, _ in Models({"student": role}).trainable("student")} == {"lora_A", "lora_B"}
    move(role)
    torch.testing.assert_close(logits(merged(role)), logits(role), rtol=1e-5, atol=1e-4)
    assert not quantised(merged(role).module)
    with pytest.raises(Refused) as caught:
        Quantize()(Lora()(tiny("llama")))
    assert caught.value.slug == "adapters"


def test_blocks_may_be_dropped_before_or_after(tiny, logits):
    first, then = (b(a(tiny("llama"))) for a, b in ((DropBlocks(keep=(0, 2)), Quantize()), (Quantize(), DropBlocks(keep=(0, 2)))))
    assert torch.equal(logits(first), logits(then)) and len(quantised(then.module)) == 14


def test_a_narrowed_model_may_be_rounded(tiny, logits):
    role = Quantize()(KeepWidth(mlp=0.5)(tiny("llama")))
    assert {part.weight.shape[1] for part in quantised(role.module).values()} == {64, 48} and logits(role).isfinite().all()


def test_a_copy_is_its_own(rounded, logits):
    role = rounded(activations="nvfp4")
    other = clone(role)
    assert torch.equal(logits(other), logits(role)) and len(latent(other.module)) == 28
    move(other)
    assert not torch.equal(logits(other), logits(role))


def test_rounded_inputs_stay_in_what_is_measured_and_a_stock_copy_has_none(rounded, logits, tmp_path):
    role = rounded(activations="nvfp4")
    once = merged(role)
    assert torch.equal(logits(once), logits(role)) and len(quantised(once.module)) == 28 and not latent(once.module)
    assert not quantised(stock(once).module) and torch.equal(logits(stock(once)), logits(merged(rounded())))
    (told, *_) = Safetensors()(Parcel(role, tmp_path, {"verdict": "x"}, PROVENANCE))
    assert told["name"] == "Rounded weights written as numbers" and told["open"] and "what layers hear was rounded, and is not here" in told["result"]


def test_the_exporter_of_numbers_writes_rounded_weights_and_finds_no_difference(rounded, tmp_path):
    (told, _) = Safetensors()(Parcel(rounded(weights="int4"), tmp_path, {"verdict": "x"}, PROVENANCE))
    assert not told["open"] and told["result"].startswith("largest difference of a logit 0,")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_it_compiles_whole_and_says_the_same(kind, rounded):
    layer = next(iter(quantised(rounded(weights=kind, activations=kind).module).values()))
    layer.weight.requires_grad_(True)
    found = []
    for function in (layer, torch.compile(layer, fullgraph=True, backend="aot_eager")):
        x = torch.randn(4, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
        layer.weight.grad = None
        said = function(x)
        said.square().sum().backward()
        found.append((said.detach(), x.grad, layer.weight.grad))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


# in a run


def test_a_run_stopped_within_ends_bit_for_bit_and_its_ranges_are_measured_once(tmp_path, monkeypatch):
    recipe = toy(tmp_path, student=W4A4, export=["packed"])
    whole = run(recipe)
    stopped = run(recipe, stop=after(2), runs=tmp_path / "again")
    monkeypatch.setattr(Quantize, "settle", lambda self, role, score: self if self.amax else sys.exit("measured again"))
    done = resume(stopped.path)
    assert same(state(done.path), state(whole.path)) and metrics(done.path) == metrics(whole.path)
    assert [check["open"] for check in whole.summary["checks"][:2]] == [False, False]
    assert whole.summary["checks"][0]["bits_a_weight"] < 4.6
    moved = {name for name, p in state(whole.path).items() if not torch.equal(p, state(whole.path, "student")[name])}
    assert moved == state(whole.path).keys(), "all exact weights learn"


def test_a_rate_of_nothing_is_rounding_without_training(tmp_path):
    stage = {"optimiser": {"lr": 0.1, "groups": [{"match": ["*"], "rate": 0.0}]}, "steps": 1}
    done = run(toy(tmp_path, stage, student=W4A4, evaluate=["agreement"]))
    assert same(state(done.path), state(done.path, "student")) and done.summary["student"]["kl"] == done.summary["start"]["kl"] > 0


def test_a_stage_may_round_what_an_earlier_one_has_trained(tmp_path):
    stages = [
        {"name": "exact", "steps": 2, "batch": 2, "objective": ["cross_entropy"]},
        {"name": "rounded", "steps": 2, "batch": 2, "objective": ["forward_kl"], "surgery": W4A4["surgery"]},
    ]
    done = run(toy(tmp_path, student={"start": "teacher"}, train=stages, export=["packed"], evaluate=["agreement"]))
    assert "28 of 28 rounded layers" in done.summary["checks"][0]["result"]


def test_groups_are_refused_by_the_plan(tmp_path):
    recipe = toy(tmp_path, student={"start": "teacher", "surgery": [{"kind": "quantize", "weights": "int4", "group": 256}]})
    with pytest.raises(Refused) as caught:
        plan(recipe, probe=False)
    assert caught.value.slug == "group"


def test_the_recipe_is_the_papers():
    recipe = load("qad")
    (surgery,), (turn,) = recipe.student.surgery, recipe.train[0].turn
    assert (surgery.weights, surgery.activations, recipe.student.start) == ("nvfp4", "nvfp4", "teacher")
    assert [(o.kind, o.temperature) for o in turn.objective] == [("forward_kl", 1.0)], "KL to the original, at temperature 1, and no labels"
    assert 1e-6 <= turn.optimiser.lr <= 1e-5 and turn.optimiser.decay == "cosine"
    assert recipe.claim.metric == "student.kl" and set(recipe.claim.than) == {"label_only", "rounded"}
