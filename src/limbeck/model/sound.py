"""Encoders of speech that transformers has: a waveform in, states of its frames out."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from limbeck.errors import Refused
from limbeck.model.anatomy import NAME, Anatomy, Places, read_family
from limbeck.model.base import Role, Tap, taps
from limbeck.model.headers import quoted, read_json
from limbeck.model.measured_cost import measured_cost
from limbeck.model.waves import one_wave
from limbeck.signals import Row, View
from limbeck.store import home

EXTRACTOR = "preprocessor_config.json"
"""Where a folder of transformers says what the model expects of a waveform."""
HEARD = frozenset({"hidden", "front"})
TINY = 1e-7
"""Added to the variance of a waveform, as in transformers."""
MOST_RATE = 768_000


@dataclass(frozen=True)
class Hearing:
    """What a model expects of a waveform."""

    rate: int = 16_000
    """Numbers a second."""
    normalise: bool = True
    """Each waveform is brought to mean 0 and variance 1."""

    def __call__(self, wave: Float[Tensor, " instant"]) -> Float[Tensor, " instant"]:
        """One waveform as the model hears it."""
        return (wave - wave.mean()) / (wave.var(correction=0) + TINY).sqrt() if self.normalise else wave

    @classmethod
    def read(cls, folder: Path | None) -> "Hearing":
        """From a folder of transformers; without one, or without its file, as most are.

        Raises:
            Refused: `value`, with the field.
        """
        path = folder / EXTRACTOR if folder is not None else None
        values = read_json(path, 1_000_000) if path is not None and path.is_file() else {}
        rate, normalise = values.get("sampling_rate", cls.rate), values.get("do_normalize", cls.normalise)
        if type(rate) is not int or not 0 < rate <= MOST_RATE:
            raise Refused("value", f"{path}  sampling_rate", f"a whole number from 1 to {MOST_RATE:,}", quoted(rate), "write 16000")
        if type(normalise) is not bool:
            raise Refused("value", f"{path}  do_normalize", "true or false", quoted(normalise), "write true")
        return cls(rate, normalise)


def sound_families() -> dict[str, Path]:
    """Family -> its file; one's own come before those of limbeck."""
    folders = (Path(__file__).parent / "families" / "sound", home() / "families" / "sound")
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.json")) if NAME.fullmatch(path.stem)}


def is_sound(module: Any) -> bool:
    """Whether a module is a model of transformers that takes waveforms, of a family that is known."""
    return str(getattr(getattr(module, "config", None), "model_type", "")) in sound_families()


class Sound(Role):
    """Speaks for an encoder of speech: wav2vec 2.0, HuBERT, WavLM, or what was distilled from them.

    Its positions are frames, as many as its convolutions leave of a row's waveform. `hidden.i` is what block i says of each (0: what the first
    block hears), `front` what the convolutions say, `wave` the waveform itself, `class` the label of a row. It has no answer of its own. Rows
    are heard as if each were alone, however long the others are: where the convolutions normalise over time, only rows of one length run
    together; else shorter ones are filled up and masked. What a config asks for by chance in training, masked spans and dropped blocks, is
    switched off: a teacher is followed frame by frame. Heads for pre-training or for letters are left aside.
    """

    offers = frozenset({"wave", "class"}) | HEARD
    ragged = False
    shift = 0
    compared_by = "probe"

    def __init__(self, module: Any, hearing: Hearing | None = None):
        super().__init__(getattr(module, str(getattr(module, "base_model_prefix", "")), module))
        self.hearing: Hearing = hearing or getattr(module, "hearing", None) or Hearing()
        family = read_family(sound_families()[str(getattr(self.module.config, "model_type", ""))])
        self.anatomy = Anatomy(family, type(self.module).__name__, Places())
        config: Any = self.module.config
        config.apply_spec_augment, config.layerdrop = False, 0.0
        self.num_layers = len(self.module.get_submodule(self.anatomy.path("blocks")))  # type: ignore[arg-type]

    def refuse_change(self, where, surgeries):
        if not surgeries:
            raise Refused("part", where, "a language model", type(self.module).__name__, f"remove {where}")

    @property
    def strides(self) -> tuple[tuple[int, int], ...]:
        """Width and stride of each convolution."""
        config: Any = self.module.config
        return tuple(zip(config.conv_kernel, config.conv_stride, strict=True))

    @property
    def reads_as(self) -> tuple[Any, ...]:
        """Roles whose frames are the same ones share a view."""
        return (self.hearing.rate, self.strides)

    @property
    def last_layer(self) -> str:
        """Of the last block."""
        return self.anatomy.path("block", self.num_layers - 1) + "."

    @property
    def least(self) -> int:
        """Numbers of the shortest waveform that gives a frame."""
        number = 1
        for width, stride in reversed(self.strides):
            number = (number - 1) * stride + width
        return number

    def frames(self, instants: Int[Tensor, " row"]) -> Int[Tensor, " row"]:
        """Frames of waveforms that long."""
        for width, stride in self.strides:
            instants = ((instants - width) // stride + 1).clamp(min=0)
        return instants

    def view(self, rows: Sequence[Row]) -> View:
        self.refuse(rows)
        waves = [row.content["wave"] for row in rows]
        instants = torch.tensor([len(wave) for wave in waves], dtype=torch.long, device="cpu")
        inputs = {"wave": torch.cat(waves)}
        if all("label" in row.content for row in rows):
            inputs["class"] = torch.tensor([row.content["label"] for row in rows], dtype=torch.long, device="cpu")
        return View(inputs, self.frames(instants), shift=0, instants=instants)

    def refuse(self, rows: Sequence[Row]) -> None:
        for row in rows:
            wave = one_wave(row, self.hearing.rate)
            if len(wave) < self.least:
                do = "leave out clips that short: shortest of sound_folder"
                raise Refused("length", f"row {row.key}", f"at least {self.least:,} numbers, which make a frame", f"{len(wave):,}", do)

    def tap(self, name: str) -> Tap:
        if name == "front":
            return Tap(self.anatomy.path("front"))
        number = self.layer(name)
        return Tap(self.anatomy.path("block", max(number - 1, 0)), "output" if number else "input")

    def says(self, view: View, names: Sequence[str], inject: Mapping[str, Tensor]) -> dict[str, Any]:
        if inject:
            raise Refused("inject", next(iter(inject)), "no states of frames to overwrite", "one", "use another forward")
        if "class" in names and "class" not in view.inputs:
            raise Refused("label", "rows", "a class of each row", "rows without", "use a source that knows classes: label of sound_folder")
        reads = {name: self.tap(name) for name in names if name.split(".")[0] in HEARD}
        pieces: dict[str, list[Tensor]] = {name: [] for name in reads}
        order: list[int] = []
        for rows, wave, mask in self.together(view):
            with taps(self.module, reads, {}) as heard, warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Support for mismatched key_padding_mask")  # WavLM hands torch masks of two kinds
                self.module(wave, attention_mask=mask)
            frames = view.ragged[rows].tolist() if len(rows) else [0]
            for name, x in heard.items():
                pieces[name] += [one[:number] for one, number in zip(x.mT if name == "front" else x, frames, strict=True)]
            order += rows.tolist() or [0]
        back = sorted(range(len(order)), key=order.__getitem__)
        said: dict[str, Any] = {name: torch.cat([each[i] for i in back]) for name, each in pieces.items()}
        return {name: view.inputs[name] if name in view.inputs else said[name] for name in names}

    def together(self, view: View) -> Iterator[tuple[Int[Tensor, " some"], Float[Tensor, "some longest"], Bool[Tensor, "some longest"] | None]]:
        """Rows that run together, their waveforms as the model hears them, and where those are no filling."""
        dtype, lengths = next(self.module.parameters()).dtype, view.instants
        assert lengths is not None, "these rows have no waveform"
        if not len(lengths):  # nothing cannot be run: one frame of silence is, and nobody listens
            yield lengths, torch.zeros(1, self.least, dtype=dtype, device=view.device), None
            return
        waves = [self.hearing(wave.to(dtype)) for wave in view.inputs["wave"].split(lengths.tolist())]
        every = torch.arange(len(lengths), device=lengths.device)
        apart = lengths.unique() if getattr(self.module.config, "feat_extract_norm", "group") == "group" else lengths.max()[None]
        for longest in apart:
            rows = every[lengths == longest] if len(apart) > 1 else every
            filled = nn.utils.rnn.pad_sequence([waves[i] for i in rows.tolist()], batch_first=True)
            there = torch.arange(filled.shape[1], device=lengths.device) < lengths[rows, None]
            yield rows, filled, None if there.all() else there

    def row_cost(self, rows: Sequence[Row]) -> tuple[float, float] | None:
        lengths = [len(row.content["wave"]) for row in rows if "wave" in row.content] or [self.hearing.rate]
        return measured_cost(self.module, lambda: self.module(next(self.module.parameters()).new_zeros(1, max(lengths))))
