"""Roles look at noisy samples."""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field

from limbeck.errors import Refused
from limbeck.forward._noisy import ask, ask_guided, factor_of, normal, refuse_unconditional, refuse_unlike, uniform, with_draws
from limbeck.forward.base import Forward
from limbeck.guidance import Guidance
from limbeck.model.denoiser import NO_LABEL


class Noised(Forward):
    r"""Adds noise to each sample at a time drawn anew, and asks every role about the same noisy samples.

    $$ x_t = \alpha(t)\, x_0 + \sigma(t)\, \varepsilon, \qquad t = t(u), \; u \sim U[0, 1) $$

    With the objective `denoising` that is how a denoiser is trained; with `against: teacher` how one is taught by another, along the same
    path of noise. Times and noise are drawn for the whole window, a stream a row. To teach few steps use `consistency`.

    Example:
        >>> Noised(drop_label=0.1).requires({"student": ("velocity", "flow")})
        {'student': ('velocity', 'flow', 'clean')}

    References:
        Ho, Jain and Abbeel, Denoising Diffusion Probabilistic Models, 2020, arXiv:2006.11239.
        Ho and Salimans, Classifier-Free Diffusion Guidance, 2022, arXiv:2207.12598 (labels left out, guidance).
    """

    kind: Literal["noised"] = "noised"
    noisy: ClassVar[bool] = True
    drop_label: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of rows that are shown without their class, so that the student can be guided."""
    guidance: Guidance | None = None
    """Of the teacher: the student learns what it says with guidance."""

    def requires(self, needs):
        return {**needs, "student": tuple(dict.fromkeys((*needs.get("student", ()), "clean")))}

    def suits(self, models, where):
        refuse_unlike(models, models, f"{where}.forward")
        if self.drop_label:
            refuse_unconditional(models, "student", f"{where}.forward.drop_label")
        if self.guidance is not None and not self.guidance.off and "teacher" in models:
            refuse_unconditional(models, "teacher", f"{where}.forward.guidance")

    def draw(self, batch, streams, place):
        drawn = uniform(batch, 3, streams, place)
        more = {}
        if self.drop_label:
            label = batch.view("student").inputs.get("label")
            if label is None:
                raise Refused("label", "forward.drop_label", "rows with labels", "rows without", "remove drop_label")
            more = {"label": torch.where(drawn[:, 1] < self.drop_label, NO_LABEL, label)}
        return with_draws(batch, noise=normal(batch, streams, place), time_draw=drawn, **more)

    def __call__(self, models, batch, needs):
        noise, inputs = models.noise("student"), batch.view("student").inputs
        clean = models.says("student", batch, ("clean",))["clean"]
        time = noise.time(inputs["time_draw"][:, 0])
        sample = noise.noised(clean, inputs["noise"], time)
        said = {role: ask(models, role, batch, names, sample, time) for role, names in needs.items() if role != "teacher"}
        if "teacher" in needs:
            factor = factor_of(self.guidance, inputs["time_draw"][:, 2])
            said["teacher"] = ask_guided(models, "teacher", batch, needs["teacher"], sample, time, factor)
        return said
