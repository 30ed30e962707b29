"""Denoisers: of a noisy sample and its time they say what the clean sample was, in any of the usual ways."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast, get_args

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from limbeck.errors import Refused
from limbeck.model.base import Role
from limbeck.model.experts import Experts
from limbeck.model.gaussian_mixture import GaussianMixture
from limbeck.model.heard_scale import told
from limbeck.model.measured_cost import measured_cost
from limbeck.model.mlp_denoiser import MLPDenoiser
from limbeck.model.parametrisation import Parametrisation
from limbeck.noise.base import Prediction, spread
from limbeck.numerics import upcast
from limbeck.signals import Row, View

PREDICTIONS: tuple[Prediction, ...] = tuple(name for name in get_args(Prediction) if name != "preconditioned")
"""What it says of noisy samples, whatever its network predicts."""
GIVEN = ("noise", "label", "time")
"""What it repeats of its view, for objectives that hold it against the truth."""
MADE = ("made", "kept", "added")
"""The same, where a forward lets a role make samples of noise."""
ADAPTED = ("*.to_q", "*.to_k", "*.to_v", "*.to_out.0", "*proj_in", "*proj_out", "*.ff.net.0.proj", "*.ff.net.2", "*.conv1", "*.conv2",
           "*.conv_shortcut", "*samplers.*.conv", "*.time_emb_proj", "layers.*", "of_time")  # fmt: skip
"""Layers of U-Nets, transformers and perceptrons that adapters are put beside: attention, feed-forward, convolutions, and what hears the time."""
NO_LABEL = -1
"""In a view: without a condition."""


def is_denoiser(module: Any) -> bool:
    """Whether a module was opened as a denoiser."""
    return isinstance(getattr(module, "parametrisation", None), Parametrisation)


class Denoiser(Role):
    """Speaks for a network that hears noisy samples.

    Its views hold what a row is (`pixels` or `clean`, and a `label`); a forward adds the noisy `sample`, its `time` and the `noise` in it. It says
    `denoised`, `epsilon`, `velocity` or `stein_score`, whatever the network predicts, by its own schedule; `clean`, the sample as the network
    sees it (pixels between -1 and 1), and `flow`, the velocity that sample and noise have by themselves. A label of -1 asks it without a
    condition.
    """

    offers: frozenset[str] = frozenset({*PREDICTIONS, *GIVEN, *MADE, "clean", "flow"})
    ragged: bool = False
    adaptable: tuple[str, ...] = ADAPTED
    compared_by = "samples"
    samples: ClassVar[tuple[str, ...]] = ("clean", "pixels")
    conditions: ClassVar[tuple[str, ...]] = ()
    """Inputs of a view that it hears beside the label, where that only tells whether it is asked with them."""

    def __init__(self, module: nn.Module, parametrisation: Parametrisation | None = None):
        super().__init__(module)
        self.parametrisation = parametrisation or cast(Parametrisation, module.parametrisation)
        self.num_layers = 0

    def refuse_change(self, where, surgeries):
        if not surgeries or any(surgery.on_blocks for surgery in surgeries):
            do = f"remove {where.split('.')[-1]}, and start from another architecture"
            raise Refused("part", where, "a language model, whose blocks are known", type(self.module).__name__, do)

    @property
    def network(self) -> Any:
        """The network, or the first of several experts, which are alike but for their weights."""
        return self.module.experts[0] if isinstance(self.module, Experts) else self.module

    @property
    def direct(self) -> bool:
        """Whether the network is one of ours, which hear samples, times and classes as views hold them."""
        return isinstance(self.network, (MLPDenoiser, GaussianMixture))

    @property
    def own(self) -> bool:
        """Whether its config is one of ours."""
        return self.direct or isinstance(self.module, Experts)

    @property
    def shape(self) -> tuple[int | None, ...]:
        """Axes of a sample; None where any size will do."""
        if self.direct:
            return self.network.shape
        config = self.network.config
        size = None if self.halved > 1 else config.sample_size
        return (config.in_channels, *((size, size) if isinstance(size, int) or size is None else size))

    @property
    def halved(self) -> int:
        """Sides must be multiples of this: a convolutional network halves its maps so often."""
        return 1 if self.direct else 2 ** (len(getattr(self.network.config, "block_out_channels", (0,))) - 1)

    @property
    def num_classes(self) -> int:
        """Classes that it is told, without the one that stands for none."""
        if self.direct:
            return self.network.num_classes
        config = self.network.config
        found = getattr(config, "num_class_embeds", None) or getattr(config, "num_embeds_ada_norm", None) or 0
        return found - (self.parametrisation.null_label == found - 1)

    def view(self, rows: Sequence[Row]) -> View:
        self.refuse(rows)
        name = next(name for name in self.samples if name in rows[0].content)
        inputs = {name: torch.stack([torch.as_tensor(row.content[name], device="cpu") for row in rows])}
        if any("label" in row.content for row in rows):
            inputs["label"] = torch.tensor([row.content.get("label", NO_LABEL) for row in rows], dtype=torch.long, device="cpu")
        return View(inputs)

    def refuse(self, rows: Sequence[Row]) -> None:
        fitting: set[tuple[int, ...]] = set()
        classes = self.num_classes
        for row in rows:
            found = next((row.content[name] for name in self.samples if name in row.content), None)
            if found is None:
                do = "use a source of samples: gaussian_mixture, digits, idx_images, image_folder"
                raise Refused("data", f"row {row.key}", "a sample to add noise to: pixels, or numbers as `clean`", ", ".join(row.content), do)
            shape = tuple(torch.as_tensor(found, device="cpu").shape)
            if shape not in fitting:
                self.refuse_shape(shape, f"row {row.key}")
                fitting.add(shape)
            if len(fitting) > 1:
                got = " and ".join(" x ".join(map(str, each)) for each in sorted(fitting))
                raise Refused("size", f"row {row.key}", "samples of one size", got, "write size: at the sources, so that all are scaled to it")
            label = row.content.get("label", 0)
            if classes and not 0 <= int(label) < classes:
                do = "give the model as many classes as the data has (num_classes), or drop these rows"
                raise Refused("label", f"row {row.key}", f"a class from 0 to {classes - 1:,}", f"{label}", do)

    def refuse_shape(self, shape: tuple[int, ...], where: str) -> None:
        """Refuses samples of another shape, or of sides that a network cannot halve as often as it does."""
        own, written = self.shape, " x ".join(str(n) for n in shape)
        if len(shape) != len(own) or any(n is not None and n != got for n, got in zip(own, shape, strict=True)):
            expected = "samples of " + " x ".join("any" if n is None else str(n) for n in own)
            raise Refused("size", where, expected, written, "write size: (and channels:) at the source of the rows, or start from another model")
        if any(side % self.halved for side in shape[1:]):
            do = f"write size: {-(-max(shape[1:]) // self.halved) * self.halved} at the source of the rows"
            raise Refused("size", where, f"sides that are multiples of {self.halved}, which the network halves", written, do)

    def clean(self, view: View) -> Float[Tensor, "row *axes"]:
        """The sample as the network sees it."""
        if "clean" in view.inputs:
            return upcast(view.inputs["clean"])
        return view.inputs["pixels"].float() / 127.5 - 1

    def condition(self, view: View) -> Int[Tensor, " row"] | None:
        """Classes as the network counts them, with that for no condition.

        Raises:
            Refused: `condition`, where rows are asked without one and the network knows none.
        """
        if not self.num_classes:
            return None
        null, label = self.parametrisation.null_label, view.inputs.get("label")
        if label is None:
            label = torch.full((view.num_rows,), NO_LABEL, device=view.device)
        if null is None and bool((label < 0).any()):
            raise no_null("forward")
        return label if self.direct or null is None else torch.where(label < 0, null, label)

    def run(self, sample: Float[Tensor, "row *axes"], time: Float[Tensor, " row"], label: Shaped[Tensor, "row *more"] | None) -> Tensor:
        """What the network itself says, or of each row the expert of its time."""
        if not isinstance(self.module, Experts):
            return self.heard(self.module, sample, time, label)
        of, out = self.module.of(time), sample
        for i, expert in enumerate(self.module.experts):
            on = (of == i).nonzero()[:, 0]
            if len(on):
                said = self.heard(expert, sample[on], time[on], None if label is None else label[on])
                out = out.to(said.dtype).index_copy(0, on, said)
        return out

    def heard(
        self, module: Any, sample: Float[Tensor, "row *axes"], time: Float[Tensor, " row"], label: Shaped[Tensor, "row *more"] | None
    ) -> Float[Tensor, "row *axes"]:
        """What a network says."""
        if self.direct:
            return module(sample, time, label)
        noise, dtype = self.parametrisation.noise, next(module.parameters()).dtype
        heard = (sample * spread(noise.scale_in(time), sample)).to(dtype)
        said = module(heard, noise.heard(time), **({} if label is None else self.beside(label, dtype)), return_dict=False)[0]
        return said[:, : sample.shape[1]]  # some say a variance behind it

    def beside(self, condition: Shaped[Tensor, "row *more"], dtype: torch.dtype) -> dict[str, Tensor]:
        """A condition, as a network of diffusers takes it."""
        return {"class_labels": condition}

    def usual(self, num: int) -> dict[str, Tensor]:
        """Conditions of so many rows as a view holds them, where there is no data."""
        return {"label": torch.arange(num, device="cpu") % self.num_classes} if self.num_classes else {}

    def pictured(self, samples: Float[Tensor, "row *axes"]) -> Float[Tensor, "row *axes"]:
        """What is to be looked at of samples: images between -1 and 1, or the samples."""
        return samples

    def says(self, view: View, names: Sequence[str], inject: Mapping[str, Tensor]) -> dict[str, Any]:
        if inject:
            raise Refused("inject", next(iter(inject)), "no parts of a denoiser are known that could be overwritten", "one", "use forward: noised")
        noise, asked = self.parametrisation.noise, [name for name in PREDICTIONS if name in names]
        missing = [name for name in MADE if name in names and name not in view.inputs]
        if missing:
            got, do = "rows as they are", "write forward: rollout"
            raise Refused("forward", "forward", f"samples that the student makes ({', '.join(missing)})", got, do)
        said: dict[str, Any] = {name: view.inputs.get(name) for name in (*GIVEN, *MADE)}
        if {"clean", "flow"} & set(names):
            said["clean"] = self.clean(view)
        if "flow" in names:
            said["flow"] = noise.mixed("velocity", said["clean"], view.inputs["noise"], view.inputs["time"])
        if asked:
            if not {"sample", "time"} <= view.inputs.keys():
                raise Refused("forward", "forward", "noisy samples with their times", "rows as they are", "write forward: noised")
            sample, time, label = view.inputs["sample"], view.inputs["time"], self.condition(view)
            scale = None if self.parametrisation.scale_dim is None else view.inputs.get("guidance_scale")
            if view.num_rows:
                with told(self.network, scale):
                    out = self.run(sample, time, label)
            else:  # some layers cannot be run on nothing: one empty sample is, and nobody listens
                one = torch.zeros(1, *sample.shape[1:], dtype=sample.dtype, device=sample.device)
                out = self.run(one, one.new_full((1,), noise.highest), None if label is None else label.new_zeros(1, *label.shape[1:]))[:0]
            said |= {name: noise.converted(out, sample, time, self.parametrisation.predicts, name) for name in asked}
        return {name: said[name] for name in names}

    def row_cost(self, rows: Sequence[Row]) -> tuple[float, float] | None:
        shape = next((tuple(torch.as_tensor(row.content[n], device="cpu").shape) for row in rows for n in self.samples if n in row.content), None)
        shape = shape or (None if None in self.shape else cast(tuple[int, ...], self.shape))
        if shape is None:
            return None
        kept = [0]

        def note(_: nn.Module, __: Any, out: Any) -> None:
            kept[0] += out.numel() * out.element_size() if isinstance(out, Tensor) else 0

        first = next(self.module.parameters())
        sample = torch.zeros(1, *shape, dtype=torch.float32, device=first.device)
        time = torch.full((1,), self.parametrisation.noise.highest, device=first.device)
        label = self.usual(1).get((*self.conditions, "label")[0])
        label = label if label is None else label.to(first.device)
        return measured_cost(self.module, lambda: self.heard(self.network, sample, time, label))  # of experts each sample is asked of one


def no_null(where: str) -> Refused:
    """The error of a denoiser that is to be guided, or asked without a condition, and knows only conditions."""
    do = "train with labels left out (drop_label of forward: noised), or write guidance: null"
    return Refused("condition", where, "a denoiser that knows what no condition is (null_label)", "one that knows only conditions", do)
