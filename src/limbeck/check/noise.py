"""Contracts of noise schedules: they run from a clean sample to noise, what a prediction means is exact, and steps of noise add up."""

import torch

from limbeck.check.contract import close, contract
from limbeck.noise.base import Noise, Prediction, exact

EXACT = (1e-9, 1e-9)
PREDICTIONS: tuple[Prediction, ...] = ("denoised", "epsilon", "velocity", "stein_score")
ROWS = 6


def exercise(noise: Noise) -> None:
    """One ordinary use."""
    time = noise.grid(4)[:-1]
    noise.time(torch.rand(3))
    assert noise.heard(time).shape == noise.fraction(time).shape == noise.scale_in(time).shape
    assert noise.lowest < noise.highest and noise.prior > 0
    noise.mixed("velocity", torch.ones(4, 2), torch.ones(4, 2), time)


def times(noise: Noise, seed: int) -> torch.Tensor:
    """Times between the ends, none of them an end."""
    return noise.time(0.05 + 0.9 * torch.rand(ROWS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))


@contract
def from_noise_to_clean(noise: Noise) -> None:
    """A grid begins at the noisiest time, ends without noise, and there is less of it at each step; its times are within the ends."""
    grid = noise.grid(20)
    assert len(grid) == 21, f"20 steps have {len(grid)} times, expected 21"
    time = exact(grid)
    alpha, sigma = noise.alpha(time), noise.sigma(time)
    close(grid[0], noise.highest, (1e-6, 0.0), "the first time of a grid against the noisiest")
    close(alpha[-1], 1.0, (0.0, 1e-9), "what is left of the sample at the clean time")
    close(sigma[-1], 0.0, (0.0, 1e-6), "noise at the clean time")
    assert (torch.atan2(sigma, alpha).diff() < 0).all(), "noise does not fall from step to step"
    assert noise.clean <= noise.lowest < noise.highest, "its lowest and highest times are the wrong way round"
    shares = noise.fraction(time)
    assert (shares[1:] <= shares[:-1]).all() and 0 <= shares.min() and shares.max() <= 1 + 1e-6, "fractions of the way do not fall from 1 to 0"


@contract
def drawn_in_range(noise: Noise, seed: int = 0) -> None:
    """Times that training draws are times that a network can be asked about."""
    share = torch.cat([torch.rand(1000, generator=torch.Generator().manual_seed(seed)), torch.zeros(1), torch.ones(1) - 2**-24])
    found = noise.time(share)
    assert noise.lowest <= found.min() + 1e-6 and found.max() <= noise.highest * (1 + 1e-6), f"times from {found.min()} to {found.max()}"


@contract
def conversions(noise: Noise, seed: int = 0) -> None:
    """From any prediction and the noisy sample comes any other one, as if sample and noise were known."""
    draw, time = torch.Generator().manual_seed(seed), times(noise, seed)
    clean, added = (torch.randn(ROWS, 2, 3, generator=draw, dtype=torch.float64) for _ in range(2))
    sample = noise.noised(clean, added, time)
    for have in PREDICTIONS:
        for want in PREDICTIONS:
            got = noise.converted(noise.mixed(have, clean, added, time), sample, time, have, want)
            close(got, noise.mixed(want, clean, added, time), EXACT, f"{want} from {have}")


@contract
def velocity(noise: Noise, seed: int = 0) -> None:
    """Where times are continuous, the velocity is the slope of the path."""
    if noise.clean < 0:
        return
    time, step = times(noise, seed), 1e-6
    for slope, of in zip(noise.slopes(time), (noise.alpha, noise.sigma), strict=True):
        close(slope, (of(time + step) - of(time - step)) / (2 * step), (1e-5, 1e-7), "the slope of the path")


@contract
def kernels_compose(noise: Noise, seed: int = 0) -> None:
    """Noise added in two steps is noise added in one, and from the clean sample on it is the schedule itself."""
    low, middle, high = times(noise, seed).sort().values.reshape(3, 2)
    first, second, both = noise.kernel(middle, low), noise.kernel(high, middle), noise.kernel(high, low)
    close(first[0] * second[0], both[0], EXACT, "factors of two steps")
    close((second[0] * first[1]).square() + second[1].square(), both[1].square(), EXACT, "variance of two steps")
    factor, added = noise.kernel(high, torch.full_like(high, noise.clean))
    close(factor, noise.alpha(high), EXACT, "the factor from the clean sample on")
    close(added, noise.sigma(high), EXACT, "the noise from the clean sample on")
    close(noise.kernel(high, high)[1], torch.zeros(2), (0.0, 1e-6), "noise of no step")


@contract
def precision(noise: Noise, seed: int = 0) -> None:
    """Half-precision samples are computed with in float32, and float32 ones agree with float64."""
    draw, time = torch.Generator().manual_seed(seed), times(noise, seed)
    clean, added = (torch.randn(ROWS, 3, generator=draw, dtype=torch.float64) for _ in range(2))
    whole = noise.noised(clean, added, time)
    assert noise.noised(clean.bfloat16(), added.bfloat16(), time).dtype == torch.float32, "samples of half precision are computed with in it"
    close(noise.noised(clean.float(), added.float(), time), whole, (1e-6, 1e-6), "float32 against float64")
