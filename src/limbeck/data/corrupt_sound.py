"""Noise and reverberation over the sounds of a window."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from limbeck.component import short
from limbeck.data._sounds import CODED, BadSound, heard, resampled
from limbeck.data.base import Place, Step
from limbeck.errors import Refused
from limbeck.model.waves import noise_scale
from limbeck.schedule import Scalar, Share
from limbeck.signals import Batch

TAIL = 6.907755278982137
"""ln 1000: a decay of 60 dB in amplitude."""
Wave = Float[Tensor, " instant"]


class CorruptSound(Step):
    r"""Lets the student hear each sound of a window through noise, in a room, both, or neither, while the other roles hear it clean.

    $$ r = (x * h)_{d:d+n}, \qquad y = r + \sqrt{\frac{P_r}{P_v \, 10^{s/10}}} \; v $$

    First the room, then the noise: P is mean power, that of the sound as it is in the room, r, which outside of a room is x itself. v is noise, from
    a file with the probability `file_share` and else white, at a signal-to-noise ratio of s dB, a whole number between `low` and `high`; h is the
    answer of a room, from a file or a decaying noise. A room delays what is heard by the place d of its greatest value: that is taken off, or
    else each frame would be held against another one of the teacher. Noise and room are drawn independently of each other, and at the defaults
    the four cases are equally likely. `low` and `echoing` may follow a schedule over windows, from easy to hard. Each row is drawn by its own key
    and the window's number; rows keep their names as long as the student alone hears them changed. Silent sounds stay silent.

    Example:
        >>> CorruptSound(low=0, high=10).hears
        ('student',)

    References:
        Guimarães et al., RobustDistiller: Compressing Universal Speech Representations for Enhanced Environment Robustness, 2023, arXiv:2302.09437.
        Ko et al., A Study on Data Augmentation of Reverberant Speech for Robust Speech Recognition, 2017, ICASSP.
    """

    kind: Literal["corrupt_sound"] = "corrupt_sound"
    inputs: ClassVar[tuple[str, ...]] = ("wave",)
    noisy: Share = 0.5
    """Share of rows with noise."""
    echoing: Share = 0.5
    """Share of rows in a room, whether there is noise or not."""
    low: Scalar = 0.0
    """Least signal-to-noise ratio in dB; rounded to a whole number where a schedule moves it."""
    high: int = 20
    """Greatest signal-to-noise ratio in dB."""
    noise: str | None = None
    """A folder of noises, at any rate; none: all noise is white."""
    file_share: Annotated[float, Field(ge=0, le=1)] = 0.7
    """Probability that a noise is from the folder, where there is one."""
    rooms: str | None = None
    """A folder of answers of rooms to an impulse, of which the first channel counts; none: noise that falls by 60 dB in 0.2 to 0.8 s behind a first
    peak."""
    hears: Annotated[tuple[str, ...], Field(min_length=1)] = ("student",)
    """Roles that hear the changed sounds."""

    @model_validator(mode="after")
    def ratios_in_order(self) -> "CorruptSound":
        if isinstance(self.low, (int, float)):
            if self.low != round(self.low):
                raise ValueError(f"low: a whole number of dB, not {self.low:g}, where no schedule moves it")
            if self.low > self.high:
                raise ValueError("low: at most high")
        return self

    def window(self, batch: Batch, place: Place, memory: object) -> Batch:
        now: Any = self.at(place.window)
        views = {role: batch.view(role) for role in dict.fromkeys(("student", *place.models, *batch.views))}
        for role in self.hears:
            view, models = batch.view(role), place.models
            if "wave" not in view.inputs or view.instants is None or role not in models:
                got = ", ".join(view.inputs) if role in models else f"no role {role}"
                raise Refused("data", "data corrupt_sound", "roles that hear sounds", got, "use a source of sounds, or correct hears")
            rate = models[role].hearing.rate  # type: ignore[union-attr]
            waves = view.inputs["wave"].split(view.instants.tolist())
            drawn = [place.streams("corrupt_sound", place.window, key) for key in batch.keys]
            changed = [now.changed(x, rate, draw, place.base) for x, draw in zip(waves, drawn, strict=True)]
            views[role] = replace(view, inputs={**view.inputs, "wave": torch.cat(changed) if changed else view.inputs["wave"]})
        keys = batch.keys if self.hears == ("student",) else tuple(f"{key}~{place.window}" for key in batch.keys)
        return replace(batch, views=views, keys=keys)

    def changed(self, wave: Wave, rate: int, draw: torch.Generator, base: str) -> Wave:
        """One sound as it is heard."""
        noisy, echoing, filed, which, start = torch.rand(5, generator=draw, dtype=torch.float64, device="cpu").tolist()
        ratio = int(torch.randint(round(float(self.low)), self.high + 1, (), generator=draw, device="cpu"))  # type: ignore[arg-type]
        heard_now = wave.cpu()
        if echoing < self.echoing:  # type: ignore[operator]
            rooms = files(str(Path(base) / self.rooms), rate, "first") if self.rooms else ()
            heard_now = echoed(heard_now, rooms[int(which * len(rooms))] if rooms else room(rate, draw))
        if noisy < self.noisy:  # type: ignore[operator]
            noises = files(str(Path(base) / self.noise), rate) if filed < self.file_share and self.noise else ()
            if noises:
                another = float(torch.rand((), generator=draw, dtype=torch.float64, device="cpu"))  # not the number that the room was picked by
                one = noises[int(another * len(noises))]
                first = int(start * max(1, len(one) - len(wave) + 1))
                noise = one.repeat(-(-len(wave) // len(one)))[first : first + len(wave)]
            else:
                noise = torch.randn(len(wave), generator=draw, device="cpu")
            heard_now = heard_now + noise * noise_scale(heard_now, noise, ratio)
        return heard_now.to(wave)


def echoed(sound: Wave, answer: Wave) -> Wave:
    """A sound in a room, as long as it was, with its direct path where it was and as loud."""
    peak, number = int(answer.abs().argmax()), len(sound)
    size = 1 << (number + len(answer) - 2).bit_length()  # a power of two: other sizes can take many times as long
    whole = torch.fft.irfft(torch.fft.rfft(sound.double(), size) * torch.fft.rfft(answer.double() / answer[peak].double(), size), size)
    return whole[peak : peak + number].to(sound.dtype)


def room(rate: int, draw: torch.Generator) -> Wave:
    """The answer of a room that is drawn: a peak, and noise that falls by 60 dB in 0.2 to 0.8 s."""
    seconds, loud = (torch.rand(2, generator=draw, dtype=torch.float64, device="cpu") * torch.tensor([0.6, 0.5], device="cpu")).tolist()
    time = torch.arange(int(rate * (0.2 + seconds)), device="cpu") / rate
    tail = torch.randn(len(time), generator=draw, device="cpu") * torch.exp(-TAIL * time / (0.2 + seconds))
    tail = tail * (0.1 + loud) / tail.abs().max()
    return torch.cat([torch.ones(1, device="cpu"), tail])


@cache
def files(folder: str, rate: int, channels: Literal["mean", "first"] = "mean") -> Sequence[Wave]:
    """All sounds of a folder, at a rate; read once. Of a room the first channel: the mean over microphones is the answer at none of them.

    Raises:
        Refused: `data`, for a folder without any, or with one that cannot be read.
    """
    root, out = Path(folder), []
    found = sorted(file for file in root.rglob("*") if file.suffix.lower() in (".wav", *CODED)) if root.is_dir() else []
    if not found:
        raise Refused("data", f"data corrupt_sound  {short(folder)}", "sounds in a folder", "none", "correct noise or rooms, or leave it out")
    for file in found:
        try:
            plain, own = heard(file, root)
        except BadSound as reason:
            raise Refused("data", f"data corrupt_sound  {file}", "a sound", str(reason), "replace or remove it") from None
        one = resampled(torch.from_numpy(plain.mean(1) if channels == "mean" else plain[:, 0].copy()), own, rate).float()
        if not one.any():
            raise Refused("data", f"data corrupt_sound  {file}", "a sound", "silence", "remove it")
        out.append(one)
    return tuple(out)
