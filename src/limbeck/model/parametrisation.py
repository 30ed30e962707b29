"""What a denoiser was trained to say, and along which path of noise."""

import torch
from pydantic import Field, model_validator

from limbeck.component import Document
from limbeck.noise.base import AnyNoise, Predicts


class Parametrisation(Document):
    """How a network that hears noisy samples is to be understood."""

    noise: AnyNoise
    """Its schedule of noise."""
    predicts: Predicts
    """What it says of a noisy sample."""
    null_label: int | None = Field(default=None, ge=0)
    """The class that stands for no condition; None: it was never trained without one, and cannot be guided."""
    scale_dim: int | None = Field(default=None, gt=1)
    """Waves in which it hears the scale of guidance beside the time; None: it does not."""

    def hearing(self, dim: int) -> "Parametrisation":
        """The same of a network that hears the scale of guidance."""
        return Parametrisation(noise=self.noise, predicts=self.predicts, null_label=self.null_label, scale_dim=dim)

    @model_validator(mode="after")
    def says_something_of_noise(self) -> "Parametrisation":
        if self.predicts == "preconditioned" and self.noise.preconditioned(torch.ones(1, device="cpu")) is None:
            raise ValueError("preconditioned: only along noise of the kind edm")
        if self.noise.singular(self.predicts):
            kind = dict(self.noise)["kind"]
            raise ValueError(f"velocity or denoised: {kind} ends in pure noise, where a prediction of the noise does not tell the sample")
        return self
