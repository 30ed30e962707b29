"""Denoisers by a config of their own, or from a folder as diffusers writes it: config.json, diffusion_pytorch_model.safetensors, a scheduler."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from limbeck.component import Document, nearest, validate
from limbeck.errors import Refused
from limbeck.model.experts import Experts
from limbeck.model.folder import check_sizes, describe, inside
from limbeck.model.from_timm import filled
from limbeck.model.gaussian_mixture import GaussianMixture, ring
from limbeck.model.headers import check_safetensors, corrupt, quoted, read_json
from limbeck.model.heard_scale import with_projection
from limbeck.model.loading import foreign
from limbeck.model.mlp_denoiser import MLPDenoiser
from limbeck.model.parametrisation import Parametrisation
from limbeck.model.reference import Reference, existing, plain_config
from limbeck.noise.base import AnyNoise, Predicts
from limbeck.noise.edm import EDM
from limbeck.noise.rectified_flow import RectifiedFlow
from limbeck.noise.vp import VP

WEIGHTS, SCHEDULER, OWN = "diffusion_pytorch_model.safetensors", "scheduler_config.json", "parametrisation.json"
CLASSES = {"unet_2d": "UNet2DModel", "dit": "DiTTransformer2DModel"}
"""Denoisers of diffusers that hear classes or nothing beside the sample."""
TYPES: dict[str, Predicts] = {"epsilon": "epsilon", "sample": "denoised", "v_prediction": "velocity", "flow_prediction": "velocity"}
BETAS = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}


class DenoiserFile(Document):
    """What a config file says of any denoiser."""

    noise: AnyNoise = RectifiedFlow()
    """Its schedule of noise."""
    predicts: Predicts = "velocity"
    """What it says of a noisy sample."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Of its random weights."""
    scale_dim: int | None = Field(default=None, gt=1, le=1 << 16)
    """Waves in which it hears the scale of guidance; none: it does not."""

    def known(self, null_label: int | None) -> Parametrisation:
        return Parametrisation(noise=self.noise, predicts=self.predicts, null_label=null_label, scale_dim=self.scale_dim)

    @model_validator(mode="after")
    def fits_its_noise(self) -> "DenoiserFile":
        self.known(None)
        return self

    def build(self, where: str) -> nn.Module:
        raise NotImplementedError


class Ring(Document):
    """Means at equal distances on a circle."""

    modes: int = Field(default=8, gt=0, le=1024)
    radius: float = Field(default=1.0, gt=0)


class MixtureFile(DenoiserFile):
    """A mixture of Gaussians, whose denoiser is known in closed form."""

    denoiser: Literal["gaussian_mixture"]
    predicts: Literal["denoised"] = "denoised"
    """It says the mean of the clean samples."""
    ring: Ring | None = None
    means: tuple[tuple[float, ...], ...] = ()
    width: float = Field(default=0.1, gt=0)
    """Standard deviation of each component."""
    weights: tuple[float, ...] | None = None
    labels: tuple[int, ...] | None = None
    """Class of each component; none: each is one of its own."""

    @model_validator(mode="after")
    def has_means(self) -> "MixtureFile":
        if (self.ring is None) == (not self.means) or len({len(mean) for mean in self.means}) > 1:
            raise ValueError("either a ring, or means of one dimension")
        if any(x is not None and len(x) != len(self.places) for x in (self.weights, self.labels)):
            raise ValueError(f"weights and labels of all {len(self.places)} components")
        return self

    @property
    def places(self) -> list[list[float]]:
        return ring(self.ring.modes, self.ring.radius) if self.ring else [list(mean) for mean in self.means]

    def build(self, where: str) -> nn.Module:
        classes = max(self.labels or (len(self.places) - 1,)) + 1
        return GaussianMixture(self.known(classes), self.places, self.width, self.weights, self.labels)


class MLPFile(DenoiserFile):
    """A small perceptron."""

    denoiser: Literal["mlp"]
    shape: tuple[int, ...] = Field(default=(2,), min_length=1, max_length=3)
    """Axes of a sample: [2], or [channel, height, width]."""
    width: int = Field(default=64, gt=0, le=1 << 16)
    depth: int = Field(default=3, ge=0, le=1024)
    """Hidden layers."""
    num_classes: int = Field(default=0, ge=0, le=1 << 20)
    """Classes that it is told; one more stands for none."""

    def build(self, where: str) -> nn.Module:
        null = self.num_classes or None
        return MLPDenoiser(self.known(null), self.shape, self.width, self.depth, self.num_classes)


class DiffusersFile(DenoiserFile):
    """An architecture of diffusers with random weights."""

    denoiser: Literal["unet_2d", "dit"]
    num_classes: int = Field(default=0, ge=0, le=1 << 20)
    """Classes that it is told; one more stands for none."""
    model_args: dict[str, Any] = Field(default_factory=dict)
    """Of its class in diffusers, by name."""

    def build(self, where: str) -> nn.Module:
        more: dict[str, Any] = {}
        if self.num_classes:
            more = {"num_class_embeds": self.num_classes + 1} if self.denoiser == "unet_2d" else {"num_embeds_ada_norm": self.num_classes}
        module = of_class(CLASSES[self.denoiser], {**self.model_args, **more}, where)
        module.parametrisation = self.known(self.num_classes or None)  # type: ignore[assignment]
        return module


class ExpertsFile(DenoiserFile):
    """Several denoisers of one kind, each for a stretch of the way from noise to sample."""

    denoiser: Literal["experts"]
    num: int = Field(gt=1, le=64)
    """Denoisers."""
    rungs: int = Field(gt=1, le=100_000)
    """Steps of a sampler, which they share evenly."""
    null_label: int | None = Field(default=None, ge=0)
    """The class that stands for no condition, where their own config does not tell."""
    each: dict[str, Any]
    """The config of one of them, without schedule and prediction."""

    @model_validator(mode="after")
    def of_one_network_each(self) -> "ExpertsFile":
        if self.scale_dim is not None or self.each.get("scale_dim") is not None:
            raise ValueError("scale_dim: null, since experts hear no scale of guidance")
        if self.each.get("denoiser") == "experts" or not is_denoising(self.each) or self.rungs % self.num:
            raise ValueError("each: the config of a denoiser that is no experts itself, and rungs that are a multiple of num")
        return self

    def build(self, where: str) -> nn.Module:
        kind, parts = self.each.get("denoiser"), []
        for _ in range(self.num):
            if kind is None:
                part = of_class(self.each["_class_name"], {name: value for name, value in self.each.items() if name[0] != "_"}, where)
                part.parametrisation = self.known(self.null_label)  # type: ignore[assignment]
            else:
                part = build({**self.each, "noise": self.noise.model_dump(mode="json"), "predicts": self.predicts}, f"{where}  each")
            parts.append(part)
        return Experts(parts, self.rungs)


FILES: dict[str, type[DenoiserFile]] = {
    "gaussian_mixture": MixtureFile,
    "mlp": MLPFile,
    "unet_2d": DiffusersFile,
    "dit": DiffusersFile,
    "experts": ExpertsFile,
}


def of_class(name: str, arguments: Mapping[str, Any], where: str, known: Sequence[str] = tuple(CLASSES.values())) -> nn.Module:
    """A module of one of the known classes of diffusers, in eval mode."""
    try:
        import diffusers
    except ImportError:
        raise Refused("extra", where, "the package diffusers", "not installed", "pip install 'limbeck[diffusion]'", 3) from None
    if name not in known:
        do = f"use a denoiser of {', '.join(known)}"
        raise Refused("family", where, f"a denoiser that limbeck can ask: {', '.join(known)}", quoted(name), do)
    with foreign(where, f"options that {name} accepts"):
        module = getattr(diffusers, name)(**arguments)
    for part in module.modules():
        if hasattr(part, "dropout_prob") and hasattr(part, "token_drop"):  # it would leave out labels by itself, with other random numbers
            part.dropout_prob = 0.0
    return module.eval()


def is_denoising(config: Any) -> bool:
    """Whether the plain values of a config are of a denoiser."""
    return isinstance(config, Mapping) and ("denoiser" in config or config.get("_class_name") in CLASSES.values())


def described(reference: Reference) -> dict[str, Any] | None:
    """The plain config of a reference that names a denoiser; None for any other."""
    config = plain_config(reference)
    if not is_denoising(config):
        return None
    check_sizes(existing(reference), config)
    return dict(config)


def build(config: Mapping[str, Any], where: str, folder: Path | None = None, device: str = "cpu") -> nn.Module:
    """A module of a config with random weights from its seed; it carries its `parametrisation`.

    Raises:
        Refused: `key`, `value` or `kind`, with the field; `extra` without diffusers; `noise`, where a schedule is not known.
    """
    seed = config.get("seed", 0)
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.default_generator.manual_seed(seed if type(seed) is int and 0 <= seed < 2**63 else 0)
        if "denoiser" not in config:
            plain = {key: value for key, value in config.items() if not key.startswith("_")}
            module = of_class(config["_class_name"], plain, where)
            module.parametrisation = beside(folder, where)  # type: ignore[assignment]
            return hearing(module, where)
        kind = config["denoiser"]
        if kind not in FILES:
            raise Refused("kind", f"{where}  denoiser", f"one of {', '.join(FILES)}", quoted(kind), f"write denoiser: {nearest(str(kind), FILES)}")
        return hearing(validate(FILES[kind], dict(config), where).build(where).eval(), where)


def hearing(module: Any, where: str) -> nn.Module:
    """The module with an input for the scale of guidance, where its parametrisation knows of one."""
    dim = module.parametrisation.scale_dim
    return module if dim is None else with_projection(module, dim, where, zero=False).eval()


def open_folder(path: Path, config: Mapping[str, Any], where: str) -> nn.Module:
    """The module of a folder with its weights."""
    return with_weights(path, lambda device: build(config, where, path, device), where)


def with_weights(path: Path, make: Callable[[str], nn.Module], where: str) -> nn.Module:
    """A module that is made on a device, with the weights of a folder, which are checked before they are read."""
    from safetensors.torch import load_file

    if not (path / WEIGHTS).is_file():
        raise Refused("reference", where, f"weights: {WEIGHTS}", describe(path), "name the folder that save_pretrained of diffusers wrote")
    stored = check_safetensors(inside(path, WEIGHTS))
    asked = sum(x.numel() for x in make("meta").state_dict().values())
    if asked > (there := sum(torch.Size(tensor.shape).numel() for tensor in stored.values())):
        raise corrupt(where, f"{asked:,} weights, as the config says", f"{there:,}")
    return filled(make("cpu"), load_file(path / WEIGHTS), where)


def beside(folder: Path | None, where: str) -> Parametrisation:
    """What lies beside a network of diffusers: our own file, or the config of a scheduler in the folder or in `scheduler` next to it."""
    places = [] if folder is None else [folder / OWN, folder / SCHEDULER, folder.parent / "scheduler" / SCHEDULER]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        do = f"copy {SCHEDULER} of its pipeline into the folder"
        raise Refused("noise", where, f"the schedule that it was trained with: {SCHEDULER}", "none beside the weights", do)
    values = read_json(found, 1_000_000)
    return validate(Parametrisation, values, str(found)) if found.name == OWN else of_scheduler(values, str(found))


def of_scheduler(values: Mapping[str, Any], where: str) -> Parametrisation:
    """The parametrisation that the config of a scheduler of diffusers tells.

    Raises:
        Refused: `noise`, for one whose schedule or prediction is not known, or where both do not go together.
    """
    flow = str(values.get("_class_name", "")).startswith("FlowMatch")
    if unread := [name for name in ("use_dynamic_shifting", "use_flow_sigmas") if values.get(name)]:
        expected, do = "a schedule that does not depend on the size of a sample, of its own kind", f"write {OWN} beside the weights"
        raise Refused("noise", f"{where}  {unread[0]}", expected, "true", do)
    if flow:
        noise: dict[str, Any] = {"kind": "rectified_flow", "shift": values.get("shift", 1.0)}
        kind = values.get("prediction_type", "flow_prediction")
    elif str(values.get("_class_name", "")).startswith("EDM") and values.get("sigma_schedule", "karras") == "karras":
        names = {"least": ("sigma_min", 0.002), "most": ("sigma_max", 80.0), "sigma_data": ("sigma_data", 0.5), "rho": ("rho", 7.0)}
        noise = {"kind": "edm", **{ours: values.get(theirs, usual) for ours, (theirs, usual) in names.items()}}
        if (kind := values.get("prediction_type", "epsilon")) != "epsilon":
            raise Refused("noise", f"{where}  prediction_type", "epsilon, beside the scaling of EDM", quoted(kind), f"write {OWN} beside the weights")
        return validate(Parametrisation, {"noise": noise, "predicts": "preconditioned"}, where)
    elif values.get("beta_schedule") in BETAS and values.get("trained_betas") is None:
        noise = {"kind": "vp", "betas": BETAS[values["beta_schedule"]], "steps": values.get("num_train_timesteps", 1000)}
        noise |= {"start": values.get("beta_start", 1e-4), "end": values.get("beta_end", 0.02)}
        noise |= {"zero_terminal": values.get("rescale_betas_zero_snr", False)}
        kind = values.get("prediction_type", "epsilon")
    else:
        got = f"{values.get('_class_name')}, beta_schedule {quoted(values.get('beta_schedule'))}"
        raise Refused("noise", where, f"a schedule of {', '.join(BETAS)}, or of flow matching", got, f"write {OWN} beside the weights")
    if kind not in TYPES or not flow and kind == "flow_prediction":
        known = ", ".join(name for name in TYPES if flow or name != "flow_prediction")
        raise Refused("noise", f"{where}  prediction_type", f"one of {known}", quoted(kind), f"write {OWN} beside the weights")
    return validate(Parametrisation, {"noise": noise, "predicts": TYPES[kind]}, where)


def scheduler_of(known: Parametrisation) -> dict[str, Any] | None:
    """The config of a scheduler of diffusers that samples along this schedule; None where there is none."""
    noise: Any = known.noise
    if isinstance(noise, RectifiedFlow) and known.predicts == "velocity":
        return {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": noise.shift}
    if isinstance(noise, EDM) and known.predicts == "preconditioned":
        sigmas = {"sigma_min": noise.least, "sigma_max": noise.most, "sigma_data": noise.sigma_data, "rho": noise.rho, "sigma_schedule": "karras"}
        return {"_class_name": "EDMEulerScheduler", **sigmas, "prediction_type": "epsilon"}
    if not isinstance(noise, VP):
        return None
    return {
        "_class_name": "DDIMScheduler",
        "beta_schedule": next(name for name, ours in BETAS.items() if ours == noise.betas),
        "beta_start": noise.start,
        "beta_end": noise.end,
        "num_train_timesteps": noise.steps,
        "rescale_betas_zero_snr": noise.zero_terminal,
        "prediction_type": {"epsilon": "epsilon", "denoised": "sample", "velocity": "v_prediction"}[known.predicts],
        "timestep_spacing": "trailing",
        "clip_sample": False,
    }
