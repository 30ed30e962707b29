"""What a denoiser was trained to say, and along which path of noise."""

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

    @model_validator(mode="after")
    def says_something_of_noise(self) -> "Parametrisation":
        if self.noise.singular(self.predicts):
            kind = dict(self.noise)["kind"]
            raise ValueError(f"velocity or denoised: {kind} ends in pure noise, where a prediction of the noise does not tell the sample")
        return self
