"""Scales of rounded weights that are measured once, or learn: what they are, that they stay or move, and that the export has them."""

import pytest
import torch
from pydantic import ValidationError

from limbeck.check.models import move
from limbeck.export.base import Parcel
from limbeck.export.packed import Packed
from limbeck.model.adapters import merged
from limbeck.model.base import Role, clone
from limbeck.model.opening import open_pretrained
from limbeck.model.packed import tensors_of
from limbeck.model.quantised import by_rows, latent
from limbeck.start import resume, run
from limbeck.student.quantize import Quantize
from toy import after, at_home, state, toy  # noqa: F401

FORMATS = ("nvfp4", "fp8", "int8", "int4")
KEPT = ("frozen", "learned")
Q = "model.layers.1.self_attn.q_proj"


@pytest.fixture
def rounded(tiny):
    """Makes a small model, and rounds it."""

    def make(family: str = "llama", **fields) -> Role:
        return Quantize(**fields)(tiny(family)).eval()

    return make


@pytest.mark.parametrize("scales", KEPT)
@pytest.mark.parametrize("weights", FORMATS)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_at_the_beginning_they_are_what_would_be_measured(family, weights, scales, rounded, logits):
    role = rounded(family, weights=weights, scales=scales)
    assert torch.equal(logits(role), logits(rounded(family, weights=weights)))
    for layer in latent(role.module).values():
        rows = by_rows(layer).detach().contiguous()
        size = {"nvfp4": 16, "int4": rows.numel() // layer.weight_amax.numel()}.get(weights, rows.shape[1])
        groups = rows.unflatten(-1, (-1, size)).abs().amax(-1)
        assert torch.equal(layer.weight_amax, groups.max()[None] if (weights, scales) == ("nvfp4", "frozen") else groups)


@pytest.mark.parametrize("weights", FORMATS)
def test_frozen_ones_stay_where_measured_ones_follow(weights, rounded, logits):
    frozen, measured = rounded(weights=weights, scales="frozen"), rounded(weights=weights)
    before = {name: layer.weight_amax.clone() for name, layer in latent(frozen.module).items()}
    for role in (frozen, measured):
        move(role)
    assert all(torch.equal(layer.weight_amax, before[name]) for name, layer in latent(frozen.module).items())
    assert not torch.equal(logits(frozen), logits(measured))
    layer = latent(frozen.module)[Q]
    most = float(before[Q].max())
    assert by_rows(layer).abs().max().item() > 1.2 * most and layer.rounded().abs().max().item() < 1.08 * most


@pytest.mark.parametrize("weights", FORMATS)
def test_learned_ones_get_a_gradient_that_lowers_the_loss(weights, rounded, ids):
    role = rounded(weights=weights, scales="learned")
    growth = {name: p for name, p in role.module.named_parameters() if name.endswith("weight_growth")}
    assert len(growth) == 28 and all(p.ndim == 1 and not p.any() for p in growth.values()), "vectors: weight decay passes them over"
    layer = latent(role.module)[Q]
    with torch.no_grad():
        layer.weight_growth -= 1.5  # much too narrow: most numbers are clipped
    layer.weight_growth.requires_grad_(True)
    exact, errors = layer.weight.detach(), []
    for _ in range(8):
        loss = (layer.rounded() - exact).square().sum()
        layer.weight_growth.grad = None
        loss.backward()
        errors.append(loss.item())
        with torch.no_grad():
            layer.weight_growth -= 0.2 * layer.weight_growth.grad.sign()
    assert errors[-1] < 0.5 * errors[0]


@pytest.mark.parametrize("scales", KEPT)
@pytest.mark.parametrize("weights", FORMATS)
def test_the_export_is_what_was_trained(weights, scales, rounded, logits, tmp_path):
    role = rounded(weights=weights, scales=scales)
    move(role)  # weights, and growth where there is one
    said = logits(role)
    assert torch.equal(logits(merged(role)), said)
    names = merged(role).module.state_dict().keys()
    assert not any("amax" in name or "growth" in name for name in names), "a stock class has no place for them"
    layer = latent(role.module)[Q]
    assert torch.equal(layer.weights.decode(layer.codes(), layer.weight.dtype), layer.rounded())
    known_wrong = layer.weights.encode(by_rows(layer).detach())
    assert not all(torch.equal(a, b) for a, b in zip(layer.codes().tensors, known_wrong.tensors, strict=True)), "measured for the export they differ"
    told = Packed()(Parcel(role, tmp_path, {}, ()))
    assert [check["open"] for check in told] == [False, False]
    again = open_pretrained(f"path:{tmp_path}", dtype="auto").module
    again.set_attn_implementation(role.module.config._attn_implementation)
    assert torch.equal(again.get_submodule(Q).weight, layer.rounded().to(again.dtype)) and tensors_of(layer).keys() >= {"weight_scale"}


def test_a_group_of_zeros_can_leave_them(tiny):
    role = tiny("llama")
    with torch.no_grad():
        role.module.get_submodule(Q).weight[0].zero_()
        role.module.get_submodule("model.layers.0.self_attn.q_proj").weight.zero_()
    for scales in KEPT:
        layers = latent(Quantize(weights="int8", scales=scales)(clone(role)).module)
        amax = layers[Q].weight_amax
        assert amax[0].item() == pytest.approx(float(amax[1:].sum() / len(amax))) and not layers[Q].rounded()[0].any()
        assert (layers["model.layers.0.self_attn.q_proj"].weight_amax == 1).all()


def test_signs_have_a_mean_that_follows_their_weights():
    with pytest.raises(ValidationError, match="scales: measured, for binary"):
        Quantize(weights="binary", scales="frozen")


@pytest.mark.parametrize("scales", KEPT)
def test_a_stage_measures_what_an_earlier_one_has_trained_and_keeps_it_over_a_stop(scales, tmp_path):
    surgery = [{"kind": "quantize", "weights": "int8", "scales": scales}]
    stages = [
        {"name": "exact", "steps": 1, "batch": 2, "objective": ["cross_entropy"], "optimiser": {"lr": 1e-2}},
        {"name": "rounded", "steps": 2, "batch": 2, "objective": ["forward_kl"], "surgery": surgery, "checkpoint": {"every": 1}},
    ]
    recipe = toy(tmp_path, student={"start": "teacher"}, train=stages, export=["packed"], evaluate=[])
    done = resume(run(recipe, stop=after(2)).path)
    start, end = state(done.path, "exact"), state(done.path, "rounded")
    assert torch.equal(end[f"{Q}.weight_amax"], start[f"{Q}.weight"].abs().amax(-1, keepdim=True))
    assert not torch.equal(start[f"{Q}.weight"], state(done.path, "student")[f"{Q}.weight"]), "of the model before, they would be others"
    assert f"{Q}.weight_growth" in end and end[f"{Q}.weight_growth"].any() if scales == "learned" else f"{Q}.weight_growth" not in end
    assert "28 of 28 rounded layers" in done.summary["checks"][0]["result"]
