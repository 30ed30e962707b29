"""Text-to-image pipelines: what diffusers says of latents and captions is what is said here, and what is written opens there."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from limbeck.align.base import Aligned
from limbeck.check.models import move
from limbeck.errors import Failed, Refused
from limbeck.evaluate.samples import Samples
from limbeck.export.base import Parcel
from limbeck.export.safetensors import Safetensors
from limbeck.forward.consistency import Consistency
from limbeck.forward.noised import Noised
from limbeck.guidance import Guidance
from limbeck.model.base import Models, clone
from limbeck.model.denoiser import NO_LABEL
from limbeck.model.denoising import denoise, sampled
from limbeck.model.from_diffusers import OWN
from limbeck.model.latents import Latents
from limbeck.model.opening import open_meta, open_pretrained
from limbeck.model.reference import Reference, identity
from limbeck.model.role import as_role
from limbeck.noise.vp import VP
from limbeck.numerics import Streams
from limbeck.objective.denoising import Denoising
from limbeck.recipe import SHIPPED
from limbeck.signals import Row, View
from limbeck.student.lora import Lora
from limbeck.student.noise_experts import NoiseExperts
from tiny_pipeline import PLACES, SD, WIDTH, saved

diffusers = pytest.importorskip("diffusers")
CAPTIONS = ("a red dog", "two blue cups", "snow")
LONG = "a very long caption of a picture"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("tiny") / "pipeline")


@pytest.fixture(scope="module")
def role(folder: Path) -> Latents:
    made = as_role(open_pretrained(f"path:{folder}"))
    assert isinstance(made, Latents)
    return made


@pytest.fixture
def pipe(folder: Path) -> Any:
    made = diffusers.StableDiffusionPipeline.from_pretrained(folder)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def written(role: Latents, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("written")
    Safetensors()(Parcel(role, made, {}, ()))
    return made


@pytest.fixture
def copy(written: Path, tmp_path: Path) -> Path:
    return shutil.copytree(written, tmp_path / "copy")


def rows(num: int = 3, side: int = 32) -> list[Row]:
    draw = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (num, 3, side, side), generator=draw, dtype=torch.uint8)
    return [Row(f"r{i}", {"pixels": pixels[i], "text": CAPTIONS[i % 3]}) for i in range(num)]


def codes(num: int = 3) -> Tensor:
    return torch.randn(num, 4, 8, 8, generator=torch.Generator().manual_seed(2))


def states(pipe: Any, captions: Any) -> Tensor:
    """Of captions, by the pipeline."""
    with torch.no_grad():
        return pipe.encode_prompt(list(captions), "cpu", 1, False)[0]


@torch.no_grad()
def says(role: Any, view: View, sample: Tensor, time: float, **more: Tensor) -> Tensor:
    inputs = {**view.inputs, "sample": sample, "time": torch.full((len(sample),), time), **more}
    return role.says(View(inputs), ("epsilon",), {})["epsilon"]


# what is heard and said


def test_a_prediction_is_that_of_the_network_called_by_hand(role: Latents, pipe: Any) -> None:
    assert role.parametrisation.noise == VP(betas="scaled_linear", start=0.00085, end=0.012) and role.parametrisation.predicts == "epsilon"
    view = role.view(rows())
    with torch.no_grad():
        expected = pipe.unet(codes(), 500, encoder_hidden_states=states(pipe, CAPTIONS)).sample
        other = pipe.unet(codes(), 500, encoder_hidden_states=states(pipe, ("", *CAPTIONS[1:]))).sample
    assert (says(role, view, codes(), 500.0) - expected).abs().max() < 1e-5
    assert (other - expected).abs().max() > 1e-3  # captions are heard


def test_an_image_is_the_mean_of_its_code_moved_and_scaled(role: Latents, pipe: Any) -> None:
    view = role.view(rows())
    pixels = torch.stack([row.content["pixels"] for row in rows()]).float() / 127.5 - 1
    with torch.no_grad():
        mean = pipe.vae.encode(pixels).latent_dist.mean
        assert (view.inputs["clean"] - (mean - 0.25) * 0.5).abs().max() < 1e-5  # shift_factor and scaling_factor of the folder
        assert (role.pictured(view.inputs["clean"]) - pipe.vae.decode(mean).sample).abs().max() < 1e-4
    assert role.pictured(view.inputs["clean"]).shape == (3, 3, 32, 32)


def test_a_row_is_encoded_once_and_alone(role: Latents, monkeypatch: pytest.MonkeyPatch) -> None:
    three, asked = role.view(rows()), []
    monkeypatch.setattr(role.encoders.vae, "encode", lambda *_, **__: asked.append("image"))
    monkeypatch.setattr(role.encoders.text_encoder, "forward", lambda *_, **__: asked.append("caption"))
    one = clone(role).view(rows()[1:2])  # copies share what was said
    assert torch.equal(one.inputs["clean"][0], three.inputs["clean"][1]) and torch.equal(one.inputs["caption"][0], three.inputs["caption"][1])
    assert not asked


def test_without_a_condition_the_empty_caption_is_heard(role: Latents, pipe: Any) -> None:
    view, label = role.view(rows()), torch.tensor([0, NO_LABEL, 0])
    with torch.no_grad():
        expected = pipe.unet(codes(), 300, encoder_hidden_states=states(pipe, (CAPTIONS[0], "", CAPTIONS[2]))).sample
    assert (says(role, view, codes(), 300.0, label=label) - expected).abs().max() < 1e-5
    alone = role.says(View({"sample": codes(), "time": torch.full((3,), 300.0)}), ("epsilon",), {})["epsilon"]
    assert (alone[1] - expected[1]).abs().max() < 1e-5


def test_guidance_is_the_formula_of_the_pipeline(role: Latents, pipe: Any) -> None:
    view, scale, time = role.view(rows()), 7.5, torch.full((3,), 700.0)
    with torch.no_grad():
        both = pipe.unet(codes().repeat(2, 1, 1, 1), 700, encoder_hidden_states=torch.cat([states(pipe, [""] * 3), states(pipe, CAPTIONS)])).sample
        without, with_caption = both.chunk(2)
        _, epsilon = denoise(role, codes(), time, view.inputs["label"], scale, {"caption": view.inputs["caption"]})
    assert (epsilon - (without + scale * (with_caption - without))).abs().max() < 1e-4


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_a_few_steps_are_those_of_the_pipeline_with_ddim(role: Latents, pipe: Any, scale: float) -> None:
    pipe.scheduler = diffusers.DDIMScheduler(**SD, clip_sample=False, timestep_spacing="trailing", steps_offset=1)
    theirs = pipe(list(CAPTIONS), num_inference_steps=4, guidance_scale=scale, latents=codes(), output_type="latent", height=32, width=32).images
    inputs = role.view(rows()).inputs
    ours = sampled(role, codes(), role.parametrisation.noise.grid(4), inputs["label"], scale, more={"caption": inputs["caption"]})
    assert (ours - theirs).abs().max() < 1e-4
    images = pipe(list(CAPTIONS), num_inference_steps=4, guidance_scale=scale, latents=codes(), output_type="pt", height=32, width=32).images
    seen = role.pictured(ours - 0.25 * 0.5)  # this pipeline leaves shift_factor out as it decodes
    assert ((seen / 2 + 0.5).clamp(0, 1) - images).abs().max() < 1e-3


def test_a_long_caption_is_cut_where_diffusers_cuts_it_and_counted(folder: Path, pipe: Any) -> None:
    role: Any = as_role(open_pretrained(f"path:{folder}"))
    row = Row("a", {**rows()[0].content, "text": LONG})
    view = role.view([row, rows()[1]])
    assert view.inputs["caption"].shape == (2, PLACES, WIDTH) and len(LONG) > PLACES
    assert (view.inputs["caption"][0] - states(pipe, [LONG])[0]).abs().max() < 1e-5
    assert torch.equal(view.inputs["caption"][0], role.encoders.heard(LONG[:40]))  # only its first letters are heard
    role.refuse([row] * 2)
    assert role.cuts() == (f"captions: 1 of more than {PLACES} tokens, which are cut there",)


def test_what_encoders_say_is_not_rounded_where_the_network_is(folder: Path, role: Latents) -> None:
    lower = as_role(open_pretrained(f"path:{folder}", dtype="bfloat16"))
    assert isinstance(lower, Latents) and lower.module.dtype == torch.bfloat16
    exact = role.view(rows()).inputs
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inputs = lower.view(rows()).inputs
        empty = lower.encoders.heard("")
    assert all(torch.equal(inputs[name], exact[name]) for name in ("clean", "caption")) and torch.equal(empty, role.encoders.heard(""))
    said, expected = (says(one, View(exact), codes(), 500.0).float() for one in (lower, role))
    assert 0 < (said - expected).abs().max() < 0.1 * expected.abs().max()


# learning


def test_encoders_are_no_part_of_what_learns(role: Latents) -> None:
    student = clone(role)
    models = Models({"student": student, "teacher": role})
    with models.turn("student"):
        learning = [name for name, p in models.named_parameters() if p.requires_grad]
    assert len(learning) == len(list(student.module.parameters())) and not any("vae" in name or "text" in name for name in learning)
    assert not any(p.requires_grad for part in (role.encoders.vae, role.encoders.text_encoder) for p in part.parameters())
    assert student.encoders is role.encoders and student.module.conv_in.weight is not role.module.conv_in.weight  # type: ignore[union-attr]


def test_teacher_and_student_of_two_openings_see_one_view(role: Latents, folder: Path) -> None:
    models = Models({"student": as_role(open_pretrained(f"path:{folder}")), "teacher": role})
    assert list(models.batch(rows()).views) == ["student"]


def test_dropped_captions_are_the_empty_one(role: Latents, pipe: Any) -> None:
    models, forward = Models({"student": clone(role)}), Noised(drop_label=0.5)
    forward.suits(models, "train.0")
    batch = forward.draw(models.batch(rows(12)), Streams(0), (0, 0, 0))
    label = batch.view("student").inputs["label"]
    assert 0 < int((label == NO_LABEL).sum()) < 12
    said = forward(Aligned(models, ()), batch, {"student": ("epsilon", "noise", "time", "clean")})["student"]
    noisy = VP(**{"betas": "scaled_linear", "start": 0.00085, "end": 0.012}).noised(said["clean"], said["noise"], said["time"])
    heard = states(pipe, ["" if label[i] < 0 else CAPTIONS[i % 3] for i in range(12)])
    with torch.no_grad():
        expected = pipe.unet(noisy, said["time"], encoder_hidden_states=heard).sample
    assert (said["epsilon"] - expected).abs().max() < 1e-4


def test_the_step_of_a_teacher_is_guided_by_the_empty_caption(role: Latents, pipe: Any) -> None:
    """The target of a consistency step, by the network of diffusers and the formulas of the schedule."""
    models = Models({"student": clone(role), "teacher": role})
    forward = Consistency(rungs=10, guidance=Guidance(scale=6.0, convention="extra"))
    forward.suits(models, "train.0")
    batch = forward.draw(models.batch(rows()), Streams(0), (0, 0, 0))
    said, inputs = forward(Aligned(models, ()), batch, {"student": ("denoised",), "teacher": ("denoised",)}), batch.view("student").inputs
    bar = torch.from_numpy(diffusers.DDPMScheduler(**SD).alphas_cumprod.double().numpy())

    @torch.no_grad()
    def of(x: Tensor, t: int, captions: list[str]) -> tuple[Tensor, Tensor]:
        eps = pipe.unet(x.float(), t, encoder_hidden_states=states(pipe, captions)).sample.double()
        return (x - (1 - bar[t]).sqrt() * eps) / bar[t].sqrt(), eps

    for i in range(3):
        t = 999 - 100 * int(inputs["time_draw"][i, 0] * 10)
        then = max(t - 100, 0)
        z = bar[t].sqrt() * inputs["clean"][i : i + 1] + (1 - bar[t]).sqrt() * inputs["noise"][i : i + 1].double()
        (clean, eps), (clean0, eps0) = of(z, t, [CAPTIONS[i]]), of(z, t, [""])
        clean, eps = clean + 6 * (clean - clean0), eps + 6 * (eps - eps0)
        nearer, s = bar[then].sqrt() * clean + (1 - bar[then]).sqrt() * eps, 10.0 * then
        target = 0.25 / (s**2 + 0.25) * nearer + s / (s**2 + 0.25) ** 0.5 * of(nearer, then, [CAPTIONS[i]])[0]
        assert (said["teacher"]["denoised"][i] - target[0]).abs().max() < 1e-3 * (1 + target.abs().max())


# handing back


def test_an_adapter_of_one_step_says_in_diffusers_what_the_student_says(role: Latents, pipe: Any, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    student: Any = Lora(rank=4, alpha=2.0)(clone(role, role.parameters()))
    models = Models({"student": student, "teacher": role})
    forward, objective = Consistency(rungs=10), Denoising(signal="denoised", against="teacher", huber=0.001)
    with models.turn("student"):
        batch = forward.draw(models.batch(rows()), Streams(0), (0, 0, 0))
        said = forward(Aligned(models, ()), batch, objective.needs)
        objective({"student": said["student"], "teacher": said["teacher"]}).total.backward()
        learning = [p for p in student.module.parameters() if p.requires_grad]
        with torch.no_grad():
            for p in learning:
                assert p.grad is not None
                p -= 0.5 * p.grad
    move(student, 1)  # after one step the first matrices have not moved yet
    checks = Safetensors()(Parcel(student, tmp_path, {}, ()))
    assert not any(check["open"] for check in checks)
    view, asked = student.view(rows()), {"encoder_hidden_states": states(pipe, CAPTIONS)}
    ours, before = says(student, view, codes(), 400.0), says(role, view, codes(), 400.0)
    assert (ours - before).abs().max() > 1e-2
    whole = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path)
    pipe.load_lora_weights(str(tmp_path / "adapter"))
    for network in (whole.unet, pipe.unet):
        with torch.no_grad():
            assert (network(codes(), 400, **asked).sample - ours).abs().max() < 1e-4
    assert torch.equal(whole.vae.encoder.conv_in.weight, role.encoders.vae.encoder.conv_in.weight)
    card = (tmp_path / "README.md").read_text()
    assert "library_name: diffusers" in card and "load_lora_weights" in card


def test_what_is_written_opens_as_it_was_trained(role: Latents, written: Path) -> None:
    again: Any = as_role(open_pretrained(f"path:{written}"))
    assert again.parametrisation == role.parametrisation and again.reads_as[0] == "latents"
    view = again.view(rows())
    assert torch.equal(says(again, view, codes(), 9.0), says(role, role.view(rows()), codes(), 9.0))
    steps = diffusers.StableDiffusionPipeline.from_pretrained(written).scheduler
    steps.set_timesteps(4)
    assert steps.timesteps.tolist() == role.parametrisation.noise.grid(4)[:-1].tolist()


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "scheduler"])
def test_another_part_is_another_model(written: Path, copy: Path, part: str) -> None:
    first, second = (Reference.parse(f"path:{place}") for place in (written, copy))
    assert identity(first) == identity(second)
    config = next((copy / part).glob("*config.json"))
    config.write_text(config.read_text() + " ")
    assert identity(first) != identity(second)


def test_a_plan_needs_no_weights(folder: Path, role: Latents) -> None:
    module, _ = open_meta(f"path:{folder}")
    bare = Latents(module)
    assert all(p.is_meta for part in (module, bare.encoders.vae, bare.encoders.text_encoder) for p in part.parameters())  # type: ignore[attr-defined]
    bare.refuse(rows())
    assert bare.reads_as == role.reads_as and bare.row_cost(rows())[0] > 0  # type: ignore[index]


# refusals


def refused(role: Any, row: Row) -> Refused:
    with pytest.raises(Refused) as told:
        role.view([row])
    return told.value


@pytest.mark.parametrize("side, near", [(30, 32), (33, 32), (2, 4), (39, 40)])
def test_a_size_that_the_autoencoder_does_not_give_back_is_refused_with_the_nearest(role: Latents, side: int, near: int) -> None:
    told = refused(role, rows(1, side)[0])
    assert told.slug == "size" and "multiples of 4" in told.expected and f"write size: {near} " in told.do


@pytest.mark.parametrize("side", [4, 12, 20])
def test_a_size_that_the_network_halves_with_a_remainder_works(role: Latents, side: int) -> None:
    view = role.view(rows(2, side))
    assert view.inputs["clean"].shape == (2, 4, side // 4, side // 4)
    assert says(role, view, view.inputs["clean"], 100.0).shape == view.inputs["clean"].shape


BAD = [
    ({"pixels": torch.zeros(3, 32, 32, dtype=torch.uint8), "label": 2}, "data", "a caption", "captions:"),
    ({"text": "a dog"}, "data", "pixels", "image_folder"),
    ({"pixels": torch.zeros(1, 32, 32, dtype=torch.uint8), "text": "a dog"}, "size", "3 channels", "channels: 3"),
]


@pytest.mark.parametrize("content, slug, expected, do", BAD)
def test_a_row_that_is_no_image_with_a_caption_is_refused(role: Latents, content: dict[str, Any], slug: str, expected: str, do: str) -> None:
    told = refused(role, Row("a", content))
    assert told.slug == slug and expected in told.expected and do in told.do


def test_images_of_two_sizes_are_refused(role: Latents) -> None:
    with pytest.raises(Refused, match="images of one size"):
        role.view([*rows(1), *rows(1, 16)])


def test_a_network_that_was_never_trained_without_captions_is_not_guided(role: Latents, copy: Path, tmp_path: Path) -> None:
    own = copy / "unet" / OWN
    own.write_text(json.dumps({**json.loads(own.read_text()), "null_label": None}))
    alone: Any = as_role(open_pretrained(f"path:{copy}"))
    models = Models({"student": alone, "teacher": alone})
    strong = Guidance(scale=3.0, convention="extra")
    for part in (Consistency(guidance=strong), Noised(drop_label=0.1), Samples(guidance=strong)):
        with pytest.raises(Refused) as told:
            part.suits(models, "train.0")
        assert told.value.slug == "condition"
    view = alone.view(rows())
    assert torch.equal(says(alone, view, codes(), 9.0), says(role, view, codes(), 9.0))
    with pytest.raises(Refused, match="knows what no condition is"):
        says(alone, view, codes(), 9.0, label=torch.full((3,), NO_LABEL))
    Safetensors()(Parcel(alone, tmp_path / "again", {}, ()))  # the probe asks with captions


def test_roles_of_other_encoders_are_refused_together(role: Latents, copy: Path) -> None:
    config = copy / "vae" / "config.json"
    config.write_text(config.read_text().replace('"scaling_factor": 0.5', '"scaling_factor": 0.75'))
    models = Models({"student": as_role(open_pretrained(f"path:{copy}")), "teacher": role})
    with pytest.raises(Refused) as told:
        Noised().suits(models, "train.0")
    assert told.value.slug == "encoders"


@pytest.mark.parametrize(
    "change, slug",
    [
        ({"_class_name": "StableDiffusionXLPipeline"}, "family"),
        ({"text_encoder": ["transformers", "T5EncoderModel"]}, "family"),
        ({"unet": ["my_code", "MyUNet"]}, "family"),
        ({"vae": None}, "family"),
    ],
)
def test_a_pipeline_of_other_parts_is_refused(folder: Path, tmp_path: Path, change: dict[str, Any], slug: str) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    (tmp_path / "model_index.json").write_text(json.dumps({**index, **change}))
    with pytest.raises(Refused) as told:
        open_pretrained(f"path:{tmp_path}")
    assert told.value.slug == slug and "StableDiffusionPipeline" in told.value.expected


def test_a_change_that_no_pipeline_can_hold_is_refused(role: Latents) -> None:
    role.refuse_change("student.surgery", [Lora()])
    with pytest.raises(Refused, match="use lora"):
        role.refuse_change("student.surgery", [NoiseExperts()])


def test_a_part_alone_is_refused_with_where_the_whole_is(folder: Path) -> None:
    with pytest.raises(Refused, match="the folder above") as told:
        open_pretrained(f"path:{folder / 'unet'}")
    assert told.value.slug == "family"


def test_a_network_that_asks_for_more_than_captions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="captions alone"):
        open_pretrained(f"path:{saved(tmp_path, time_cond_proj_dim=8)}")


def test_parts_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Failed, match="width of a caption"):
        open_pretrained(f"path:{saved(tmp_path, cross_attention_dim=8)}")


# configs


def test_a_config_is_a_pipeline_with_weights_of_its_seed_and_is_written_as_one(tmp_path: Path) -> None:
    config = SHIPPED / "models" / "tiny_pipeline.json"
    one, two = (as_role(open_pretrained(f"config:{config}")) for _ in range(2))
    assert isinstance(one, Latents) and one.reads_as == two.reads_as
    assert torch.equal(says(one, one.view(rows()), codes(), 9.0), says(two, two.view(rows()), codes(), 9.0))
    assert all(p.is_meta for p in open_meta(f"config:{config}")[0].parameters())
    Safetensors()(Parcel(one, tmp_path, {}, ()))
    whole = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path)
    assert whole.tokenizer("Ab c").input_ids == one.encoders.tokenizer("Ab c").input_ids  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "change, expected",
    [({"unets": {}}, "a field of"), ({"vae": {"block_out_channels": "x"}}, "options that AutoencoderKL accepts"), ({"predicts": "score"}, "epsilon")],
)
def test_a_config_that_cannot_be_is_refused(tmp_path: Path, change: dict[str, Any], expected: str) -> None:
    plain = json.loads((SHIPPED / "models" / "tiny_pipeline.json").read_text())
    (tmp_path / "net.json").write_text(json.dumps({**plain, **change}))
    with pytest.raises(Refused) as told:
        open_pretrained(f"config:{tmp_path / 'net.json'}")
    assert expected in told.value.expected
