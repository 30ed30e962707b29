"""Sampling and consistency functions, against diffusers and closed forms."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from limbeck.errors import Refused
from limbeck.model.denoiser import NO_LABEL, Denoiser
from limbeck.model.denoising import Boundary, denoise, rungs, sampled
from limbeck.model.gaussian_mixture import GaussianMixture, ring
from limbeck.model.mlp_denoiser import MLPDenoiser
from limbeck.model.parametrisation import Parametrisation
from limbeck.noise.edm import EDM
from limbeck.noise.rectified_flow import RectifiedFlow
from limbeck.noise.trig_flow import TrigFlow
from limbeck.noise.vp import VP

LATENT = VP(betas="scaled_linear", start=0.00085, end=0.012)
FIELDS: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}


def network(noise: Any = LATENT, predicts: Any = "epsilon", classes: int = 0, seed: int = 0) -> Denoiser:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Denoiser(MLPDenoiser(Parametrisation(noise=noise, predicts=predicts, null_label=classes or None), (3, 4, 4), 16, 2, classes)).eval()


@pytest.mark.parametrize("predicts", ["epsilon", "velocity", "denoised"])
def test_a_consistency_function_gives_back_what_it_heard_at_time_0(predicts: Any) -> None:
    role = network(predicts=predicts)
    sample, time = torch.randn(5, 3, 4, 4), torch.zeros(5)
    denoised, _ = denoise(role, sample, time, None)
    assert (denoised - sample).abs().max() > 0.01
    assert torch.equal(Boundary()(LATENT, sample, denoised, time), sample)


@pytest.mark.parametrize("noise", [LATENT, RectifiedFlow(), TrigFlow(), EDM()], ids=lambda noise: noise.kind)
def test_a_schedule_whose_networks_hear_no_0_for_a_clean_sample_has_no_consistency_function(noise: Any) -> None:
    if isinstance(noise, EDM):
        with pytest.raises(Refused, match="networks hear 0 for a clean sample"):
            Boundary().refuse(noise, "train.0.forward")
    else:
        Boundary().refuse(noise, "train.0.forward")
        kept, made = Boundary().factors(noise.heard(torch.tensor([noise.lowest, noise.highest])))
        assert float(kept[0]) == pytest.approx(1, abs=0.01) and bool((made >= 0).all())


def test_the_factors_of_a_boundary_are_those_of_latent_consistency_models() -> None:
    kept, made = Boundary().factors(torch.tensor([0.0, 19.0, 999.0], dtype=torch.float64))
    assert kept[0] == 1 and made[0] == 0
    # at 19 the sheet of the method says 6.9e-6 and 0.9999965; with a factor sigma_d (Consistency Models) the second would be 0.5
    assert float(kept[1]) == pytest.approx(6.9e-6, rel=0.01) and float(made[1]) == pytest.approx(0.9999965, abs=1e-7)
    assert float(made[2]) == pytest.approx(1, abs=1e-8)


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_few_steps_are_those_of_the_scheduler_of_latent_consistency_models(steps: int) -> None:
    diffusers = pytest.importorskip("diffusers")
    theirs, role = diffusers.LCMScheduler(**FIELDS), network()
    theirs.set_timesteps(steps, original_inference_steps=50)
    times = rungs(LATENT, steps, 50)
    assert times[:-1].tolist() == theirs.timesteps.tolist()
    start = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    made = sampled(role, start, times, None, boundary=Boundary(), fresh=fresh_of(2))
    sample, stream = start, torch.Generator().manual_seed(2)
    for time in theirs.timesteps:
        said = role.module(sample, time.expand(2).float(), None)
        sample = theirs.step(said, time, sample, generator=stream).prev_sample
    assert (made - sample.detach()).abs().max() < 1e-5 * float(sample.abs().max())


def fresh_of(seed: int) -> Any:
    stream = torch.Generator().manual_seed(seed)
    return lambda step: torch.randn(2, 3, 4, 4, generator=stream)


def test_many_steps_are_those_of_ddim() -> None:
    diffusers = pytest.importorskip("diffusers")
    theirs, role = diffusers.DDIMScheduler(**FIELDS, timestep_spacing="trailing"), network()
    theirs.set_timesteps(10)
    start = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    made, sample = sampled(role, start, LATENT.grid(10), None), start
    for time in theirs.timesteps:
        sample = theirs.step(role.module(sample, time.expand(2).float(), None), time, sample, eta=0.0).prev_sample
    assert (made - sample.detach()).abs().max() < 1e-5 * float(sample.abs().max())


def spread_of(noise: Any, steps: int, width: float) -> float:
    """Standard deviation of samples of one Gaussian around 0, made with its exact denoiser."""
    role = Denoiser(GaussianMixture(Parametrisation(noise=noise, predicts="denoised", null_label=1), [[0.0, 0.0]], width)).eval()
    start = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0))
    return float(sampled(role, start / start.std(), noise.grid(steps), None).std())


@pytest.mark.parametrize("noise", [RectifiedFlow(), VP(betas="cosine")])
def test_with_the_exact_denoiser_samples_have_the_spread_of_the_data(noise: Any) -> None:
    # the path of a Gaussian ends exactly on it; the error of steps falls at least linearly with their number
    errors = [abs(spread_of(noise, steps, 0.5) - 0.5) for steps in (25, 50, 100)]
    assert errors[2] < 0.01 and errors[1] < 0.6 * errors[0] and errors[2] < 0.6 * errors[1]


def test_guided_samples_of_a_class_are_of_that_class() -> None:
    role = Denoiser(GaussianMixture(Parametrisation(noise=RectifiedFlow(), predicts="denoised", null_label=4), ring(4, 1.0), 0.1)).eval()
    label = torch.arange(4).repeat_interleave(25)
    made = sampled(role, torch.randn(100, 2, generator=torch.Generator().manual_seed(0)), RectifiedFlow().grid(20), label, factor=1.5)
    nearest = torch.cdist(made, torch.tensor(ring(4, 1.0))).argmin(-1)
    assert torch.equal(nearest, label)


def test_guidance_pushes_away_from_what_is_said_without_a_condition() -> None:
    role = network(classes=3)
    sample, time, label = torch.randn(2, 3, 4, 4), torch.full((2,), 400.0), torch.tensor([0, 2])
    with_label, without = (denoise(role, sample, time, some) for some in (label, torch.full_like(label, NO_LABEL)))
    guided = denoise(role, sample, time, label, factor=1 + 7.0)
    for found, c, u in zip(guided, with_label, without, strict=True):
        assert torch.allclose(found, c + 7.0 * (c - u), atol=1e-4)  # Luo et al.: x_c + w (x_c - x_0)


def naive_gap(k: int, width: float) -> float:
    """Largest difference of the exact consistency function between both ends of one step of the exact denoiser, of one Gaussian."""
    role = Denoiser(GaussianMixture(Parametrisation(noise=LATENT, predicts="denoised", null_label=1), [[0.0]], width).double()).eval()
    time = torch.arange(199, 1000, 200, dtype=torch.float64)
    sample = torch.linspace(-2, 2, len(time), dtype=torch.float64)[:, None]

    def exact(x: Tensor, t: Tensor) -> Tensor:
        variance, none = (LATENT.kept(at) * width**2 + 1 - LATENT.kept(at) for at in (t, torch.zeros_like(t)))
        return x * (none / variance).sqrt()[:, None]

    denoised, epsilon = denoise(role, sample, time, None)
    then = time - k
    return float((exact(LATENT.noised(denoised, epsilon, then), then) - exact(sample, time)).abs().max())


def test_one_step_of_the_exact_denoiser_stays_on_its_path_up_to_second_order() -> None:
    assert naive_gap(20, 0.5) > 3 * naive_gap(10, 0.5) > 9 * naive_gap(5, 0.5)


def test_a_folder_is_not_written_while_sampling(tmp_path: Path) -> None:
    role = network()
    before = {name: x.clone() for name, x in role.state_dict().items()}
    sampled(role, torch.randn(1, 3, 4, 4), LATENT.grid(3), None)
    assert all(torch.equal(x, before[name]) for name, x in role.state_dict().items())
