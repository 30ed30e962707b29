"""What sources of sounds share: waveforms read from files, brought to one rate, and rows that hold them, named by their content."""

import hashlib
import math
import wave
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from limbeck.component import short
from limbeck.data.base import Source, key_of
from limbeck.signals import Row

CROSSINGS = 16
"""Zero crossings of the sinc on each side of a sample that is made between others."""
MOST_SECONDS = 3600
CODED = (".flac", ".ogg", ".opus", ".mp3")
"""Beside .wav: read by soundfile, where it is installed."""


class BadSound(Exception):
    """Why a file is no sound."""


class Sounds(Source):
    """Rows of a waveform from -1 to 1 with its rate, and a class where there are any; the name of the class is the row's tag.

    The split is by a hash of the waveform, so that a clip that comes twice is on one side.
    """

    makes: ClassVar[str] = "audio"

    rate: Annotated[int, Field(ge=1000, le=192_000)] = 16_000
    """Numbers a second that all are brought to."""
    num: Annotated[int, Field(gt=0)] | None = None
    """So many clips at most, chosen by a hash of their content; none: all."""

    def made(
        self, waves: Sequence[Float[Tensor, " instant"]], labels: Sequence[int | None], names: Sequence[str], words: Sequence[str] | None = None
    ) -> list[Row]:
        """Rows of some clips; with `words`, what is said in each is the answer to an empty prompt, with a space before it as in running text."""
        hashes = [hashlib.sha256(one.numpy().tobytes()).hexdigest()[:24] for one in waves]
        chosen = range(len(hashes)) if self.num is None else sorted(sorted(range(len(hashes)), key=hashes.__getitem__)[: self.num])
        out = []
        for i in chosen:
            label = labels[i]
            content = {"wave": waves[i], "rate": self.rate, **({} if label is None else {"label": label})}
            content |= {} if words is None else {"prompt": "", "answer": f" {words[i]}"}
            key = key_of(hashes[i], str(self.rate), str(label), *(() if words is None else (words[i],)))
            out.append(Row(key, content, "" if label is None else names[label], source=hashes[i]))
        return out


def heard(file: Path, root: Path) -> tuple[Float[np.ndarray, "instant channel"], int]:
    """What a file holds, in float64 from -1 to 1, and its rate; raises `BadSound`."""
    if not file.resolve().is_relative_to(root.resolve()):
        raise BadSound("a link that leads out of the folder")
    try:
        found, rate = pcm(file) if file.suffix.lower() == ".wav" else coded(file)
    except wave.Error as error:  # not of whole numbers, or no WAV at all
        try:
            found, rate = coded(file)
        except BadSound as reason:
            raise BadSound(f"{error}; {reason}") from None
    except (OSError, EOFError, ValueError) as error:
        raise BadSound(short(f"{type(error).__name__}: {error}".replace(str(file), file.name), 160)) from None
    if not len(found):
        raise BadSound("nothing in it")
    if not np.isfinite(found).all():
        raise BadSound("numbers that are not finite")
    return found, rate


def pcm(file: Path) -> tuple[Float[np.ndarray, "instant channel"], int]:
    """A WAV file of whole numbers, by the standard library."""
    with wave.open(str(file), "rb") as opened:
        channels, width, rate, number = opened.getnchannels(), opened.getsampwidth(), opened.getframerate(), opened.getnframes()
        if not 0 < rate <= 768_000 or not 0 < channels <= 64 or number > rate * MOST_SECONDS:
            raise BadSound(f"{channels} channels, {rate:,} numbers a second, {number:,} of them")
        content = opened.readframes(number)
    if len(content) != number * width * channels:
        raise BadSound(f"cut short: {len(content):,} bytes of {number * width * channels:,}")
    if width == 1:  # the one format without a sign
        plain = np.frombuffer(content, np.uint8).astype(np.int32) - 128
    elif width == 3:
        three = np.frombuffer(content, np.uint8).reshape(-1, 3)
        plain = np.concatenate([np.zeros_like(three[:, :1]), three], 1).view("<i4")[:, 0] >> 8
    else:
        plain = np.frombuffer(content, f"<i{width}")
    return plain.reshape(-1, channels) / 2.0 ** (8 * width - 1), rate


def coded(file: Path) -> tuple[Float[np.ndarray, "instant channel"], int]:
    """Any other file, by soundfile."""
    try:
        import soundfile
    except ImportError:
        raise BadSound("other formats than WAV of whole numbers need soundfile: pip install 'limbeck[speech]'") from None
    try:
        if soundfile.info(file).duration > MOST_SECONDS:
            raise BadSound(f"longer than {MOST_SECONDS:,} seconds")
        found, rate = soundfile.read(file, always_2d=True)
    except soundfile.SoundFileError as error:
        raise BadSound(short(str(error).replace(str(file), file.name), 160)) from None
    return found, int(rate)


def resampled(wave: Float[Tensor, " instant"], old: int, new: int) -> Float[Tensor, " other"]:
    """A waveform at another rate, by a windowed sinc that lets nothing pass above the lower half rate."""
    if old == new:
        return wave
    cut = min(1.0, new / old)  # of the old half rate
    reach = math.ceil(CROSSINGS / cut)
    common, number = math.gcd(old, new), max(1, round(len(wave) * new / old))
    step, period = old // common, new // common  # after so many new samples, and old ones, the same weights come again
    phase = torch.arange(min(period, number), device=wave.device)
    first = phase * step // period
    gap = (phase * step % period).double()[:, None] / period - torch.arange(-reach + 1, reach + 1, device=wave.device)
    weights = torch.cos(math.pi / 2 * (gap / reach).clamp(-1, 1)) ** 2 * torch.sinc(cut * gap) * cut
    near = torch.nn.functional.pad(wave.double(), (reach - 1, reach + 1)).unfold(0, 2 * reach, 1)
    out = []
    for some in torch.arange(number, device=wave.device).split(1 << 15):
        turn = some % period
        out.append((near[some // period * step + first[turn]] * weights[turn]).sum(1))
    return torch.cat(out).to(wave.dtype)
