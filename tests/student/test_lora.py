"""Low-rank adapters: what they change, what they leave, and what is written of them."""

import sys
from typing import Any

import pytest
import torch

from limbeck.check.export import PROVENANCE
from limbeck.check.models import move
from limbeck.component import validate
from limbeck.errors import Refused
from limbeck.evaluate.speed import Speed
from limbeck.export.base import Parcel
from limbeck.export.safetensors import Safetensors
from limbeck.model.adapters import adapted, merged
from limbeck.model.base import Models, Role, clone
from limbeck.numerics import Streams
from limbeck.planning import plan
from limbeck.start import resume, run
from limbeck.student.drop_blocks import DropBlocks
from limbeck.student.keep_width import KeepWidth
from limbeck.student.lora import Lora
from toy import after, at_home, metrics, same, state, toy  # noqa: F401

peft = pytest.importorskip("peft")
FAMILIES = ("llama", "qwen2", "qwen3", "gemma3_text", "gpt2", "bert")
LORA = {"start": "teacher", "surgery": [{"kind": "lora", "rank": 4, "dropout": 0.1}]}


def trained(role: Role) -> Role:
    """As if it had learned something."""
    move(role)
    return role.eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_function_is_kept_and_adapters_stand_beside_attention(family, tiny, logits):
    before, role = tiny(family), Lora(rank=3)(tiny(family))
    assert torch.equal(logits(role), logits(before)), "B is zero at the start"
    blocks = [{name.split(f".{i}.")[1] for name in adapted(role.module) if f".{i}." in name} for i in range(4)]
    expected = {
        "gpt2": {"attn.c_attn", "attn.c_proj"},
        "bert": {"attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"},
    }.get(family, {f"self_attn.{x}_proj" for x in "qkvo"})
    assert blocks == [expected] * 4
    assert {p.shape[0] for name, p in role.module.named_parameters() if "lora_A" in name} == {3}
    assert not torch.equal(logits(trained(role)), logits(before))


@pytest.mark.parametrize("family", FAMILIES)
def test_added_to_the_weights_they_say_the_same_in_a_stock_class(family, tiny, logits):
    role = trained(Lora(rank=3, alpha=9)(tiny(family)))
    stock = merged(role)
    assert type(stock.module) is type(tiny(family).module) and stock.module.state_dict().keys() == tiny(family).module.state_dict().keys()
    torch.testing.assert_close(logits(stock), logits(role), rtol=1e-5, atol=1e-4)
    assert not adapted(stock.module) and adapted(role.module) and stock.learns == () and merged(stock) is stock
    before = {name: p.clone() for name, p in tiny(family).module.named_parameters()}
    kept = {name.replace("base_layer.", ""): p for name, p in role.module.named_parameters() if "lora_" not in name}
    assert all(torch.equal(kept[name], p) for name, p in before.items()), "the student's own weights changed"


def test_what_is_saved_is_opened_by_a_process_that_knows_transformers_only(tiny, reloads):
    reloads({family: merged(trained(Lora(rank=3)(tiny(family)))) for family in FAMILIES})


def test_added_by_hand_it_is_the_formula(tiny):
    role = trained(Lora(rank=2, alpha=6, targets=("q_proj",))(tiny("llama")))
    layer = role.module.get_submodule("model.layers.1.self_attn.q_proj")
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    by_hand = layer.base_layer.weight + 3.0 * b @ a
    torch.testing.assert_close(merged(role).module.get_submodule("model.layers.1.self_attn.q_proj").weight, by_hand)


def test_it_is_what_peft_itself_makes_from_the_same_seed_also_after_a_step(tiny, ids):
    ours = Lora(rank=4, alpha=8, targets=("q_proj", "*.mlp.*"), seed=5)(tiny("llama"))
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "gate_proj", "up_proj", "down_proj"])
    module = tiny("llama").module
    torch.manual_seed(Streams(5).number("lora"))
    theirs = peft.get_peft_model(module, config)
    losses = []
    for module, models in ((ours.module, Models({"student": ours})), (theirs, None)):
        parameters = [p for _, p in models.trainable("student")] if models else [p for p in module.parameters() if p.requires_grad]
        optimiser = torch.optim.SGD([p.requires_grad_(True) for p in parameters], 0.1)
        for _ in range(3):
            optimiser.zero_grad()
            loss = module(ids, labels=ids).loss
            loss.backward()
            optimiser.step()
        losses.append((loss.item(), module(ids).logits))
    assert losses[0][0] == losses[1][0] and torch.equal(losses[0][1], losses[1][1])


def test_its_weights_hang_on_the_seed_alone_and_the_stream_of_the_process_is_left_alone(tiny):
    found, drawn = [], []
    for process, seed in ((1, 0), (2, 0), (2, 1)):
        role = tiny("llama")
        torch.manual_seed(process)
        found.append(dict(Lora(seed=seed)(role).module.state_dict()))
        drawn.append(torch.rand(1))
        torch.manual_seed(process)
        assert torch.equal(drawn[-1], torch.rand(1))
    assert same(found[0], found[1]) and not same(found[0], found[2])


def test_a_copy_is_its_own(tiny, logits):
    role = trained(Lora()(tiny("llama")))
    copy = clone(role)
    assert torch.equal(logits(copy), logits(role)) and copy.learns == role.learns
    trained(copy)
    assert not torch.equal(logits(copy), logits(role))


def test_narrow_weights_get_adapters_in_float32(tiny):
    role = Lora(rank=2)(tiny("llama").to(torch.bfloat16))
    kinds = {"lora_" in name: p.dtype for name, p in role.module.named_parameters()}
    assert kinds == {True: torch.float32, False: torch.bfloat16}
    assert {p.dtype for p in merged(trained(role)).parameters()} == {torch.bfloat16}


def test_only_adapters_learn_and_patterns_that_fit_nothing_that_learns_are_refused(tmp_path):
    recipe = toy(tmp_path, {"objective": ["cross_entropy"]}, student=LORA)
    folder = run(recipe).path
    start, end = state(folder, "student"), state(folder)
    moved = {name for name in start if not torch.equal(start[name], end[name])}
    assert moved == {name for name in start if "lora_" in name} and len(moved) == 32
    for pattern, words in (("lm_head.*", "such as model.layers.0.self_attn.q_proj.lora_A"), ("*.norm.weight", "such as")):
        with pytest.raises(Refused) as caught:
            plan(recipe, f"train.0.freeze=['{pattern}']", probe=False)
        assert caught.value.slug == "pattern" and words in caught.value.expected


def test_a_run_stopped_within_ends_bit_for_bit_and_writes_what_stock_transformers_opens(tmp_path):
    recipe = toy(tmp_path, {"objective": ["cross_entropy"]}, student=LORA, export="safetensors", evaluate=["agreement"])
    whole = run(recipe)
    done = resume(run(recipe, stop=after(2), runs=tmp_path / "again").path)
    assert same(state(done.path), state(whole.path)) and metrics(done.path) == metrics(whole.path)
    names = [check["name"] for check in whole.summary["checks"]]
    assert names[:2] == ["Adapters added to the weights", "Exported student, loaded by stock transformers"]
    assert not any(check["open"] for check in whole.summary["checks"][:2])
    assert type(whole.load()).__name__ == "LlamaForCausalLM" and not (whole.path / "student" / "adapter_config.json").exists()


def test_the_exporter_says_what_rounding_did_and_leaves_the_student(tmp_path, tiny, logits):
    role = trained(Lora()(tiny("llama")))
    before = logits(role)
    checks = Safetensors(dtype="bfloat16")(Parcel(role, tmp_path, {"verdict": "x"}, PROVENANCE))
    assert torch.equal(logits(role), before) and adapted(role.module)
    assert checks[0]["name"] == "Adapters added to the weights" and not checks[0]["open"] and "largest difference" in checks[0]["result"]


def test_blocks_may_be_dropped_afterwards_and_width_may_not(tiny, logits):
    role = DropBlocks(keep=(0, 2))(Lora(rank=2)(tiny("llama")))
    assert len(adapted(role.module)) == 8 and torch.equal(logits(role), logits(DropBlocks(keep=(0, 2))(tiny("llama"))))
    for later, words in ((KeepWidth(mlp=0.5), "a model without adapters"), (Lora(), "a model without adapters")):
        with pytest.raises(Refused) as caught:
            later(role)
        assert caught.value.slug == "adapters" and words in caught.value.expected


@pytest.mark.parametrize("targets, words", [(("q_porj",), "q_proj, k_proj, v_proj, o_proj"), (("q_proj", "lm_head"), "down_proj")])
def test_targets_that_fit_nothing_are_refused_with_what_there_is(targets, words, tiny):
    role = tiny("llama")
    with pytest.raises(Refused) as caught:
        Lora(targets=targets)(role)
    assert caught.value.slug == "pattern" and words in caught.value.expected and "lm_head" not in caught.value.expected
    assert not adapted(role.module), "something was changed before it was refused"


def test_everything_but_the_head_is_reached_by_a_star(tiny):
    names = set(adapted(Lora(targets=("*",))(tiny("llama")).module))
    assert len(names) == 28 and "lm_head" not in names


@pytest.mark.parametrize("fields", [{"rank": 0}, {"alpha": 0}, {"dropout": 1}, {"target": ["q_proj"]}])
def test_fields_out_of_bounds_are_refused(fields):
    with pytest.raises(Refused):
        validate(Lora, {"kind": "lora", **fields})


def test_without_peft_one_line_says_what_to_install(tiny, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "peft", None)
    for act in (lambda: Lora()(tiny("llama")), lambda: plan(toy(tmp_path, student=LORA), probe=False)):
        with pytest.raises(Refused) as caught:
            act()
        assert (caught.value.slug, caught.value.code, caught.value.do) == ("extra", 3, "pip install 'limbeck[lora]'")


def test_a_student_is_measured_as_it_is_exported(tmp_path):
    seen: list[Any] = []

    def look(self: Any, exam: Any) -> dict[str, Any]:
        with exam.open("student") as role:
            seen.append(adapted(role.module))
        return {}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Speed, "__call__", look)
        run(toy(tmp_path, {"objective": ["cross_entropy"]}, student=LORA, evaluate=["speed"]), "train.0.steps=1")
    assert seen == [{}]
