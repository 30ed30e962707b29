"""Two points of one path from noise to a sample."""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field

from limbeck.errors import Refused
from limbeck.forward._noisy import ask, ask_guided, factor_of, normal, refuse_unconditional, refuse_unlike, uniform, with_draws
from limbeck.forward.base import Forward
from limbeck.guidance import Guidance
from limbeck.model.denoising import Boundary


class Consistency(Forward):
    r"""Shows the student a noisy sample, and as its target what a consistency function says one step of the teacher further on.

    $$ f(x_t, t) \;\text{ against }\; f^-(\hat x_{t'}, t'), \qquad \hat x_{t'} = \alpha(t')\, \tilde x_0 + \sigma(t')\, \tilde\varepsilon $$

    where the teacher says $\tilde x_0$ and $\tilde\varepsilon$ at $(x_t, t)$, with guidance if there is any. Times are the `rungs` of a sampler of so
    many steps, and $t'$ is the rung below t. What student and teacher say of a sample are `denoised`; use it with the objective
    `denoising`, `signal: denoised` and `against: teacher`. The target is the student itself, without gradients; a running mean is steadier
    where the whole network learns: `teacher: {kind: ema}`, `target: teacher`, and the model that steps as a role of its own, `solver`.
    With adapters (`surgery: [lora]`) the student is the teacher plus a small difference, and needs no mean. A student that hears the scale
    of guidance (`surgery: [hear_scale]`) is told that of each row, and so is its target.

    Example:
        >>> Consistency(guidance={"scale": [5, 15], "convention": "extra"}).requires({"student": ("denoised",), "teacher": ("denoised",)})["teacher"]
        ('denoised', 'epsilon')

    References:
        Song et al., Consistency Models, 2023, arXiv:2303.01469.
        Luo et al., Latent Consistency Models, 2023, arXiv:2310.04378 (guidance, skipped steps).
    """

    kind: Literal["consistency"] = "consistency"
    noisy: ClassVar[bool] = True
    rungs: Annotated[int, Field(gt=1)] = 50
    """Steps from noise to sample that times are drawn from. Errors add up along them: a short training, or a small network, holds on few."""
    guidance: Guidance | None = None
    """Of the teacher; the student has it built in afterwards, and is sampled without."""
    boundary: Boundary = Boundary()
    """How the denoiser becomes a consistency function."""
    solver: str = "teacher"
    """The role that takes the step."""
    target: Literal["student", "teacher"] = "student"
    """The role that says the target: the student itself, or a teacher that is its running mean."""

    def requires(self, needs):
        if other := [name for name in needs.get("teacher", ()) if name != "denoised"]:
            do = "use {kind: denoising, signal: denoised, against: teacher}"
            raise Refused("need", "forward consistency", "objectives that hear what the teacher says as denoised", ", ".join(other), do)
        asked = {"student": ("clean", "denoised"), "teacher": (), self.target: ("denoised",), self.solver: ("denoised", "epsilon")}
        asked["student"] = ("clean", "denoised")
        every = {role: tuple(dict.fromkeys((*needs.get(role, ()), *asked.get(role, ())))) for role in {**needs, **asked}}
        return {role: names for role, names in every.items() if names}

    def suits(self, models, where):
        for field in ("solver", "target"):
            if getattr(self, field) not in models:
                do = "add it under role:, or change the name"
                raise Refused("role", f"{where}.forward.{field}", f"one of {', '.join(models)}", getattr(self, field), do)
        refuse_unlike(models, (self.solver, self.target), f"{where}.forward")
        self.boundary.refuse(models["student"].parametrisation.noise, f"{where}.forward")
        if self.guidance is not None and not self.guidance.off:
            refuse_unconditional(models, self.solver, f"{where}.forward.guidance")

    def draw(self, batch, streams, place):
        return with_draws(batch, noise=normal(batch, streams, place), time_draw=uniform(batch, 2, streams, place))

    def __call__(self, models, batch, needs):
        noise, inputs = models.noise("student"), batch.view("student").inputs
        grid = noise.grid(self.rungs).to(inputs["noise"].device)
        rung = (inputs["time_draw"][:, 0] * self.rungs).long()
        time, then = grid[rung], grid[rung + 1].clamp(min=noise.lowest)
        clean = models.says("student", batch, ("clean",))["clean"]
        sample = noise.noised(clean, inputs["noise"], time)
        factor = factor_of(self.guidance, inputs["time_draw"][:, 1])
        scale = torch.zeros_like(inputs["time_draw"][:, 1]) if factor is None else factor - 1
        hearing = batch.with_inputs("student", guidance_scale=scale).with_inputs(self.target, guidance_scale=scale)
        said = ask(models, "student", hearing, dict.fromkeys((*needs["student"], "denoised")), sample, time)
        ours = {**said.values, "denoised": self.boundary(noise, sample, said["denoised"], time)}
        with torch.no_grad():
            step = ask_guided(models, self.solver, batch, ("denoised", "epsilon"), sample, time, factor)
            nearer = noise.noised(step["denoised"], step["epsilon"], then)
            target = ask(models, self.target, hearing, ("denoised",), nearer, then)["denoised"]
            theirs = {"denoised": self.boundary(noise, nearer, target, then)}
        return {"student": batch.signals("student", ours), "teacher": batch.signals("teacher", theirs)}
