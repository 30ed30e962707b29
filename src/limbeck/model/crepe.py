"""CREPE: a convolutional network that hears 64 ms of sound and tells its pitch, by a config, from a package, or from a folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from limbeck.component import Document, nearest, validate
from limbeck.errors import Refused
from limbeck.model.folder import WEIGHTS, check_sizes, describe, inside
from limbeck.model.from_timm import filled
from limbeck.model.headers import check_safetensors, corrupt, quoted
from limbeck.model.loading import foreign
from limbeck.model.pitch_scale import BINS, HOP, RATE
from limbeck.model.reference import Reference, existing, known, plain_config

KEY = "pitch_tracker"
"""The field by which a config says that it is one."""
FRAME = 1024
"""Numbers of a waveform that are heard at a time."""
FILTERS = (32, 4, 4, 4, 8, 16)
"""Channels of each convolution, times the size."""
SIZES = {"tiny": 4, "small": 8, "medium": 16, "large": 24, "full": 32}
EPSILON = 0.0010000000474974513
"""Added to variances by the batch norms: a thousandth in 32 bits, as the weights were trained with."""


class Crepe(nn.Module):
    """Six times convolution, ReLU, batch norm, and the greater of two neighbours; then log-odds of each pitch. Weights are named as torchcrepe
    names them, so that either opens those of the other."""

    def __init__(self, size: int):
        """Args:
        size: what the channels are multiplied by: 32 in the published network, 4 in its smallest.
        """
        super().__init__()
        channels = [number * size for number in FILTERS]
        for i, (before, after) in enumerate(zip((1, *channels), channels, strict=False), 1):
            width, stride = (512, 4) if i == 1 else (64, 1)
            self.add_module(f"conv{i}", nn.Conv2d(before, after, (width, 1), (stride, 1)))
            self.add_module(f"conv{i}_BN", nn.BatchNorm2d(after, EPSILON))  # its statistics move, as torchcrepe's do not: one may train it
        self.classifier = nn.Linear(4 * channels[-1], BINS)

    def features(self, frames: Float[Tensor, "frame instant"]) -> Float[Tensor, "frame dim"]:
        """What the last layer hears."""
        x = frames[:, None, :, None]
        for i in range(1, len(FILTERS) + 1):
            x = nn.functional.pad(x, (0, 0, 254, 254) if i == 1 else (0, 0, 31, 32))
            x = self.get_submodule(f"conv{i}_BN")(self.get_submodule(f"conv{i}")(x).relu())
            x = nn.functional.max_pool2d(x, (2, 1))
        return x.permute(0, 2, 1, 3).flatten(1)

    def forward(self, frames: Float[Tensor, "frame instant"]) -> Float[Tensor, "frame bin"]:
        """Log-odds of each bin of pitch."""
        return self.classifier(self.features(frames))


class CrepeFile(Document):
    """What a config file says of one."""

    pitch_tracker: Literal["crepe"]
    size: Literal["tiny", "small", "medium", "large", "full"] | int = Field(default="tiny")
    """A published size, or what the channels 32, 4, 4, 4, 8, 16 are multiplied by: 4 is tiny, 32 full."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Of its random weights."""
    sampling_rate: Literal[16000] = RATE
    """Numbers a second that it hears."""
    frame: Literal[1024] = FRAME
    """How many of them at a time."""
    hop: Literal[160] = HOP
    """How many from one frame to the next."""

    @property
    def factor(self) -> int:
        return SIZES[self.size] if isinstance(self.size, str) else self.size


def described(reference: Reference) -> dict[str, Any] | None:
    """The plain config of a reference that names a pitch tracker; None for any other."""
    if reference.scheme == "package":
        entry = known("packages").get(reference.name, {})
        return {KEY: entry[KEY], "size": entry["size"]} if KEY in entry else None
    config = plain_config(reference)
    if not isinstance(config, Mapping) or KEY not in config:
        return None
    check_sizes(existing(reference), config)
    return dict(config)


def build(config: Mapping[str, Any], where: str, device: str = "cpu") -> Crepe:
    """A module of a config, in eval mode, with random weights from its seed.

    Raises:
        Refused: `kind`, `key` or `value`, with the field.
    """
    kind, size = config[KEY], config.get("size", "tiny")
    if kind != "crepe":
        raise Refused("kind", f"{where}  {KEY}", "crepe", quoted(kind), f"write {KEY}: crepe")
    if isinstance(size, str) and size not in SIZES or not isinstance(size, str) and (type(size) is not int or not 1 <= size <= 64):
        do = f"write size: {nearest(size, SIZES)}" if isinstance(size, str) and nearest(size, SIZES) in SIZES else "write size: tiny"
        raise Refused("value", f"{where}  size", f"one of {', '.join(SIZES)}, or a whole number from 1 to 64", quoted(size), do)
    file = validate(CrepeFile, dict(config), where)
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.default_generator.manual_seed(file.seed)
        module = Crepe(file.factor).eval()
    module.config = {KEY: "crepe", "size": file.size}  # type: ignore[assignment]
    return module


def open_weights(reference: Reference, config: Mapping[str, Any]) -> Crepe:
    """The module of a config with the weights of a package, whose hash is pinned, or of a folder; of a config by itself with random ones."""
    where = reference.text
    if reference.scheme == "config":
        return build(config, where)
    place = existing(reference)
    if reference.scheme == "package":
        with foreign(where, "a file of tensors"):
            state = torch.load(place, map_location="cpu", weights_only=True)
        return full(config, where, state)
    return full(config, where, stored(place, config, where))


def stored(folder: Path, config: Mapping[str, Any], where: str) -> dict[str, Tensor]:
    """The weights of a folder, whose sizes are compared with the config before they are read."""
    from safetensors.torch import load_file

    if not (folder / WEIGHTS).is_file():
        raise Refused("reference", where, f"weights: {WEIGHTS}", describe(folder), "name the folder that a run has exported")
    there = sum(torch.Size(tensor.shape).numel() for tensor in check_safetensors(inside(folder, WEIGHTS)).values())
    asked = sum(x.numel() for x in build(config, where, "meta").state_dict().values())
    if asked > there:
        raise corrupt(where, f"{asked:,} weights, as the config says", f"{there:,}")
    return load_file(folder / WEIGHTS)


def full(config: Mapping[str, Any], where: str, state: Mapping[str, Tensor]) -> Crepe:
    module = build(config, where)
    filled(module, state, where)
    return module
