"""Denoisers: what they say is what the closed form says, and what opens, opens as it was trained."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from limbeck.check.models import denoiser
from limbeck.errors import Refused
from limbeck.model.base import Models
from limbeck.model.denoiser import NO_LABEL, Denoiser
from limbeck.model.from_diffusers import of_scheduler, scheduler_of
from limbeck.model.gaussian_mixture import GaussianMixture, ring
from limbeck.model.opening import open_meta, open_pretrained
from limbeck.model.parametrisation import Parametrisation
from limbeck.model.role import as_role
from limbeck.noise.base import Noise
from limbeck.noise.edm import EDM
from limbeck.noise.rectified_flow import RectifiedFlow
from limbeck.noise.trig_flow import TrigFlow
from limbeck.noise.vp import VP
from limbeck.recipe import SHIPPED
from limbeck.signals import Row, View

SCHEDULES: list[tuple[Noise, float]] = [(VP(), 400.0), (RectifiedFlow(), 0.6), (TrigFlow(), 0.9), (EDM(), 1.3)]
WIDTH = 0.2


def mixture(noise: Noise) -> Denoiser:
    known = Parametrisation(noise=noise, predicts="denoised", null_label=4)
    return Denoiser(GaussianMixture(known, ring(4, 1.0), WIDTH, weights=[1, 2, 3, 4]).double()).eval()


def asked(role: Denoiser, sample: Tensor, time: float, *names: str, label: Tensor | None = None) -> dict[str, Any]:
    view = View({"sample": sample, "time": torch.full((len(sample),), time), **({} if label is None else {"label": label})})
    return role.says(view, names, {})


def density(role: Denoiser, noise: Noise, time: float, weights: Tensor) -> MixtureSameFamily:
    """The density of noisy samples, by torch."""
    t = torch.tensor([time], dtype=torch.float64)
    alpha, sigma = float(noise.alpha(t)), float(noise.sigma(t))
    means: Any = role.module.means
    spread = torch.full_like(means, (alpha**2 * float(role.module.width) ** 2 + sigma**2) ** 0.5)
    return MixtureSameFamily(Categorical(weights), Independent(Normal(alpha * means.detach(), spread), 1))


@pytest.mark.parametrize("noise, time", SCHEDULES)
def test_the_score_of_a_mixture_is_the_gradient_of_its_log_density(noise: Noise, time: float) -> None:
    role = mixture(noise)
    sample = torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    log_density = density(role, noise, time, torch.tensor([1, 2, 3, 4], dtype=torch.float64)).log_prob(sample)
    expected = torch.autograd.grad(log_density.sum(), sample)[0]
    said = asked(role, sample.detach(), time, "stein_score", "epsilon", "denoised")
    assert torch.allclose(said["stein_score"], expected, rtol=1e-6, atol=1e-8)
    t = torch.tensor([time], dtype=torch.float64)
    # Tweedie: the mean of the clean samples from the score
    tweedie = (sample.detach() + float(noise.sigma(t)) ** 2 * expected) / float(noise.alpha(t))
    assert torch.allclose(said["denoised"], tweedie, rtol=1e-6, atol=1e-6)


def test_a_condition_leaves_one_component_and_none_leaves_all() -> None:
    noise = RectifiedFlow()
    role = mixture(noise)
    sample = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    label = torch.tensor([0, 1, 2, 3, NO_LABEL])
    said = asked(role, sample, 0.5, "stein_score", label=label)["stein_score"]
    for i in range(4):
        x = sample[i : i + 1].clone().requires_grad_()
        log_density = density(role, noise, 0.5, torch.eye(4, dtype=torch.float64)[i]).log_prob(x)
        assert torch.allclose(said[i], torch.autograd.grad(log_density.sum(), x)[0][0], rtol=1e-6)
    assert torch.allclose(said[4], asked(role, sample, 0.5, "stein_score")["stein_score"][4])


def test_the_velocity_of_a_mixture_is_that_of_the_rectified_flow() -> None:
    role = mixture(RectifiedFlow())
    sample = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    said = asked(role, sample, 0.3, "velocity", "denoised", "epsilon")
    assert torch.allclose(said["velocity"], (sample - said["denoised"]) / 0.3, rtol=1e-6)  # the conventions' (x_t - E[x0]) / t
    assert torch.allclose(said["epsilon"], sample + 0.7 * said["velocity"], rtol=1e-6)


def test_a_trig_flow_is_a_rectified_flow_at_another_time_and_scale() -> None:
    # tau = sin t / (sin t + cos t), c = sqrt(tau^2 + (1 - tau)^2); x_RF = x / sigma_d * c; F = [(1 - 2 tau) x_RF + (1 - 2 tau + 2 tau^2) v] / c
    sigma, t = 0.5, 0.7
    trig = mixture(TrigFlow(sigma_data=sigma))
    scaled = GaussianMixture(
        Parametrisation(noise=RectifiedFlow(), predicts="denoised", null_label=4),
        [[x / sigma for x in mean] for mean in ring(4, 1.0)],
        WIDTH / sigma,
        [1, 2, 3, 4],
    )
    flow = Denoiser(scaled.double())
    x = torch.randn(7, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    time = torch.tensor(t, dtype=torch.float64)
    tau = time.sin() / (time.sin() + time.cos())
    c = (tau**2 + (1 - tau) ** 2).sqrt()
    heard = x / sigma * c
    v = flow.says(View({"sample": heard, "time": tau.expand(7)}), ("velocity",), {})["velocity"]
    wrapped = ((1 - 2 * tau) * heard + (1 - 2 * tau + 2 * tau**2) * v) / c
    own = trig.says(View({"sample": x, "time": time.expand(7)}), ("velocity",), {})["velocity"] / sigma
    assert (wrapped - own).abs().max() < 1e-6  # widths and weights of the mixtures are float32 numbers


@pytest.mark.parametrize("predicts", ["velocity", "denoised"])
def test_what_a_network_predicts_does_not_change_what_can_be_asked(predicts: Any, tmp_path: Path) -> None:
    (tmp_path / "net.json").write_text(json.dumps({"denoiser": "mlp", "predicts": predicts, "num_classes": 3, "width": 8}))
    role: Any = as_role(open_pretrained(f"config:{tmp_path / 'net.json'}"))
    x, label = torch.randn(4, 2), torch.tensor([0, 1, 2, NO_LABEL])
    said = asked(role, x, 0.4, "velocity", "denoised", "epsilon", label=label)
    own = role.module(x, torch.full((4,), 0.4), label)
    assert torch.equal(said[predicts], own)
    assert torch.allclose(0.6 * said["denoised"] + 0.4 * said["epsilon"], x, atol=1e-6)
    assert torch.allclose(said["epsilon"] - said["denoised"], said["velocity"], atol=1e-5)


def unet(folder: Path, **more: Any) -> Path:
    diffusers = pytest.importorskip("diffusers")
    sizes = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4, "sample_size": 8, "in_channels": 1, "out_channels": 1}
    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D"), "attention_head_dim": 4}
    diffusers.UNet2DModel(**sizes, **blocks, **more).save_pretrained(folder)
    return folder


def test_a_folder_of_diffusers_says_what_diffusers_says(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDIMScheduler(beta_schedule="scaled_linear", prediction_type="v_prediction", clip_sample=False)
    scheduler.save_pretrained(tmp_path / "scheduler")
    role: Any = as_role(open_pretrained(f"path:{unet(tmp_path / 'unet', num_class_embeds=11)}"))
    assert role.parametrisation == Parametrisation(noise=VP(betas="scaled_linear"), predicts="velocity")
    theirs = diffusers.UNet2DModel.from_pretrained(tmp_path / "unet").eval()
    x, label = torch.randn(2, 1, 8, 8), torch.tensor([3, 10])
    with torch.no_grad():
        said = asked(role, x, 500.0, "velocity", "denoised", label=label)
        expected = theirs(x, 500, class_labels=label).sample
    assert torch.equal(said["velocity"], expected)
    scheduler.set_timesteps(1000)
    step = scheduler.step(expected, 500, x, eta=0.0).pred_original_sample
    assert (said["denoised"] - step).abs().max() < 1e-5
    assert open_meta(f"path:{tmp_path / 'unet'}")[0].conv_in.weight.is_meta


def test_a_transformer_knows_no_condition_and_leaves_out_none_by_itself(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    sizes = {"num_attention_heads": 2, "attention_head_dim": 4, "in_channels": 1, "out_channels": 1, "num_layers": 1}
    sizes |= {"sample_size": 8, "patch_size": 2}
    config = {"denoiser": "dit", "num_classes": 10, "model_args": {**sizes, "norm_num_groups": 4}, "noise": {"kind": "vp"}, "predicts": "epsilon"}
    (tmp_path / "dit.json").write_text(json.dumps(config))
    role: Any = as_role(open_pretrained(f"config:{tmp_path / 'dit.json'}"))
    assert (role.num_classes, role.shape) == (10, (1, 8, 8))
    role.module.train()
    x = torch.randn(3, 1, 8, 8)
    first, second = (asked(role, x, 20.0, "epsilon", label=torch.tensor([1, NO_LABEL, 9]))["epsilon"] for _ in range(2))
    assert torch.equal(first, second)
    with pytest.raises(Refused, match="10 x 10"):  # 8 is what its patches were laid out for
        role.view([Row("a", {"pixels": torch.zeros(1, 10, 10, dtype=torch.uint8), "label": 0})])


def test_a_resolution_that_a_network_cannot_halve_is_refused(tmp_path: Path) -> None:
    config = {"denoiser": "unet_2d", "model_args": {"in_channels": 1, "out_channels": 1, "block_out_channels": [8, 8, 8], "norm_num_groups": 4}}
    config["model_args"] |= {"down_block_types": ["DownBlock2D"] * 3, "up_block_types": ["UpBlock2D"] * 3, "layers_per_block": 1}  # type: ignore[operator]
    pytest.importorskip("diffusers")
    (tmp_path / "net.json").write_text(json.dumps(config))
    role = as_role(open_pretrained(f"config:{tmp_path / 'net.json'}"))
    with pytest.raises(Refused, match="multiples of 4") as told:
        role.view([Row("a", {"pixels": torch.zeros(1, 10, 10, dtype=torch.uint8)})])
    assert told.value.slug == "size" and "size: 12" in told.value.do
    with pytest.raises(Refused, match="samples of 1 x any x any"):
        role.view([Row("a", {"pixels": torch.zeros(3, 8, 8, dtype=torch.uint8)})])


def test_pixels_become_numbers_between_minus_one_and_one(tmp_path: Path) -> None:
    (tmp_path / "net.json").write_text(json.dumps({"denoiser": "mlp", "shape": [1, 2, 2]}))
    role = as_role(open_pretrained(f"config:{tmp_path / 'net.json'}"))
    view = role.view([Row("a", {"pixels": torch.tensor([[[0, 255], [51, 102]]], dtype=torch.uint8)})])
    said = role.says(view, ("clean",), {})["clean"]
    assert torch.allclose(said, torch.tensor([[[[-1.0, 1.0], [-0.6, -0.2]]]]))  # 51 / 127.5 - 1


def test_no_rows_say_nothing_and_stay_connected() -> None:
    role: Any = mixture(RectifiedFlow())
    said = asked(role, torch.zeros(0, 2, dtype=torch.float64), 0.5, "denoised", label=torch.zeros(0, dtype=torch.long))
    assert said["denoised"].shape == (0, 2)


SCHEDULERS: list[tuple[dict[str, Any], Parametrisation]] = [
    ({"_class_name": "PNDMScheduler", "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},  # as of Stable Diffusion 1.5
     Parametrisation(noise=VP(betas="scaled_linear", start=0.00085, end=0.012), predicts="epsilon")),
    ({"_class_name": "DDIMScheduler", "beta_schedule": "squaredcos_cap_v2", "prediction_type": "sample"},
     Parametrisation(noise=VP(betas="cosine"), predicts="denoised")),
    ({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}, Parametrisation(noise=RectifiedFlow(shift=3.0), predicts="velocity")),
    ({"_class_name": "EDMEulerScheduler", "sigma_max": 160.0}, Parametrisation(noise=EDM(most=160.0), predicts="preconditioned")),
]  # fmt: skip


@pytest.mark.parametrize("values, expected", SCHEDULERS)
def test_the_config_of_a_scheduler_tells_schedule_and_prediction(values: dict[str, Any], expected: Parametrisation) -> None:
    assert of_scheduler(values, "scheduler_config.json") == expected


BAD: list[tuple[dict[str, Any], str]] = [
    ({"_class_name": "DDIMScheduler", "beta_schedule": "sigmoid"}, "a schedule of linear"),
    ({"_class_name": "DDIMScheduler", "beta_schedule": "linear", "prediction_type": "noise"}, "one of epsilon"),
    ({"_class_name": "DPMSolverMultistepScheduler", "beta_schedule": "linear", "prediction_type": "flow_prediction"}, "one of epsilon"),
    ({"_class_name": "DPMSolverMultistepScheduler", "beta_schedule": "linear", "use_flow_sigmas": True, "flow_shift": 3.0}, "of its own kind"),
    ({"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True}, "size of a sample"),
    ({"_class_name": "FlowMatchEulerDiscreteScheduler", "prediction_type": "epsilon"}, "velocity or denoised"),
    ({"_class_name": "DDIMScheduler", "beta_schedule": "linear", "rescale_betas_zero_snr": True}, "velocity or denoised"),  # epsilon by default
    ({"_class_name": "EDMEulerScheduler", "prediction_type": "v_prediction"}, "the scaling of EDM"),
    ({"_class_name": "EDMEulerScheduler", "sigma_schedule": "exponential"}, "a schedule of linear"),
]


@pytest.mark.parametrize("values, expected", BAD)
def test_a_schedule_that_does_not_go_with_its_prediction_is_refused(values: dict[str, Any], expected: str) -> None:
    with pytest.raises(Refused) as told:
        of_scheduler(values, "scheduler_config.json")
    assert expected in told.value.expected


def test_a_network_without_a_schedule_beside_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="scheduler_config.json") as told:
        open_pretrained(f"path:{unet(tmp_path / 'unet')}")
    assert told.value.slug == "noise"


def test_a_network_that_knows_only_conditions_cannot_be_asked_without_one(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    diffusers.DDPMScheduler().save_pretrained(tmp_path / "unet")
    role: Any = as_role(open_pretrained(f"path:{unet(tmp_path / 'unet', num_class_embeds=3)}"))
    with pytest.raises(Refused) as told:
        asked(role, torch.zeros(1, 1, 8, 8), 3.0, "epsilon", label=torch.tensor([NO_LABEL]))
    assert told.value.slug == "condition"


@pytest.mark.parametrize(
    "config, where",
    [
        ({"denoiser": "mpl"}, "write denoiser: mlp"),
        ({"denoiser": "mlp", "widht": 3}, "write width"),
        ({"denoiser": "mlp", "noise": {"kind": "rectified_flow"}, "predicts": "epsilon"}, "change"),
        ({"denoiser": "gaussian_mixture"}, "change"),
        ({"denoiser": "unet_2d", "model_args": {"block_out_channels": "x"}}, "correct"),
    ],
)
def test_a_config_that_cannot_be_is_refused_with_the_field(config: dict[str, Any], where: str, tmp_path: Path) -> None:
    (tmp_path / "net.json").write_text(json.dumps(config))
    with pytest.raises(Refused) as told:
        open_pretrained(f"config:{tmp_path / 'net.json'}")
    assert where in told.value.do


def test_roles_of_other_schedules_are_one_view_and_say_so() -> None:
    models = Models({"student": mixture(RectifiedFlow()), "teacher": mixture(RectifiedFlow())})
    batch = models.batch([Row("a", {"clean": torch.zeros(2), "label": 1})])
    assert list(batch.views) == ["student"] and batch.view("teacher").inputs["label"].tolist() == [1]


def test_a_row_without_a_label_takes_none_from_its_neighbours() -> None:
    role = denoiser()
    known, unknown = Row("a", {"clean": torch.zeros(2), "label": 3}), Row("b", {"clean": torch.ones(2)})
    assert role.view([known, unknown]).inputs["label"].tolist() == [3, NO_LABEL] and "label" not in role.view([unknown]).inputs


def test_networks_of_lower_precision_hear_the_time_as_it_is() -> None:
    """In bfloat16 999 would be 1000, and 257 would be 256."""
    pytest.importorskip("diffusers")
    role, heard = as_role(open_pretrained(f"config:{SHIPPED / 'models' / 'tiny_unet.json'}", dtype="bfloat16")), []
    role.module.time_proj.register_forward_pre_hook(lambda _, args: heard.append(args[0].clone()))  # type: ignore[union-attr, operator]
    sample, label = torch.zeros(2, 1, 8, 8, dtype=torch.bfloat16), torch.zeros(2, dtype=torch.long)
    role.says(View({"sample": sample, "time": torch.tensor([999.0, 257.0]), "label": label}), ("denoised",), {})
    assert heard[0].float().tolist() == [999.0, 257.0]


class Scaled(torch.nn.Module):
    """The exact denoiser of a mixture as a network of EDM: it hears c_in x and c_noise, and says F, by the formulas of Karras et al., table 1."""

    def __init__(self, exact: Any, data: float):
        super().__init__()
        self.exact, self.data, self.config = exact, data, SimpleNamespace()
        self.parametrisation = Parametrisation(noise=EDM(sigma_data=data), predicts="preconditioned")

    def forward(self, heard: Tensor, c_noise: Tensor, return_dict: bool) -> tuple[Tensor]:
        sigma = (4 * c_noise.double()).exp()[:, None]
        square = sigma**2 + self.data**2
        x = heard * square.sqrt()
        clean = self.exact(x, sigma[:, 0], None)
        return ((clean - self.data**2 / square * x) / (sigma * self.data / square.sqrt()),)


@pytest.mark.parametrize("sigma", [0.01, 0.4, 3.0, 60.0])
def test_a_preconditioned_network_says_the_clean_sample_of_the_closed_form(sigma: float) -> None:
    exact = mixture(EDM())
    role = Denoiser(Scaled(exact.module, 0.7)).eval()
    x = sigma * torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ours, theirs = (asked(one, x, sigma, "denoised", "epsilon", "stein_score") for one in (role, exact))
    for name, said in ours.items():
        assert torch.allclose(said, theirs[name], rtol=1e-5, atol=1e-5 * (1 + 1 / sigma)), name


def test_a_folder_with_a_scheduler_of_edm_says_what_that_scheduler_makes_of_the_network(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.EDMEulerScheduler(sigma_data=0.6)
    scheduler.save_pretrained(tmp_path / "scheduler")
    role: Any = as_role(open_pretrained(f"path:{unet(tmp_path / 'unet')}"))
    network = diffusers.UNet2DModel.from_pretrained(tmp_path / "unet").eval()
    for sigma in (0.05, 2.0, 40.0):
        x, time = sigma * torch.randn(2, 1, 8, 8), torch.tensor(sigma)
        with torch.no_grad():
            said = network(scheduler.precondition_inputs(x, time), scheduler.precondition_noise(time)).sample
            expected = scheduler.precondition_outputs(x, said, time)
            assert torch.allclose(asked(role, x, sigma, "denoised")["denoised"], expected, atol=1e-5)
    assert of_scheduler(scheduler_of(role.parametrisation) or {}, "again") == role.parametrisation


def test_only_the_noise_of_edm_has_preconditioned_networks() -> None:
    with pytest.raises(ValidationError, match="only along noise of the kind edm"):
        Parametrisation(noise=VP(), predicts="preconditioned")
