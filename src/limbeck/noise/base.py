"""Noise schedules: how much of a sample and how much noise there is at each time, and all that follows from it."""

from abc import abstractmethod
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from limbeck.component import Choice, Component
from limbeck.numerics import upcast

Prediction = Literal["denoised", "epsilon", "velocity", "stein_score", "preconditioned"]
Predicts = Literal["denoised", "epsilon", "velocity", "preconditioned"]
"""What a network says of a noisy sample; a score comes from these."""
LEAST_ADDED = 1e-4
"""Noise that is added to a sample is taken to be at least so much where something is divided by it."""


class Noise(Component):
    r"""A path from clean samples to noise: $x_t = \alpha(t)\, x_0 + \sigma(t)\, \varepsilon$ with $\varepsilon \sim N(0, I)$.

    A final class says `alpha`, `sigma` and `slopes`. Coefficients are computed in float64 where the device has it, samples in float32 at least.
    Times are numbers of the schedule's own, greater where there is more noise.
    """

    room: ClassVar[str] = "noise"
    clean: ClassVar[float] = 0.0
    """The time without any noise."""

    @property
    def prior(self) -> float:
        """Standard deviation of the noise that sampling starts from."""
        return 1.0

    @property
    def lowest(self) -> float:
        """The least noisy time that a network is asked about."""
        return self.clean

    @property
    @abstractmethod
    def highest(self) -> float:
        """The noisiest time."""

    @abstractmethod
    def alpha(self, time: Float[Tensor, " row"]) -> Float[Tensor, " row"]:
        """Factor of the clean sample."""

    @abstractmethod
    def sigma(self, time: Float[Tensor, " row"]) -> Float[Tensor, " row"]:
        """Factor of the noise, which is standard normal."""

    @abstractmethod
    def slopes(self, time: Float[Tensor, " row"]) -> tuple[Float[Tensor, " row"], Float[Tensor, " row"]]:
        """Factors of the clean sample and of the noise in what is called velocity."""

    @abstractmethod
    def time(self, share: Float[Tensor, " row"]) -> Float[Tensor, " row"]:
        """The time of a share of the way from pure noise (0) to the clean sample (1, never reached): how training draws times."""

    def grid(self, num: int) -> Float[Tensor, " times"]:
        """Times of so many steps from pure noise on, and the clean one at the end."""
        shares = torch.arange(num, dtype=torch.float64, device="cpu") / num
        return torch.cat([self.time(shares), shares.new_tensor([self.clean])]).float()

    def heard(self, time: Float[Tensor, " row"]) -> Float[Tensor, " row"]:
        """The time as published networks hear it."""
        return time

    @abstractmethod
    def fraction(self, time: Float[Tensor, " row"]) -> Float[Tensor, " row"]:
        """The time between 0, clean, and 1, noisiest."""

    def scale_in(self, time: Float[Tensor, " row"]) -> Float[Tensor, " row"]:
        """What samples are multiplied by before a network hears them."""
        return torch.ones_like(time)

    def preconditioned(self, time: Float[Tensor, " row"]) -> tuple[Float[Tensor, " row"], Float[Tensor, " row"]] | None:
        """Factors of the clean sample and of the noise in what a network says that is scaled on both sides; None: the schedule knows no such."""
        return None

    def singular(self, predicts: Predicts) -> bool:
        """Whether a clean sample cannot be found from such a prediction at the noisiest time."""
        return predicts == "epsilon" and float(self.alpha(exact(torch.tensor([self.highest], device="cpu")))) < 1e-6

    def parts(self, what: Prediction, time: Float[Tensor, " row"]) -> tuple[Float[Tensor, " row"], Float[Tensor, " row"]]:
        """Factors of the clean sample and of the noise in a prediction."""
        time = exact(time)
        none, one = torch.zeros_like(time), torch.ones_like(time)
        if what == "velocity":
            return self.slopes(time)
        if what == "preconditioned":
            if (found := self.preconditioned(time)) is None:
                raise ValueError(f"{type(self).__name__} knows no preconditioned networks")
            return found
        return {"denoised": (one, none), "epsilon": (none, one), "stein_score": (none, -1 / self.sigma(time))}[what]

    def converted(
        self, said: Float[Tensor, "row *axes"], sample: Float[Tensor, "row *axes"], time: Float[Tensor, " row"], have: Prediction, want: Prediction
    ) -> Float[Tensor, "row *axes"]:
        """One prediction from another one and the noisy sample: both are linear in the clean sample and the noise."""
        said = upcast(said)
        if have == want:
            return said
        a, s = self.alpha(exact(time)), self.sigma(exact(time))
        (p, q), (r, n) = self.parts(have, time), self.parts(want, time)
        whole = a * q - s * p
        return spread((r * q - n * p) / whole, said) * sample.to(said.dtype) + spread((a * n - s * r) / whole, said) * said

    def mixed(self, what: Prediction, clean: Float[Tensor, "row *axes"], noise: Float[Tensor, "row *axes"], time: Float[Tensor, " row"]) -> Tensor:
        """What a prediction would be if it knew sample and noise."""
        clean = upcast(clean)
        of_clean, of_noise = self.parts(what, time)
        return spread(of_clean, clean) * clean + spread(of_noise, clean) * noise.to(clean.dtype)

    def noised(
        self, clean: Float[Tensor, "row *axes"], noise: Float[Tensor, "row *axes"], time: Float[Tensor, " row"]
    ) -> Float[Tensor, "row *axes"]:
        """The noisy sample; with predictions in place of sample and noise, one step along the path of the probability flow (DDIM without noise)."""
        clean = upcast(clean)
        time = exact(time)
        return spread(self.alpha(time), clean) * clean + spread(self.sigma(time), clean) * noise.to(clean.dtype)

    def kernel(self, time: Float[Tensor, " row"], since: Float[Tensor, " row"]) -> tuple[Float[Tensor, " row"], Float[Tensor, " row"]]:
        """Factor of a noisy sample of the earlier time `since`, and of fresh noise, that give a sample of `time`, at least as noisy."""
        time, since = exact(time), exact(since)
        factor = self.alpha(time) / self.alpha(since)
        return factor, (self.sigma(time).square() - (factor * self.sigma(since)).square()).clamp(min=0).sqrt()

    def noisier(
        self, sample: Float[Tensor, "row *axes"], noise: Float[Tensor, "row *axes"], since: Float[Tensor, " row"], time: Float[Tensor, " row"]
    ) -> Float[Tensor, "row *axes"]:
        """A sample of the time `since`, made noisier by fresh noise."""
        factor, added = self.kernel(time, since)
        sample = upcast(sample)
        return spread(factor, sample) * sample + spread(added, sample) * noise.to(sample.dtype)

    def unbiased(
        self, sample: Float[Tensor, "row *axes"], noise: Float[Tensor, "row *axes"], since: Float[Tensor, " row"], time: Float[Tensor, " row"]
    ) -> tuple[Float[Tensor, "row *axes"], Float[Tensor, "row *axes"]]:
        r"""A clean sample and a noise that stand for those in a sample of the time `since` that was made noisier by fresh noise.

        $$ \tilde x_0 = \frac{x_s}{\alpha_s} - \frac{\alpha_t \sigma_s^2}{\alpha_s^2 \sigma_{t|s}} \varepsilon, \qquad
           \tilde\varepsilon = \frac{\sigma_t}{\sigma_{t|s}} \varepsilon $$

        Nobody knows the true ones where a sample is noisy already. These give the noisier sample too, and have the same means, given it: the
        score there is the mean of that of the kernel, $-\varepsilon / \sigma_{t|s}$. So `mixed` makes an unbiased target of them for any
        prediction. Of a clean sample they are itself and the noise; where hardly any noise is added they are large.
        """
        time, since = exact(time), exact(since)
        of, added = self.alpha(since), self.kernel(time, since)[1].clamp(min=LEAST_ADDED)
        sample = upcast(sample)
        noise = noise.to(sample.dtype)
        clean = spread(1 / of, sample) * sample - spread(self.alpha(time) * self.sigma(since).square() / (of.square() * added), sample) * noise
        return clean, spread(self.sigma(time) / added, sample) * noise


def exact(time: Float[Tensor, " row"]) -> Float[Tensor, " row"]:
    """Times in float64, where the device has it."""
    return time.float() if time.device.type == "mps" else time.double()


def spread(factor: Float[Tensor, " row"], like: Float[Tensor, "row *axes"]) -> Float[Tensor, "row *ones"]:
    """One number a row beside the numbers of a row."""
    return factor.to(like.dtype).reshape(-1, *(1,) * (like.ndim - 1))


AnyNoise = Annotated[Noise, Choice()]
