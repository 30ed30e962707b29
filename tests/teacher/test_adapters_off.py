"""The student with its adapters off as its own teacher."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

import limbeck
from limbeck.check.models import family_of, fresh, move, rows
from limbeck.errors import Refused
from limbeck.model.adapters import WithoutAdapters, adapted
from limbeck.model.base import Models, Role
from limbeck.model.role import given
from limbeck.planning import plan
from limbeck.recipe import load
from limbeck.roles import Cast
from limbeck.signals import View, dense
from limbeck.start import resume, run
from limbeck.store import Cache
from limbeck.student.lora import Lora
from limbeck.teacher.adapters_off import AdaptersOff
from toy import TINY, after, at_home, metrics, same, state, toy  # noqa: F401

MODEL = f"config:{TINY}"
OFF = {"kind": "adapters_off", "model": MODEL}
LORA = {"start": "teacher", "surgery": [{"kind": "lora", "rank": 4}]}
BOTH = {"objective": ["forward_kl", "cross_entropy"]}
NAMES = ("logits", "label", "hidden.1", "query.2")


def student(**fields: Any) -> Role:
    """A small model with adapters that are no longer what they were."""
    role = Lora(rank=4, **fields)(fresh())
    move(role)
    return role


def say(role: Role) -> dict[str, Any]:
    return {name: dense(x) for name, x in role.says(role.view(rows().train), NAMES, {}).items()}


def test_it_says_to_the_last_bit_what_the_student_said_before_it_had_adapters():
    role = student()
    with torch.no_grad():
        before, off, on = say(fresh()), say(AdaptersOff.example().beside(fresh(), Models({"student": role}))), say(role)
    assert all(torch.equal(before[name], off[name]) for name in NAMES)
    assert not torch.equal(before["logits"], on["logits"])


def kept(role: Role) -> tuple[Any, ...]:
    """What listening to its teacher may not change in a student."""
    layers = adapted(role.module).values()
    return [m.training for m in role.modules()], [p.requires_grad for p in role.parameters()], [layer.disable_adapters for layer in layers]


def dropping() -> Role:
    """A small model whose blocks leave something out while they are trained: GPT-2's do, a tenth."""
    return family_of("gpt2", 0, torch.float32)


@pytest.mark.parametrize("fails", [False, True])
def test_the_student_is_left_as_it_was_even_where_it_fails(fails, monkeypatch):
    models = Models({"student": Lora(rank=4, dropout=0.5)(dropping())})
    models["teacher"] = AdaptersOff.example().beside(dropping(), models)
    batch = models.batch(rows().train)
    with models.turn("student", freeze=["*.h.0.*"]):
        before, norm = kept(models["student"]), models["student"].module.get_submodule("transformer.ln_f")
        assert models["student"].training and any(before[1]) and not all(p.requires_grad for n, p in models.named_parameters() if "lora" in n)
        if fails:
            monkeypatch.setattr(norm, "forward", lambda x: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                models.says("teacher", batch, ("logits",))
        else:
            said = models.says("teacher", batch, ("logits",))["logits"]
            assert not said.learns and not said.hidden.requires_grad
            with torch.no_grad():
                assert torch.equal(said.hidden, dropping().says(batch.view("student"), ("logits",), {})["logits"].hidden), "dropout, or adapters"
        assert kept(models["student"]) == before
    assert list(models["teacher"].parameters()) == [] and all(p.data_ptr() for p in models["student"].parameters())


def test_a_head_that_has_adapters_too_is_asked_without_them_though_it_runs_later():
    peft = pytest.importorskip("peft")
    module: Any = copy.deepcopy(family_of("llama", 0, torch.float32).module)
    held = given(peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=["lm_head", "q_proj"]), module), tokenizer=fresh().tokenizer)
    move(held)
    with torch.no_grad():
        before, off, on = say(family_of("llama", 0, torch.float32)), say(WithoutAdapters(held)), say(held)
    assert torch.equal(off["logits"], before["logits"]) and not torch.equal(on["logits"], before["logits"])


def test_training_ends_bit_for_bit_as_with_the_live_teacher(tmp_path):
    off = toy(tmp_path, BOTH, teacher=OFF, student=LORA, baseline=["text_only"], evaluate=["agreement"])
    ours, live = run(off), run({**off, "teacher": MODEL})
    assert same(state(ours.path), state(live.path)) and not same(state(ours.path), state(ours.path, "student"))
    assert metrics(ours.path) == metrics(live.path) and same(state(ours.path, arm="text_only"), state(live.path, arm="text_only"))
    assert ours.summary["student"] == live.summary["student"] and ours.summary["baseline"] == live.summary["baseline"]
    stopped = run(off, stop=after(2), runs=tmp_path / "again")
    assert same(state(resume(stopped.path).path), state(ours.path)), "resumed, it ends elsewhere"


def test_the_model_it_starts_from_is_in_memory_once(tmp_path):
    cast = Cast(load(toy(tmp_path, teacher=OFF, student=LORA)), Cache())
    models = cast.models()
    weights = {p.data_ptr() for p in cast.originals["teacher"].parameters()}
    ours = {p.data_ptr(): p for name, p in models.named_parameters()}
    assert weights <= ours.keys()
    assert {n for n, p in models.named_parameters() if p.data_ptr() not in weights} == {n for n, _ in models.named_parameters() if "lora_" in n}
    alone = Cast(load(toy(tmp_path, teacher=MODEL)), Cache())
    assert not {p.data_ptr() for p in alone.models()["student"].parameters()} & {p.data_ptr() for p in alone.originals["teacher"].parameters()}


@pytest.mark.parametrize(
    "keys, words",
    [
        ({"student": {"start": "teacher"}}, "a student with adapters"),
        ({"student": {**LORA, "start": f"path:{TINY.parent}"}}, "adapters_off is the student in another form"),
    ],
)
def test_a_student_without_adapters_or_from_elsewhere_is_refused_before_training(keys, words, tmp_path):
    recipe = toy(tmp_path, teacher=OFF, **keys)
    for act in (lambda: plan(recipe, probe=False), lambda: run(recipe)):
        with pytest.raises(Refused) as caught:
            act()
        assert words in caught.value.expected and caught.value.code == 2


def test_a_plan_counts_no_second_copy_of_the_weights(tmp_path):
    off, live = (plan(toy(tmp_path, teacher=teacher, student=LORA), probe=False) for teacher in (OFF, MODEL))
    ours, theirs = (found.roles["teacher"][1] for found in (off, live))
    assert ours.weight_bytes == 0 and theirs.forward_flops <= ours.forward_flops < 1.05 * theirs.forward_flops  # adapters are counted with it
    whole = plan(toy(tmp_path, teacher=MODEL, student={"start": "teacher"}), probe=False)
    trained = {name: found.roles["student"][1].trained_bytes for name, found in (("off", off), ("whole", whole))}
    assert 0 < trained["off"] < trained["whole"] / 10


def test_a_module_of_peft_that_a_user_holds_is_its_own_teacher():
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    base = copy.deepcopy(module)
    held = peft.get_peft_model(module, peft.LoraConfig(r=2, target_modules=["0"], modules_to_save=["2"]))
    role = given(held)
    loader = [(torch.randn(8, 4), torch.randint(3, (8,))) for _ in range(3)]
    before = {name: p.clone() for name, p in held.named_parameters()}
    limbeck.distill(WithoutAdapters(role), role, loader, objective=["forward_kl", "cross_entropy"], steps=6, optimiser={"lr": 1e-2})
    moved = {name for name, p in held.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if "lora_" in name or "modules_to_save" in name}, "adapters, and they alone, learn"
    x = loader[0][0]
    with torch.no_grad():
        off = WithoutAdapters(role).says(View({"features": x}), ("logits",), {})["logits"]
        assert torch.equal(off, base(x)) and not torch.equal(held(x), base(x))
