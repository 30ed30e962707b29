"""Schedules and their steps against those of diffusers, where it is installed."""

from typing import Any

import pytest
import torch

from limbeck.noise.base import Prediction
from limbeck.noise.rectified_flow import RectifiedFlow
from limbeck.noise.vp import VP

SAME = 1e-6
NAMES = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}
TYPES: dict[str, Prediction] = {"epsilon": "epsilon", "sample": "denoised", "v_prediction": "velocity"}


def ddim(noise: VP, **more: Any) -> Any:
    diffusers = pytest.importorskip("diffusers")
    fields = {"beta_start": noise.start, "beta_end": noise.end, "beta_schedule": NAMES[noise.betas], "num_train_timesteps": noise.steps}
    return diffusers.DDIMScheduler(**fields, rescale_betas_zero_snr=noise.zero_terminal, clip_sample=False, timestep_spacing="trailing", **more)


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("betas", list(NAMES))
def test_the_table_of_variance_is_that_of_diffusers(betas: Any, zero: bool) -> None:
    noise = VP(betas=betas, zero_terminal=zero)
    ours = noise.kept(torch.arange(1000, dtype=torch.float64))
    assert (ours - ddim(noise).alphas_cumprod.double()).abs().max() < SAME


@pytest.mark.parametrize("kind", list(TYPES))
def test_a_step_without_noise_is_that_of_ddim(kind: str) -> None:
    noise = VP(betas="scaled_linear", start=0.00085, end=0.012)
    theirs = ddim(noise, prediction_type=kind)
    theirs.set_timesteps(50)
    grid = noise.grid(50)
    assert grid[:-1].tolist() == theirs.timesteps.tolist()
    draw = torch.Generator().manual_seed(0)
    sample, said = (torch.randn(2, 3, 4, 4, generator=draw) for _ in range(2))
    for here, there in ((0, 1), (24, 25), (49, 50)):
        time, then = grid[here].expand(2), grid[there].expand(2)
        clean, added = (noise.converted(said, sample, time, TYPES[kind], want) for want in ("denoised", "epsilon"))
        expected = theirs.step(said, int(grid[here]), sample, eta=0.0).prev_sample
        ours = noise.noised(clean, added, then)
        assert (ours - expected).abs().max() < SAME * max(1.0, float(expected.abs().max()))


def test_a_step_along_straight_lines_is_that_of_euler() -> None:
    diffusers = pytest.importorskip("diffusers")
    theirs, noise = diffusers.FlowMatchEulerDiscreteScheduler(), RectifiedFlow()
    sigmas = [1.0, 0.7, 0.2]
    theirs.set_timesteps(sigmas=sigmas)
    draw = torch.Generator().manual_seed(0)
    sample, said = (torch.randn(2, 3, 4, 4, generator=draw) for _ in range(2))
    for here, there, heard in zip(sigmas, [*sigmas[1:], 0.0], theirs.timesteps, strict=True):
        time, then = torch.tensor([here]).expand(2), torch.tensor([there]).expand(2)
        clean, added = (noise.converted(said, sample, time, "velocity", want) for want in ("denoised", "epsilon"))
        expected = theirs.step(said, heard, sample).prev_sample
        assert (noise.noised(clean, added, then) - expected).abs().max() < SAME * max(1.0, float(expected.abs().max()))
        assert float(noise.heard(time)[0]) == pytest.approx(float(heard), abs=1e-3)


def test_shifted_times_are_those_of_diffusers() -> None:
    diffusers = pytest.importorskip("diffusers")
    theirs, noise = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), RectifiedFlow(shift=3.0)
    ours = noise.time(1 - torch.arange(1000, 0, -1, dtype=torch.float64) / 1000)
    assert (ours - theirs.sigmas.double()).abs().max() < SAME
