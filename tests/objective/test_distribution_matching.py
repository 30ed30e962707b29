"""Distribution matching: against the derivative of the KL divergence of Gaussians, which is known, and naive loops."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limbeck.align.base import Aligned
from limbeck.forward.rollout import Rollout
from limbeck.model.base import Models
from limbeck.model.denoiser import Denoiser
from limbeck.model.gaussian_mixture import GaussianMixture
from limbeck.model.mlp_denoiser import MLPDenoiser
from limbeck.model.parametrisation import Parametrisation
from limbeck.noise.rectified_flow import RectifiedFlow
from limbeck.objective.distribution_matching import DistributionMatching
from limbeck.signals import Batch, Signals, View

KNOWN = Parametrisation(noise=RectifiedFlow(), predicts="velocity")
TEACHER = (torch.tensor([0.4, -0.2], dtype=torch.float64), 0.6)
STUDENT = (torch.tensor([-0.3, 0.5], dtype=torch.float64), 0.8)


class Affine(MLPDenoiser):
    """Makes mean + width z of noise z, in one step."""

    def __init__(self) -> None:
        super().__init__(KNOWN, (2,), 1, 0)
        self.mean, self.size = nn.Parameter(STUDENT[0].clone()), nn.Parameter(torch.tensor(STUDENT[1], dtype=torch.float64))

    def forward(self, sample: Any, time: Any, label: Any) -> Tensor:
        return sample - (self.mean + self.size * sample)  # at t = 1: noise less clean sample


def gaussian(mean: Tensor, width: float) -> Denoiser:
    known = Parametrisation(noise=RectifiedFlow(), predicts="denoised", null_label=1)
    module = GaussianMixture(known, [mean.tolist()], 1.0).double()
    module.means.data, module.width.data = mean[None].clone(), torch.tensor(width, dtype=torch.float64)
    return Denoiser(module).eval()


def gradients(s: float, scaled: bool = False, teacher: Any = TEACHER, critic: Any = None) -> tuple[Models, Tensor, Any]:
    """The gradients by mean and width of a window in which noises are +-1 in every combination: the mean of what is quadratic in them is that
    of Gaussian noise, exactly. Times of the window; signals."""
    objective = DistributionMatching(scaled=scaled)  # type: ignore[call-arg]
    forward = Rollout(rungs=2, phase=(0, 1), times=(0.1, 0.9)) if s else Rollout(rungs=1, times=(0.1, 0.9))
    mean, width = STUDENT
    if critic is None:  # x_s = (1 - s) (mean + width z) + s z: what clean samples would have to be to give that
        critic = (mean, ((((1 - s) * width + s) ** 2 - s**2) ** 0.5) / (1 - s))
    models = Models({"student": Denoiser(Affine()), "teacher": gaussian(*teacher), "critic": gaussian(*critic)})
    corners = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=2)), dtype=torch.float64)
    draws = torch.linspace(0.05, 0.95, 16, dtype=torch.float64).repeat_interleave(4)
    start, noise = (corners[:, i].repeat(16)[:, None].expand(-1, 2) for i in range(2))
    view = View({"clean": start, "noise.start": start, "noise": noise, "time_draw": draws[:, None].expand(-1, 3)})
    num = len(draws)
    batch = Batch({"student": view}, ("",) * num, torch.arange(num), tuple(map(str, range(num))), torch.ones(num))
    with models.turn("student", only=("mean", "size")):
        said = forward(Aligned(models, ()), batch, objective.needs)
        total, count = objective(said)
        (2 * total / count).backward()  # the mean is over the two numbers of a sample; the divergence is their sum
    return models, s + (1 - s) * (0.1 + 0.8 * draws), said


@pytest.mark.parametrize("s", [0.0, 0.5])
def test_the_gradient_is_the_derivative_of_the_divergence_of_gaussians_in_noise(s: float) -> None:
    """KL(N(a m, V) || N(a m', V')) = sum over the numbers of (V / V' - 1 - log(V / V') + a^2 (m - m')^2 / V') / 2, at a = 1 - t."""
    models, time, _ = gradients(s)
    mean, size = (p.detach().clone().requires_grad_() for p in (models["student"].module.mean, models["student"].module.size))  # type: ignore[union-attr, operator]
    a = 1 - time
    kept = a / (1 - s)
    ours = (kept * ((1 - s) * size + s)).square() + time.square() - (kept * s).square()
    theirs = (a * TEACHER[1]).square() + time.square()
    by_width, by_mean = ours / theirs - 1 - (ours / theirs).log(), (a[:, None] * (mean - TEACHER[0])).square().sum(1) / theirs / 2
    (by_width + by_mean).mean().backward()  # the widths of two numbers, each by half
    assert mean.grad is not None and size.grad is not None
    assert torch.allclose(models["student"].module.mean.grad, mean.grad, rtol=1e-4)  # type: ignore[union-attr, arg-type]
    assert torch.allclose(models["student"].module.size.grad, size.grad, rtol=1e-4)  # type: ignore[union-attr, arg-type]
    assert mean.grad.abs().min() > 0.05 and size.grad.abs() > 0.05


@pytest.mark.parametrize("s", [0.0, 0.5])
def test_of_velocities_the_weight_is_that_of_straight_lines(s: float) -> None:
    """w (T - F) with w = a_t a_t|s / (a_t t + t^2), a_t = 1 - t, T and F the velocities of teacher and critic."""
    models, time, said = gradients(s)
    a, t = (1 - time)[:, None], time[:, None]
    kept = said["student"]["kept"][:, None]
    made = said["student"]["made"]
    corner = torch.tensor([-1.0, 1.0] * 2, dtype=torch.float64).repeat(16)[:, None].expand(-1, 2)
    x = kept * made.detach() + said["student"]["added"][:, None] * corner
    velocity = {role: (x - models[role].module(x, time, None)) / t for role in ("teacher", "critic")}  # type: ignore[operator]
    expected = a * kept / (a * t + t.square()) * (velocity["teacher"] - velocity["critic"])
    slope = DistributionMatching(scaled=False).slope(said["student"], said["teacher"], said["critic"])  # type: ignore[call-arg]
    assert torch.allclose(slope, expected, atol=1e-5)


@pytest.mark.parametrize("scaled", [False, True])
def test_equal_gaussians_give_a_gradient_of_exactly_nothing(scaled: bool) -> None:
    models, _, said = gradients(0.0, scaled, TEACHER, TEACHER)
    assert not models["student"].module.mean.grad.any() and not models["student"].module.size.grad.any()  # type: ignore[union-attr]
    assert not DistributionMatching(scaled=scaled)(said).total.any()  # type: ignore[call-arg]


def signals(values: dict[str, Tensor]) -> Signals:
    num = len(next(iter(values.values())))
    return Signals(values, {"row": torch.arange(num)}, ("",) * num, torch.arange(num), torch.ones(num))


def test_each_sample_is_scaled_by_its_own_residual_and_by_nobody_else_s() -> None:
    draw = torch.Generator().manual_seed(0)
    made, real, fake = torch.randn(3, 5, 2, 4, 4, generator=draw, dtype=torch.float64)
    made = made * torch.tensor([0.1, 1, 10, 100, 3], dtype=torch.float64).reshape(5, 1, 1, 1)  # residuals of very unlike sizes
    made.requires_grad_()
    clean = made.detach() + torch.randn(5, 2, 4, 4, generator=draw, dtype=torch.float64)  # where a phase ends in noise the two differ
    said = [signals(x) for x in ({"made": made, "denoised": clean}, {"denoised": real}, {"denoised": fake})]
    DistributionMatching().values(*said).sum().backward()
    assert made.grad is not None
    for i in range(5):
        assert torch.allclose(made.grad[i] * 32, (fake[i] - real[i]) / (clean[i] - real[i]).abs().mean())
    alone = made.detach()[:1].requires_grad_()
    first = [signals(x) for x in ({"made": alone, "denoised": clean[:1]}, {"denoised": real[:1]}, {"denoised": fake[:1]})]
    DistributionMatching().values(*first).sum().backward()
    assert alone.grad is not None and torch.equal(alone.grad, made.grad[:1])


def test_a_sample_that_the_teacher_would_not_change_is_not_divided_by_nothing() -> None:
    made = torch.ones(1, 2, dtype=torch.float64, requires_grad=True)
    said = ({"made": made, "denoised": made.detach()}, {"denoised": made.detach()}, {"denoised": made.detach() + 1})
    DistributionMatching().values(*map(signals, said)).sum().backward()
    assert made.grad is not None and torch.equal(made.grad, torch.full((1, 2), 0.5, dtype=torch.float64))


def test_what_is_not_finite_is_not_hidden() -> None:
    made = torch.ones(1, 2, dtype=torch.float64, requires_grad=True)
    said = ({"made": made, "denoised": made.detach()}, {"denoised": torch.full((1, 2), torch.nan)}, {"denoised": made.detach()})
    assert DistributionMatching().values(*map(signals, said)).isnan().all()
