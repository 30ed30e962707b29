"""How good what a denoiser makes of noise is, in a few steps and in many."""

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from limbeck.evaluate._features import features_of
from limbeck.evaluate._in_steps import refuse_untaught, table
from limbeck.evaluate._pictures import by_caption, conditions, in_steps, shown
from limbeck.evaluate._spread import covered, frechet, frechet_by_class, inside, sliced_w2
from limbeck.evaluate.base import Evaluator, Exam
from limbeck.guidance import Guidance
from limbeck.model.base import Role, listening
from limbeck.model.denoiser import no_null
from limbeck.model.denoising import Boundary, rungs, sampled
from limbeck.model.reference import refuse_missing
from limbeck.numerics import Streams
from limbeck.store import write_json

AT_ONCE, NUMBERS = 256, 2**18
"""Samples that are made together, and numbers in all of them."""


class Samples(Evaluator):
    r"""Draws samples of each subject in a few steps, and of the teacher also in many, and compares them with held-out rows.

    Every subject starts from the same noise, with the classes of the held-out rows in turn. `frechet`:
    $\|\mu - \mu'\|^2 + \mathrm{tr}(S + S' - 2 (S S')^{1/2})$ of features, and its mean over classes; `sliced_w2`: the root of the mean squared
    Wasserstein distance over 128 directions; `precision`: samples that lie among held-out rows, and `recall`, held-out rows that lie among
    samples (nearest neighbours, 3); `covered`: classes that get at least a quarter of their share. Features are the numbers of a sample, or what
    a classifier's head hears. Rows with captions have no classes, and their samples are compared in the code of the autoencoder, or as what a
    classifier hears of the decoded images. All depend on how many rows and samples there are: compare subjects, not runs with other rows. Figures
    without a number of steps are those of the first of `steps`, of the teacher those of its many; so is the table of a run.

    The student is sampled as a consistency function, with fresh noise at each step, unless `few` says that it follows the path of the
    probability flow, as teacher and start always do.

    Example:
        >>> Samples(steps=(1, 4)).few
        'consistency'

    References:
        Heusel et al., GANs Trained by a Two Time-Scale Update Rule, 2017, arXiv:1706.08500 (Fréchet distance).
        Kynkäänniemi et al., Improved Precision and Recall Metric for Assessing Generative Models, 2019, arXiv:1904.06991.
        Bonneel et al., Sliced and Radon Wasserstein Barycenters of Measures, 2015, J. Math. Imaging and Vision 51 (sliced).
    """

    kind: Literal["samples"] = "samples"
    measures: ClassVar[Literal["logits", "label", "score", "sample"]] = "sample"
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        **{name: (-1e-6, float("inf")) for name in ("frechet", "class_frechet", "sliced_w2")},
        **{name: (0.0, 1.0) for name in ("precision", "recall", "covered")},
    }
    steps: Annotated[tuple[Annotated[int, Field(gt=0)], ...], Field(min_length=1)] = (1, 2, 4)
    """Steps in which each subject makes samples."""
    teacher_steps: int = Field(default=50, gt=0)
    """Steps of the teacher beside these."""
    few: Literal["consistency", "flow"] = "consistency"
    """How the student is sampled."""
    rungs: int = Field(default=50, gt=0)
    """Steps that a student sampled as a consistency function was distilled on; those it takes are picked of them."""
    boundary: Boundary = Boundary()
    """As in training."""
    guidance: Guidance | None = None
    """Of teacher and start; a student that was taught with guidance has it built in, or is told the scale where it hears one."""
    num: int = Field(default=1000, gt=1)
    """Samples."""
    features: str | None = None
    """Reference of a classifier, the features of which are compared; none: the samples themselves."""

    def suits(self, models, where):
        for name in (name for name in ("teacher", "student") if name in models and models[name].parametrisation is not None):
            known = models[name].parametrisation
            if self.guidance is not None and not self.guidance.off and (known.null_label is None or not getattr(models[name], "num_classes", 1)):
                raise no_null(f"{where}.guidance")
            if name == "student" and self.few == "consistency":
                self.boundary.refuse(known.noise, f"{where}.few")

    def notes(self, subjects, base):
        if self.features is not None:
            refuse_missing(self.features, base, "evaluate samples  features")
        return super().notes(subjects, base)

    def agrees(self, forwards, where):
        refuse_untaught(dict(self), forwards, where)

    def __call__(self, exam: Exam) -> dict[str, Any]:
        streams, out, pictures = Streams(exam.seed), {}, []
        for name in exam.subjects:
            with exam.open(name) as role, listening(role):
                if role.parametrisation is None:
                    return {}
                view = role.view(exam.rows)
                clean, label = role.says(view, ("clean",), {})["clean"], view.inputs.get("label")
                more = {name: view.inputs[name] for name in conditions(role)}
                if not pictures:
                    pictures += shown(role, clean, exam.rows, "held out")
                features, found = features_of(exam, self.features, role, clean, exam.rows, AT_ONCE), {}
                for steps in dict.fromkeys((*self.steps, *((self.teacher_steps,) if name == "teacher" else ()))):
                    made, seconds = self.made(role, name, steps, label, clean.shape[1:], streams, more)
                    forwards = steps * (1 if label is None or self.factor(name) == 1 or role.parametrisation.scale_dim is not None else 2)
                    found[steps] = {"forwards": float(forwards), "milliseconds": 1000 * seconds / self.num}
                    if made.isfinite().all():
                        ours = features_of(exam, self.features, role, made, exam.rows, AT_ONCE)
                        found[steps] |= self.measured(ours, features, None if more else label, streams)
                        pictures += shown(role, made, exam.rows, f"{name}, {in_steps(steps)}")
            out[name] = self.told(found, name, f" against {self.teacher_steps}" if "teacher" in exam.subjects else "")
        if {"teacher", "student"} <= out.keys():
            slow, quick = (out[name]["samples"][str(n)]["milliseconds"] for name, n in (("teacher", self.teacher_steps), ("student", self.steps[0])))
            out["student"]["times_faster"] = slow / quick if quick else None
        if "evidence" in exam.context:
            write_json(Path(exam.context["evidence"]) / "made.json", by_caption(pictures))
        return out

    def as_consistency(self, name: str) -> bool:
        return name not in ("teacher", "start") and self.few == "consistency"

    def factor(self, name: str, told: bool = False) -> float:
        """By which a subject is guided: the middle of a range; what was taught with guidance is not, unless it is `told` the scale."""
        guided = told or name in ("teacher", "start")
        return 1.0 if self.guidance is None or not guided else self.guidance.factor(sum(self.guidance.ends) / 2)

    def made(
        self, role: Role, name: str, steps: int, label: Int[Tensor, " row"] | None, axes: Sequence[int], streams: Streams,
        more: Mapping[str, Tensor] = {},
    ) -> tuple[Float[Tensor, "row *axes"], float]:
        """Samples of a role, and the seconds that they took."""
        noise, device = role.parametrisation.noise, next(role.parameters()).device
        few, factor = self.as_consistency(name), self.factor(name, role.parametrisation.scale_dim is not None)
        times = rungs(noise, steps, self.rungs) if few else noise.grid(steps)
        parts, seconds = [], 0.0
        together = min(AT_ONCE, max(1, NUMBERS // math.prod(axes)))
        for first in range(0, self.num, together):
            num = min(together, self.num - first)
            start = torch.randn(num, *axes, generator=streams("samples", first), device="cpu").to(device)
            some = None if label is None else label[torch.arange(first, first + num, device="cpu") % len(label)].to(device)
            beside = {key: x[torch.arange(first, first + num, device="cpu") % len(x)].to(device) for key, x in more.items()}

            def fresh(i: int, first: int = first, num: int = num) -> Tensor:
                return torch.randn(num, *axes, generator=streams("samples", first, i), device="cpu").to(device)

            if not first:  # what is done once is not of a sample's time
                one = None if some is None else some[:1]
                sampled(role, start[:1], times[-2:], one, factor, more={key: x[:1] for key, x in beside.items()})
            began = time.perf_counter()
            parts.append(sampled(role, start, times, some, factor, self.boundary if few else None, fresh if few else None, beside).cpu())
            seconds += time.perf_counter() - began
        return torch.cat(parts), seconds

    def measured(self, ours: Tensor, features: Tensor, label: Int[Tensor, " row"] | None, streams: Streams) -> dict[str, float]:
        """All figures of samples, by their features and those of held-out rows."""
        found = {"frechet": frechet(ours, features), "sliced_w2": sliced_w2(ours, features, streams("slices"))}
        found |= {"precision": inside(ours, features), "recall": inside(features, ours)}
        if label is not None:
            mine = label[torch.arange(self.num, device="cpu") % len(label)]
            found |= frechet_by_class(ours, mine, features, label) | {"covered": covered(ours, features, label)}
        return found

    def told(self, found: Mapping[int, Mapping[str, float]], name: str, against: str) -> dict[str, Any]:
        """Figures at each number of steps; those of the first by themselves too. In the table of a run the teacher stands with its many steps."""
        many = self.teacher_steps if name == "teacher" else None
        first = {key: value for key, value in found[many or self.steps[0]].items() if key in self.ranges}
        metrics = table(found, self.steps, many, "class_frechet" in first, against)
        return {**first, "samples": {str(steps): dict(values) for steps, values in found.items()}, "metrics": metrics}
