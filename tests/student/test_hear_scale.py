"""Denoisers that are told the scale of guidance: against diffusers, before and after learning, in forwards, samplers and files."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from limbeck.check.models import classifier, denoiser, points
from limbeck.errors import Refused
from limbeck.evaluate.samples import Samples
from limbeck.export.base import Parcel
from limbeck.export.safetensors import Safetensors
from limbeck.forward.consistency import Consistency
from limbeck.guidance import Guidance
from limbeck.model.base import Models, clone
from limbeck.model.denoiser import Denoiser
from limbeck.model.denoising import sampled
from limbeck.model.from_diffusers import ExpertsFile, build
from limbeck.model.heard_scale import embedded, of_time, told
from limbeck.model.opening import open_meta, open_pretrained
from limbeck.model.role import as_role
from limbeck.noise.rectified_flow import RectifiedFlow
from limbeck.numerics import Streams
from limbeck.signals import Signals, View
from limbeck.student.hear_scale import HearScale
from limbeck.student.lora import Lora
from limbeck.student.noise_experts import NoiseExperts
from limbeck.teacher.ema import EMA
from limbeck.train.loop import Loop, World
from limbeck.train.optimiser import Optimiser
from limbeck.train.stage import Stage, Turn

UNET = {"sample_size": 8, "in_channels": 1, "out_channels": 1, "layers_per_block": 1, "block_out_channels": [8, 16], "norm_num_groups": 4,
        "down_block_types": ["DownBlock2D", "DownBlock2D"], "up_block_types": ["UpBlock2D", "UpBlock2D"]}  # fmt: skip
LEARN = {"kind": "denoising", "signal": "denoised", "against": "teacher"}
GUIDED = Guidance(scale=(0.5, 2.0), convention="extra")


def unet() -> Denoiser:
    pytest.importorskip("diffusers")
    noise = RectifiedFlow().model_dump(mode="json")
    return Denoiser(build({"denoiser": "unet_2d", "num_classes": 4, "noise": noise, "model_args": UNET}, "test")).eval()


def says(role: Any, scale: float | None = None, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    first = next(role.parameters())
    sample = torch.randn(4, *(8 if axis is None else axis for axis in role.shape), generator=draw).to(first)
    inputs = {"sample": sample, "time": torch.tensor([0.1, 0.4, 0.7, 1.0]), "label": torch.arange(4)}
    inputs |= {} if scale is None else {"guidance_scale": torch.full((4,), scale)}
    with torch.no_grad():
        return role.says(View(inputs), ("velocity",), {})["velocity"]


def moved(role: Any) -> Any:
    """With a projection that is no longer zero."""
    owner: Any = of_time(role.module, "test")[0]
    with torch.no_grad():
        owner.cond_proj.weight.copy_(torch.randn(owner.cond_proj.weight.shape, generator=torch.Generator().manual_seed(3)))
    return role


@pytest.mark.parametrize("dim", [256, 33, 2])
def test_the_scale_is_embedded_as_in_the_pipeline_of_diffusers(dim: int) -> None:
    pipelines = pytest.importorskip("diffusers.pipelines.latent_consistency_models.pipeline_latent_consistency_text2img")
    scale = torch.tensor([0.0, 0.5, 2.0, 7.5])
    theirs = pipelines.LatentConsistencyModelPipeline.get_guidance_scale_embedding(None, scale, embedding_dim=max(dim, 4))
    assert torch.allclose(embedded(scale, max(dim, 4)), theirs, atol=2e-3)  # the frequencies, in float32, are multiplied by up to 7,500
    assert embedded(scale, dim).shape == (4, dim) and bool(embedded(scale, dim).isfinite().all())


def test_a_network_hears_it_where_the_conditional_u_net_of_diffusers_does() -> None:
    diffusers = pytest.importorskip("diffusers")
    sizes = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4, "sample_size": 8, "in_channels": 1, "out_channels": 1}
    blocks = {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D")}
    network = diffusers.UNet2DConditionModel(**sizes, **blocks, cross_attention_dim=8, attention_head_dim=4, time_cond_proj_dim=16).eval()
    heard: Any = (torch.randn(2, 1, 8, 8), torch.tensor([5, 700]), torch.randn(2, 3, 8))
    scale = torch.tensor([1.0, 6.5])
    with torch.no_grad():
        theirs, plain = network(*heard, timestep_cond=embedded(scale, 16)).sample, network(*heard).sample
        with told(network, scale):
            ours = network(*heard).sample
        assert torch.allclose(ours, theirs, atol=1e-6) and (theirs - plain).abs().max() > 1e-4
        assert torch.equal(network(*heard).sample, plain)  # nothing is left behind


@pytest.mark.parametrize("make", [unet, denoiser], ids=["unet", "perceptron"])
def test_it_says_what_the_teacher_says_until_it_has_learned(make: Any) -> None:
    teacher = make()
    student = HearScale(dim=16)(clone(teacher))
    for scale in (None, 0.0, 2.0):
        assert torch.equal(says(student, scale), says(teacher))
    assert student.parametrisation.scale_dim == 16 and teacher.parametrisation.scale_dim is None
    assert torch.equal(says(teacher, 2.0), says(teacher))  # who hears no scale is not disturbed by one
    assert (says(moved(student), 2.0) - says(student, 0.5)).abs().max() > 1e-3


def test_two_scales_are_two_samples_after_a_step_of_learning() -> None:
    student = HearScale(dim=16)(clone(denoiser()))
    models = Models({"student": student, "solver": denoiser()})
    teacher = EMA(model="config:student", decay=0.5)
    models["teacher"] = teacher.beside(student, models)
    forward = Consistency(rungs=10, guidance=GUIDED, target="teacher", solver="solver")
    turn = Turn(forward=forward, objective=(LEARN,), batch=8, optimiser=Optimiser(lr=1e-2))  # type: ignore[arg-type]
    Loop(Stage(steps=1, turn=(turn,)), World(models, points(), teacher=teacher, streams=Streams(0))).run()
    assert (says(student, 0.5) - says(student, 2.0)).abs().max() > 1e-4
    mean: Any = models["teacher"]
    half = 0.5 * student.module.cond_proj.weight  # type: ignore[union-attr,operator]
    assert torch.allclose(mean.module.cond_proj.weight, half.to(mean.module.cond_proj.weight), atol=1e-7)  # the projection is in the mean too


class Recorded:
    """Listens as the loop does, and keeps what each role was shown."""

    def __init__(self, models: Models):
        self.models, self.shown = models, []  # type: ignore[var-annotated]

    def noise(self, role: str) -> Any:
        return self.models[role].parametrisation.noise

    def says(self, role: str, batch: Any, names: Any, inject: Any = {}) -> Signals:
        view = batch.view(role)
        self.shown.append((role, view.inputs.get("time"), view.inputs.get("label"), view.inputs.get("guidance_scale")))
        return batch.signals(role, self.models[role].says(view, tuple(names), {}))


@pytest.mark.parametrize("guidance", [GUIDED, Guidance(scale=(1.5, 3.0), convention="cfg"), None])
def test_student_and_target_are_told_the_scale_that_the_teacher_is_guided_by(guidance: Guidance | None) -> None:
    models = Models({"student": HearScale(dim=16)(clone(denoiser())), "teacher": denoiser(1)})
    listen, forward = Recorded(models), Consistency(rungs=10, guidance=guidance)
    drawn = forward.draw(models.batch(points().train[:6]), Streams(0), (0, 0, 0))
    forward(listen, drawn, {"student": ("denoised",), "teacher": ("denoised",)})  # type: ignore[arg-type]
    asked = [(role, scale) for role, time, _, scale in listen.shown if time is not None]
    assert [role for role, _ in asked] == (["student", "teacher", "teacher", "student"] if guidance else ["student", "teacher", "student"])
    share = drawn.view("student").inputs["time_draw"][:, 1]
    expected = 0.5 + 1.5 * share if guidance else 0 * share  # both conventions: scale (cfg) is 1 + scale (extra)
    for role, scale in asked:
        assert scale is None if role == "teacher" else torch.allclose(scale, expected, atol=1e-6)


def test_samplers_tell_it_and_ask_once_where_others_are_asked_twice() -> None:
    student, noise = moved(HearScale(dim=16)(clone(denoiser(dtype=torch.float32)))), RectifiedFlow()
    start, label = torch.randn(4, 2, generator=torch.Generator().manual_seed(0)), torch.arange(4)
    calls: list[int] = []
    hook = student.module.register_forward_hook(lambda *_: calls.append(1))
    one, other = (sampled(student, start, noise.grid(2), label, factor) for factor in (1.5, 3.0))
    hook.remove()
    assert len(calls) == 4 and (one - other).abs().max() > 1e-3
    time = torch.ones(4)
    view = View({"sample": start, "time": time, "label": label, "guidance_scale": torch.full((4,), 2.0)})
    with torch.no_grad():
        said = student.says(view, ("denoised", "epsilon"), {})
        half = torch.full((4,), 0.5)
        view = View({**view.inputs, "sample": noise.noised(said["denoised"], said["epsilon"], half), "time": half})
        assert torch.allclose(other, student.says(view, ("denoised",), {})["denoised"], atol=1e-6)  # the factor 3 is the scale 2


def test_an_evaluation_tells_the_middle_of_the_scales() -> None:
    for told_, expected in ((True, 2.25), (False, 1.0)):
        assert Samples(guidance=GUIDED).factor("student", told_) == expected
    assert Samples().factor("student", True) == 1.0


@pytest.mark.parametrize("make", [unet, lambda: denoiser(dtype=torch.float32)], ids=["unet", "perceptron"])
def test_it_is_written_and_opened_with_its_projection(make: Any, tmp_path: Path) -> None:
    student = moved(HearScale(dim=16)(make()))
    checks = Safetensors()(Parcel(student, tmp_path, {}, ()))
    assert not any(check["open"] for check in checks)
    again: Any = as_role(open_pretrained(f"path:{tmp_path}"))
    assert again.parametrisation == student.parametrisation
    assert torch.equal(says(again, 1.5), says(student, 1.5)) and (says(again, 1.5) - says(again)).abs().max() > 1e-3
    assert of_time(open_meta(f"path:{tmp_path}")[0], "test")[0].cond_proj.weight.is_meta  # type: ignore[union-attr]


def test_what_cannot_hear_it_is_refused() -> None:
    pytest.importorskip("peft")
    for role, got in ((classifier(), "ViT"), (Lora(rank=2)(denoiser()), "adapters"), (NoiseExperts()(denoiser()), "experts")):
        with pytest.raises(Refused, match=got):
            HearScale()(role)
    hears = HearScale(dim=16)(denoiser())
    for surgery in (HearScale(), NoiseExperts()):
        with pytest.raises(Refused, match="16 waves"):
            surgery(copy.deepcopy(hears))
    ring = {"denoiser": "gaussian_mixture", "ring": {"modes": 4}, "scale_dim": 16}
    with pytest.raises(Refused, match="embeds the time"):
        build(ring, "ring.json")
    with pytest.raises(ValidationError, match="experts hear no scale"):
        ExpertsFile(denoiser="experts", num=2, rungs=4, scale_dim=16, each={"denoiser": "mlp"})
