"""The student makes samples of noise, and others hear them in noise again."""

from typing import Annotated, Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor

from limbeck.errors import Refused
from limbeck.forward._noisy import ask, ask_guided, factor_of, normals, refuse_unconditional, refuse_unlike, uniform, with_draws
from limbeck.forward.base import Forward, Listen
from limbeck.guidance import Guidance
from limbeck.model.denoiser import MADE
from limbeck.noise.base import Noise
from limbeck.numerics import upcast
from limbeck.signals import Batch

Pair = Annotated[tuple[float, float], Field(min_length=2, max_length=2)]


class Rollout(Forward):
    r"""Lets the student make a sample of noise in a few steps, makes it noisier again, and asks the other roles about that.

    $$ x_1 \sim N(0, I) \to \dots \to x_s, \qquad x_t = \alpha_{t|s}\, x_s + \sigma_{t|s}\, \varepsilon, \qquad t \in (s, 1] $$

    Only one step of the student has gradients; of the rows only classes and shapes are used. The student says its sample as `made`, and what
    others are asked about is `kept` (times it) plus `added` (times fresh noise). The turn of the student takes the objective
    `distribution_matching`; that of a critic, with the same fields but for `times` and without `guidance`, `denoising` (`clamp: 10`,
    `seats: {student: critic}`): its truth is what the student has made, in the unbiased form where that is noisy still. Use it where there is
    no data, or where the student should not be held to it; to follow the teacher's own path from data use `consistency`.

    Example:
        >>> Rollout(rungs=4, phase=(0, 2)).requires({"student": ("made",), "critic": ("denoised",)})
        {'student': ('made', 'denoised', 'epsilon'), 'critic': ('denoised',)}

    References:
        Yin et al., One-step Diffusion with Distribution Matching Distillation, 2023, arXiv:2311.18828.
        Yin et al., Improved Distribution Matching Distillation for Fast Image Synthesis, 2024, arXiv:2405.14867 (several steps, times).
        Huang et al., Self Forcing, 2025, arXiv:2506.08009 (gradients at a step that is drawn).
        Fan et al., Phased DMD, 2025, arXiv:2510.27684 (phases).
    """

    kind: Literal["rollout"] = "rollout"
    noisy: ClassVar[bool] = True
    rungs: Annotated[int, Field(gt=0)] = 4
    """Steps from noise to sample that the student is to make."""
    phase: Annotated[tuple[int, int], Field(min_length=2, max_length=2)] | None = None
    """The steps that learn now, as numbers of rungs, the second of them not included: [0, 2] of 4 ends halfway, with a noisy sample; those
    before are taken as they are. None: all of them, which end with a clean sample."""
    exit: Literal["last", "drawn"] = "last"
    """The step that has gradients: the last of the phase, or for each row one that is drawn, from where it goes straight to the end."""
    path: Literal["flow", "consistency"] = "flow"
    """From rung to rung along the probability flow (DDIM; Euler's method on straight lines), or with fresh noise, as consistency functions are
    sampled."""
    times: Pair = (0.02, 0.98)
    """Ends between which times are drawn, as shares of the way from the sample's own time (0) to pure noise (1)."""
    guidance: Guidance | None = None
    """Of the teacher; the student has it built in afterwards, and a critic must know the student as it is."""

    @model_validator(mode="after")
    def in_order(self) -> "Rollout":
        first, last = self.steps
        if not 0 <= first < last <= self.rungs:
            raise ValueError(f"phase: two rungs in order, from 0 to {self.rungs}")
        if self.path == "consistency" and last < self.rungs:
            raise ValueError("path: flow, where a phase ends in noise: what is made there has the noise that the student saw, not a fresh one")
        if not 0 < self.times[0] < self.times[1] <= 1:
            raise ValueError("times: two shares in order, above 0 and at most 1")
        return self

    def beside(self, other):
        made = ("rungs", "steps", "exit", "path")
        if isinstance(other, Rollout) and (unlike := [name for name in made if getattr(self, name) != getattr(other, name)]):
            field = unlike[0].replace("steps", "phase")
            raise ValueError(f"{field}: the same in all turns of a stage, since a critic must learn the samples that the student is moved on")

    @property
    def steps(self) -> tuple[int, int]:
        """The phase, written out."""
        return self.phase or (0, self.rungs)

    def requires(self, needs):
        if "teacher" not in needs and factor_of(self.guidance, torch.zeros(1, device="cpu")) is not None:
            got, do = "guidance where only others are heard", "remove guidance from this turn: a critic must know the student as it is"
            raise Refused("guidance", "forward rollout  guidance", "objectives that hear the teacher", got, do)
        return {**needs, "student": tuple(dict.fromkeys((*needs.get("student", ()), "denoised", "epsilon")))}

    def suits(self, models, where):
        refuse_unlike(models, models, f"{where}.forward")
        models["student"].parametrisation.noise.grid(self.rungs)
        if factor_of(self.guidance, torch.zeros(1, device="cpu")) is not None and "teacher" in models:
            refuse_unconditional(models, "teacher", f"{where}.forward.guidance")

    def draw(self, batch, streams, place):
        first, *others = normals(batch, 2 + (self.steps[1] - 1 if self.path == "consistency" else 0), streams, place)
        named = {"noise.start": first, "noise": others[0], **{f"noise.{i + 1}": one for i, one in enumerate(others[1:])}}
        return with_draws(batch, **named, time_draw=uniform(batch, 3, streams, place))

    def __call__(self, models, batch, needs):
        noise, inputs = models.noise("student"), batch.view("student").inputs
        grid, (first, last) = noise.grid(self.rungs).to(inputs["noise"].device), self.steps
        leave = torch.full_like(batch.group, last - 1)
        if self.exit == "drawn":  # in float32 the last draws are rounded up to the end
            leave = (first + inputs["time_draw"][:, 2] * (last - first)).long().clamp(max=last - 1)
        sample = self.stepped(models, batch, noise, grid, leave)
        end = grid[last].expand(len(sample))
        names = dict.fromkeys((*(name for name in needs.get("student", ()) if name not in MADE), "denoised", "epsilon"))
        said = ask(models, "student", batch, names, sample, grid[leave])
        made = said["denoised"] if last == self.rungs else noise.noised(said["denoised"], said["epsilon"], end)
        low, high = self.times
        time = noise.time(last / self.rungs * (1 - low - (high - low) * inputs["time_draw"][:, 0]))
        kept, added = (factor.to(made.dtype) for factor in noise.kernel(time, end))
        noisier = noise.noisier(made, inputs["noise"], end, time)
        clean, truth = noise.unbiased(made, inputs["noise"], end, time)
        factor, out = factor_of(self.guidance, inputs["time_draw"][:, 1]), {}
        out["student"] = batch.signals("student", {**said.values, "made": made, "kept": kept, "added": added})
        for role in (role for role in needs if role != "student"):
            given = batch.with_inputs(role, made=made, clean=clean, noise=truth, kept=kept, added=added)
            out[role] = ask_guided(models, role, given, needs[role], noisier, time, factor if role == "teacher" else None)
        return out

    @torch.no_grad()
    def stepped(
        self, models: Listen, batch: Batch, noise: Noise, grid: Float[Tensor, " times"], leave: Int[Tensor, " row"]
    ) -> Float[Tensor, "row *axes"]:
        """The samples at the steps at which they get gradients."""
        inputs: Any = batch.view("student").inputs
        sample = upcast(inputs["noise.start"]) * noise.prior
        for i in range(self.steps[1] - 1):
            on = (leave > i).nonzero()[:, 0]
            said = ask(models, "student", batch.at(on), ("denoised", "epsilon"), sample[on], grid[i].expand(len(on)))
            other = inputs[f"noise.{i + 1}"][on] if self.path == "consistency" else said["epsilon"]
            sample = sample.to(said["denoised"].dtype).index_copy(0, on, noise.noised(said["denoised"], other, grid[i + 1].expand(len(on))))
        return sample
