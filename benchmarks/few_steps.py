"""How good are one, two and four steps of a student that an adapter made quick, against the 50 of its teacher, and how much sooner are they done?

`python benchmarks/few_steps.py` on the digits of scikit-learn (8 by 8), `python benchmarks/few_steps.py fashion` on Fashion-MNIST scaled to 16 by
16. Trains all it needs by shipped recipes (a classifier whose features are compared, a denoiser, three students) into LIMBECK_RUNS, else ./runs:
what is finished there is not trained again. No guidance, neither of the teacher nor built into students: guided, the teacher would be asked twice
a step, and ratios of time would double. Samples have the classes of the held-out images, as many as there are of these; `training images` tells
what a perfect generator would get. Precision and recall: 3 nearest neighbours. Times: arms take turns, the ratio is of one turn.

Then whether the adapter also makes sisters of its teacher quick that it has never seen: the denoiser with an adapter of a style (bold: each pixel the
brightest of a square of four, five classes only) beside it, and the denoiser trained on in that style. Held against held-out images in the style.

On one core about 20 minutes for digits, 3 hours for Fashion-MNIST. A number as second argument trains everything for so many steps and records
nothing: to see whether it runs.
"""

import json
import os
import struct
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from record import record, spread
from torch import Tensor

from limbeck.data.base import Place, Rows
from limbeck.data.digits import Digits
from limbeck.data.idx_images import FASHION, IdxImages
from limbeck.evaluate._features import features_of
from limbeck.evaluate._spread import NEIGHBOURS, frechet, frechet_by_class, inside
from limbeck.evaluate.base import Exam, Table
from limbeck.evaluate.samples import AT_ONCE, Samples
from limbeck.model.adapter_files import with_adapters
from limbeck.model.base import Models, Role
from limbeck.model.opening import open_pretrained
from limbeck.model.role import as_role
from limbeck.numerics import Streams
from limbeck.recipe import find
from limbeck.signals import Row
from limbeck.start import run

MANY, FEW, SEEDS, TURNS = 50, (1, 2, 4), (0, 1, 2), 5
RUNGS = 4
"""Of the students: with the recipe's 50 (and with 16) what they said drifted away from samples within these few steps of training."""
STYLED, SHARES = 5, ((1.0, 1.0), (0.8, 1.0))
"""Classes that the style is learned on, from 0; shares of the adapters of the style and of few steps."""
FIGURES = ("class_frechet", "frechet", "precision", "recall")


@dataclass(frozen=True)
class Setting:
    """What one data set is tried with."""

    source: Digits | IdxImages
    size: int
    channels: tuple[int, ...]
    held_out: int
    """So many held-out images at most."""
    timed: int
    """Samples that are made for a time."""
    classifier_steps: int
    base_steps: int
    student_steps: int
    style_steps: int


FASHION_TEST = str(FASHION / "t10k-images-idx3-ubyte.gz")
SETTINGS = {
    "digits": Setting(Digits(split=0.4), 8, (16, 32), 1000, 256, 600, 3000, 1000, 500),
    "fashion": Setting(IdxImages(held_out=FASHION_TEST, size=16), 16, (24, 48, 64), 2000, 256, 1500, 6000, 2000, 1000),
}


class Bench:
    """One data set, with all that is trained on it."""

    def __init__(self, name: str, trial: int | None):
        self.name, self.setting, self.trial = name, SETTINGS[name], trial
        self.runs = Path(os.environ.setdefault("LIMBECK_RUNS", "runs")).resolve()
        self.work = self.runs / f"few_steps-{name}-data"
        self.work.mkdir(parents=True, exist_ok=True)
        rows = self.setting.source.rows(Rows(), Place(Models({}), Streams(0)))
        self.train, self.held_out = rows.train, list(rows.held_out)[: self.setting.held_out]
        self.source = self.setting.source.model_dump(mode="json", exclude_none=True)
        self.style = [written(self.work / f"{part}-images-idx3-ubyte", bold(some)) for part, some in (("train", self.train), ("test", self.held_out))]
        (self.work / "unet.json").write_text(json.dumps(unet(self.setting)))

    def trained(self, name: str, recipe: str, seed: int = 0, **changes: Any) -> str:
        """The name of a finished run."""
        steps = changes.pop("steps") if self.trial is None else changes.pop("steps") and self.trial
        every = {"seed": seed, "train.0.steps": steps, "train.0.batch": 64, "evaluate": [], "export": ["safetensors"], "threads": 1, "claim": None}
        every |= {key.replace("__", "."): value for key, value in changes.items()}
        full = f"few_steps-{self.name}-{name}" + (f"-trial{self.trial}" if self.trial else "")
        print(f"{full}: {steps} steps", file=sys.stderr, flush=True)
        run(recipe, *[f"{key}={json.dumps(value)}" for key, value in every.items()], name=full, runs=self.runs, base=find(recipe).parent)
        return full

    def classifier(self) -> str:
        architecture = f"timm:resnet10t?num_classes=10&in_chans=1&size={max(28, 2 * self.setting.size)}&channels=[8,16,32,32]"
        data = [self.source, {"kind": "augment", "pad": 1, "flip": 0.0}]
        return self.trained("classifier", "image_teacher", student__start=architecture, data=data, steps=self.setting.classifier_steps)

    def base(self) -> str:
        start = f"config:{self.work / 'unet.json'}"
        more = {"train.0.optimiser.lr": 1e-3, "steps": self.setting.base_steps}
        return self.trained("base", "image_denoiser", data=[self.source], student__start=start, **more)

    def student(self, name: str, teacher: str, data: dict[str, Any], seed: int) -> str:
        """An adapter of few steps."""
        lora, objective = {"kind": "lora", "rank": 16, "alpha": 16, "seed": seed}, {"kind": "denoising", "signal": "denoised", "against": "teacher"}
        more = {"train.0.forward": {"kind": "consistency", "rungs": RUNGS}, "train.0.objective": [objective]}
        more |= {"train.0.optimiser.lr": 5e-4, "student.surgery": [lora]}
        return self.trained(name, "lcm_lora", seed, data=[data], teacher=f"run:{teacher}", steps=self.setting.student_steps, **more)

    def in_style(self, name: str, base: str, surgery: list[dict[str, Any]]) -> str:
        """The base trained on in the style: whole, or an adapter."""
        more = {"student.start": f"run:{base}", "student.surgery": surgery, "train.0.optimiser.lr": 1e-3 if surgery else 3e-4}
        return self.trained(name, "image_denoiser", data=[self.style_data], steps=self.setting.style_steps, **more)

    @property
    def style_data(self) -> dict[str, Any]:
        train, test = map(str, self.style)
        return {"kind": "idx_images", "path": train, "held_out": test, "licence": "CC-BY-4.0" if self.name == "digits" else "MIT"}


def unet(setting: Setting) -> dict[str, Any]:
    """The config of a small U-Net with attention on its smallest maps."""
    outer = len(setting.channels) - 1
    sizes = {"sample_size": setting.size, "in_channels": 1, "out_channels": 1, "layers_per_block": 1, "block_out_channels": setting.channels}
    blocks = {"down_block_types": ["DownBlock2D"] * outer + ["AttnDownBlock2D"], "up_block_types": ["AttnUpBlock2D"] + ["UpBlock2D"] * outer}
    noise = {"kind": "vp", "betas": "scaled_linear", "start": 0.00085, "end": 0.012}
    args = {**sizes, **blocks, "norm_num_groups": 8, "attention_head_dim": 16}
    return {"denoiser": "unet_2d", "noise": noise, "predicts": "velocity", "num_classes": 10, "model_args": args}


def bold(rows: Sequence[Row]) -> list[tuple[Tensor, int]]:
    """Images of the first classes in the style."""
    some = [row for row in rows if row.content["label"] < STYLED]
    padded = torch.nn.functional.pad(torch.stack([row.content["pixels"] for row in some]).float(), (0, 1, 0, 1))
    pixels = torch.nn.functional.max_pool2d(padded, 2, stride=1).to(torch.uint8)
    return [(image, int(row.content["label"])) for image, row in zip(pixels, some, strict=True)]


def written(path: Path, images: Sequence[tuple[Tensor, int]]) -> Path:
    """A pair of IDX files."""
    pixels = torch.stack([image[0] for image, _ in images])
    path.write_bytes(struct.pack(">4I", 0x0803, *pixels.shape) + pixels.numpy().tobytes())
    labels = bytes(label for _, label in images)
    path.with_name(path.name.replace("images-idx3", "labels-idx1")).write_bytes(struct.pack(">2I", 0x0801, len(labels)) + labels)
    return path


def opened(name: str) -> Role:
    """The student of a finished run."""
    return as_role(open_pretrained(f"run:{name}"))


class Measured:
    """Held-out images, and how samples compare with them."""

    def __init__(self, rows: Sequence[Row], judge: str, maker: Role):
        self.maker = maker
        """Whose samples they are: it knows how they are looked at."""
        self.samples = Samples(num=len(rows), features=judge, rungs=RUNGS)
        self.exam = Exam(rows, (), self.reading, lambda _: Table(torch.zeros(0)))
        self.rows, self.label = rows, labels(rows)
        self.features = self.of(images(rows))

    @contextmanager
    def reading(self, name: str) -> Iterator[Role]:
        yield opened(name)

    def of(self, samples: Tensor) -> Tensor:
        return features_of(self.exam, self.samples.features, self.maker, samples, self.rows, AT_ONCE)

    def beside(self, rows: Sequence[Row]) -> dict[str, float]:
        """Other images, as if they had been made."""
        return self.compared(self.of(images(rows)), labels(rows))

    def made(self, role: Role, steps: int, seed: int, few: bool) -> dict[str, float]:
        """Samples of a role: as a consistency function, or along the path of the probability flow."""
        name, shape = "student" if few else "teacher", self.rows[0].content["pixels"].shape
        return self.compared(self.of(self.samples.made(role, name, steps, self.label, shape, Streams(seed))[0]), self.label)

    def compared(self, ours: Tensor, of_ours: Tensor) -> dict[str, float]:
        by_class = frechet_by_class(ours, of_ours, self.features, self.label)
        both = {"precision": inside(ours, self.features), "recall": inside(self.features, ours)}
        return {**by_class, "frechet": frechet(ours, self.features), **both}


def images(rows: Sequence[Row]) -> Tensor:
    return torch.stack([row.content["pixels"] for row in rows]).float() / 127.5 - 1


def labels(rows: Sequence[Row]) -> Tensor:
    return torch.tensor([row.content["label"] for row in rows])


def over(found: Sequence[dict[str, float]]) -> dict[str, Any]:
    """The spread of each figure."""
    return {key: spread([one[key] for one in found]) for key in FIGURES}


def table(title: str, arms: dict[str, dict[str, Any]]) -> None:
    print(f"\n{title}\n" + " | ".join(("arm", *FIGURES)))
    for name, figures in arms.items():
        print(" | ".join((name, *(f"{x['median']:.3f} ({x['min']:.3f} to {x['max']:.3f})" for x in figures.values()))))


def times(bench: Bench, teacher: Role, student: Role, rows: Sequence[Row]) -> dict[str, Any]:
    """Seconds of the teacher's many steps over those of few, by turns."""
    samples, label, shape = Samples(num=bench.setting.timed, rungs=RUNGS), labels(rows), rows[0].content["pixels"].shape
    seconds: dict[str, list[float]] = {}
    for turn in range(TURNS):
        for name, role, steps in (("teacher", teacher, MANY), *(("student", student, steps) for steps in FEW)):
            seconds.setdefault(f"{name}, {steps}", []).append(samples.made(role, name, steps, label, shape, Streams(turn))[1])
    many = seconds[f"teacher, {MANY}"]
    ratios = {steps: spread([a / b for a, b in zip(many, seconds[f"student, {steps}"], strict=True)]) for steps in FEW}
    for steps, ratio in ratios.items():
        print(f"student, {steps}: {ratio['median']:.1f} times sooner than the teacher in {MANY} ({ratio['min']:.1f} to {ratio['max']:.1f})")
    return {"samples": bench.setting.timed, "seconds": {name: spread(each) for name, each in seconds.items()}, "ratios": ratios}


def of_students(bench: Bench, base: str, students: Sequence[str], judge: str) -> dict[str, Any]:
    """The first table: the teacher in many steps and in few, and its students."""
    teacher = opened(base)
    held = Measured(bench.held_out, judge, teacher)
    arms = {"training images": over([held.beside(bench.train[: len(bench.held_out)])])}
    for steps in (MANY, *FEW):
        arms[f"teacher, {steps}"] = over([held.made(teacher, steps, seed, few=False) for seed in SEEDS])
    for steps in FEW:
        arms[f"student, {steps}"] = over([held.made(opened(name), steps, seed, few=True) for seed, name in zip(SEEDS, students, strict=True)])
    table(f"{bench.name}: against {len(held.rows)} held-out images", arms)
    return {"held_out": len(held.rows), "arms": arms, "time": times(bench, teacher, opened(students[0]), bench.held_out)}


def of_sisters(bench: Bench, base: str, students: Sequence[str], judge: str) -> dict[str, Any]:
    """The second table: adapters of few steps, learned on the base, beside a style that they have never seen."""
    rows = IdxImages.model_validate(bench.style_data).rows(Rows(), Place(Models({}), Streams(0)))
    held = Measured(list(rows.held_out), judge, opened(base))
    style = bench.in_style("style", base, [{"kind": "lora", "rank": 16, "alpha": 16}])
    tuned, direct = bench.in_style("tuned", base, []), bench.student("direct", style, bench.style_data, 0)
    at, few, plain = bench.runs / style / "student/adapter", [bench.runs / name / "student/adapter" for name in students], opened(base)
    arms = {"training images in the style": over([held.beside(list(rows.train)[: len(held.rows)])])}
    for name, role in (("style", opened(style)), ("tuned", opened(tuned))):
        for steps in (MANY, *FEW):
            arms[f"{name}, {steps}"] = over([held.made(role, steps, seed, few=False) for seed in SEEDS])
    combined = {f"{a} style + {b} few": [with_adapters(plain, [(at, a), (one, b)]) for one in few] for a, b in SHARES}
    combined |= {"tuned + 1.0 few": [with_adapters(opened(tuned), [(one, 1.0)]) for one in few]}
    combined |= {"1.0 few, no style": [with_adapters(plain, [(one, 1.0)]) for one in few]}
    combined |= {"learned on the style itself": [opened(direct)] * len(SEEDS)}
    for name, roles in combined.items():
        for steps in FEW:
            arms[f"{name}, {steps}"] = over([held.made(role, steps, seed, few=True) for seed, role in zip(SEEDS, roles, strict=True)])
    table(f"{bench.name}: against {len(held.rows)} held-out images in the style, of {STYLED} classes", arms)
    return {"held_out": len(held.rows), "classes": STYLED, "arms": arms}


def main(name: str = "digits", trial: str | None = None) -> None:
    torch.set_num_threads(1)
    bench = Bench(name, None if trial is None else int(trial))
    judge, base = bench.classifier(), bench.base()
    students = [bench.student(f"student{seed}", base, bench.source, seed) for seed in SEEDS]
    first = of_students(bench, base, students, judge)
    second = of_sisters(bench, base, students, judge)
    if trial is None:
        setting = {key: value for key, value in vars(bench.setting).items() if key != "source"}
        how = {"setting": setting, "neighbours": NEIGHBOURS, "guidance": None, "rungs": RUNGS}
        record(f"few_steps_{name}", {**how, "students": first, "sisters": second})


if __name__ == "__main__":
    main(*sys.argv[1:])
