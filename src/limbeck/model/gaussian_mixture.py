"""A mixture of Gaussians whose denoiser is known in closed form: a teacher without training, and the truth that objectives are held against."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from limbeck.model.parametrisation import Parametrisation
from limbeck.noise.base import exact, spread
from limbeck.numerics import upcast


def ring(modes: int, radius: float) -> list[list[float]]:
    """Means at equal distances on a circle, the first of them to the right."""
    return [[radius * math.cos(2 * math.pi * i / modes), radius * math.sin(2 * math.pi * i / modes)] for i in range(modes)]


class GaussianMixture(nn.Module):
    r"""Says the mean of the clean samples that a noisy one may come from.

    Samples are $\sum_k w_k N(\mu_k, \tau^2 I)$. With $V = \alpha^2 \tau^2 + \sigma^2$ and $r_k \propto w_k e^{-\|x - \alpha \mu_k\|^2 / 2V}$,

    $$ E[x_0 \mid x_t] = \sum_k r_k \big[\mu_k + \tfrac{\alpha \tau^2}{V} (x_t - \alpha \mu_k)\big] $$

    A condition leaves the components of one class.
    """

    def __init__(
        self,
        parametrisation: Parametrisation,
        means: Sequence[Sequence[float]],
        width: float,
        weights: Sequence[float] | None = None,
        labels: Sequence[int] | None = None,
    ):
        """Args:
        parametrisation: its schedule; it predicts the clean sample.
        means: of the components.
        width: standard deviation of each component.
        weights: of the components; none: all alike.
        labels: class of each component; none: each is a class of its own.
        """
        super().__init__()
        self.parametrisation = parametrisation
        weight = torch.tensor([1 / len(means)] * len(means) if weights is None else list(weights), dtype=torch.float32, device="cpu")
        self.means = nn.Parameter(torch.tensor(means, dtype=torch.float32, device="cpu"), requires_grad=False)
        self.log_weights = nn.Parameter((weight / weight.sum()).log(), requires_grad=False)
        self.width = nn.Parameter(torch.tensor(width, dtype=torch.float32, device="cpu"), requires_grad=False)
        self.labels = tuple(range(len(means)) if labels is None else labels)
        self.shape = (self.means.shape[1],)
        self.num_classes = max(self.labels) + 1
        self.config = {
            "denoiser": "gaussian_mixture",
            "means": [list(mean) for mean in means],
            "width": width,
            "weights": None if weights is None else list(weights),
            "labels": None if labels is None else list(labels),
        }

    def forward(
        self, sample: Float[Tensor, "row channel"], time: Float[Tensor, " row"], label: Int[Tensor, " row"] | None
    ) -> Float[Tensor, "row channel"]:
        """E[x0 | x_t]; `label`: of each row, -1 for none."""
        sample = upcast(sample)
        alpha, sigma = (spread(of(exact(time)), sample) for of in (self.parametrisation.noise.alpha, self.parametrisation.noise.sigma))
        variance = alpha.square() * self.width.square() + sigma.square()
        apart = sample[:, None] - alpha[..., None] * self.means.to(sample.dtype)
        score = self.log_weights.to(sample.dtype) - apart.square().sum(-1) / (2 * variance)
        if label is not None:
            of = torch.tensor(self.labels, device=sample.device)
            score = score.masked_fill((label[:, None] >= 0) & (of != label[:, None]), -math.inf)
        share = score.softmax(-1)[..., None]
        return (share * (self.means.to(sample.dtype) + (alpha * self.width.square() / variance)[..., None] * apart)).sum(1)

    def draw(self, num: int, stream: torch.Generator) -> tuple[Float[Tensor, "row channel"], Int[Tensor, " row"]]:
        """Samples, and the component of each; drawn on the CPU."""
        means, weights = self.means.detach().cpu(), self.log_weights.detach().cpu().exp()
        component = torch.multinomial(weights, num, replacement=True, generator=stream)
        noise = torch.randn(num, means.shape[1], generator=stream, device="cpu")
        return means[component] + float(self.width) * noise, component
