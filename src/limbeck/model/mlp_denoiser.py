"""A small perceptron that denoises points and tiny images."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from limbeck.model.parametrisation import Parametrisation
from limbeck.noise.base import spread
from limbeck.numerics import upcast

WAVES = 16
"""Frequencies in which the time is told."""


class MLPDenoiser(nn.Module):
    """Layers that each hear the time and the class beside what the layer before says."""

    def __init__(self, parametrisation: Parametrisation, shape: tuple[int, ...], width: int = 64, depth: int = 3, num_classes: int = 0):
        """Args:
        parametrisation: what it is trained to say, and its schedule.
        shape: of a sample: [2] for points of a plane, [1, 8, 8] for small images.
        width: of the layers.
        depth: hidden layers.
        num_classes: classes that it is told; one more, after the last, stands for none of them.
        """
        super().__init__()
        self.parametrisation, self.shape, self.num_classes = parametrisation, tuple(shape), num_classes
        dim = math.prod(shape)
        self.of_time = nn.Linear(2 * WAVES, width)
        self.of_label = nn.Embedding(num_classes + 1, width) if num_classes else None
        self.first = nn.Linear(dim, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.last = nn.Linear(width, dim)
        self.config = {"denoiser": "mlp", "shape": list(shape), "width": width, "depth": depth, "num_classes": num_classes}

    def forward(
        self, sample: Float[Tensor, "row *axes"], time: Float[Tensor, " row"], label: Int[Tensor, " row"] | None
    ) -> Float[Tensor, "row *axes"]:
        """What it predicts; `label`: of each row, -1 for none."""
        dtype, noise = self.first.weight.dtype, self.parametrisation.noise
        frequency = torch.logspace(0, math.log10(200), WAVES, device=sample.device, dtype=dtype)
        angle = noise.fraction(time).to(dtype)[:, None] * frequency
        told = self.of_time(torch.cat([angle.sin(), angle.cos()], -1))
        if self.of_label is not None and label is not None:
            told = told + self.of_label(torch.where(label < 0, self.num_classes, label))
        heard = upcast(sample) * spread(noise.scale_in(time), upcast(sample))
        x = self.first(heard.to(dtype).flatten(1)) + told
        for layer in self.layers:
            x = x + layer(nn.functional.silu(x + told))
        return self.last(nn.functional.silu(x)).reshape(sample.shape)
