"""Sounds in a folder, named or sorted after their classes, or with what is said in them."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from limbeck.component import short
from limbeck.data._files import finish
from limbeck.data._sounds import CODED, BadSound, Sounds, heard, resampled
from limbeck.data._transcripts import Transcripts
from limbeck.data.base import Place
from limbeck.errors import Refused
from limbeck.signals import Row

SUFFIXES = (".wav", *CODED)


class SoundFolder(Sounds):
    """Reads sounds from a folder and those below it: WAV by itself, FLAC, OGG and MP3 where soundfile is installed.

    Clips may have any rate and length; all are brought to one rate, with a note that says how many were. Classes are the folders that hold the files,
    or what stands before the first `_` of their names (`7_jackson_32.wav`), numbered in the order of their names, held-out ones as those of
    `path`. All waveforms are in memory: 64 KB a second at 16 kHz. A file that cannot be read is named; so many as `max_bad` allows are left out,
    with a count. With `transcripts` a row holds what is said in place of a class, for models that write it; then a clip without a transcript, or
    one longer than `longest`, whose transcript would say more than is heard, counts as one that cannot be read.

    Example:
        >>> SoundFolder(path="digits", label="name", max_bad=3).rate
        16000
        >>> SoundFolder(path="read/aloud", transcripts="*.trans.txt", longest=30).transcripts
        '*.trans.txt'

    References:
        Jackson, Free Spoken Digit Dataset, 2016 (names that begin with the class).
        Panayotov et al., LibriSpeech: an ASR corpus based on public domain audio books, 2015 (lists of transcripts).
    """

    kind: Literal["sound_folder"] = "sound_folder"
    names_classes: ClassVar[bool] = True
    path: str
    """The folder; a relative one starts at the recipe."""
    label: Literal["folder", "name", "none"] = "folder"
    """Where the class of a clip is written: the folder that holds it, the beginning of its name, or nowhere."""
    channels: Literal["mix", "refuse"] = "mix"
    """What becomes of a file of several channels: their mean is heard, or it counts as a bad one."""
    shortest: Annotated[float, Field(ge=0)] = 0.1
    """Seconds below which a clip is left out, with a count."""
    longest: Annotated[float, Field(gt=0)] = 15.0
    """Seconds after which a clip is cut off."""
    transcripts: str | None = Field(default=None, min_length=1, json_schema_extra={"since": 2})
    """Where it is written what is said: `beside` (NAME.txt for NAME.wav), or how files are called that list it (`transcription`, `*.trans.txt`), a
    line being `NAME words`, or `<s> words </s> (NAME)`. None: nowhere; rows have classes, as `label` says."""
    max_bad: Annotated[int, Field(ge=0)] = 0
    """So many files that are no sounds may be left out, with a note; one more stops the run."""

    @model_validator(mode="after")
    def lengths_in_order(self) -> "SoundFolder":
        if self.longest < self.shortest:
            raise ValueError("longest: at least shortest")
        return self

    @classmethod
    def example(cls) -> "SoundFolder":
        return cls(path="sounds", rate=8000, shortest=0.01, longest=0.06, split=0.2)

    def read(self, place: Place, path: str | None) -> tuple[list[Row], Mapping[str, Any], list[str]]:
        root = Path(place.base) / (path or self.path)
        files = sorted(file for file in root.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file()) if root.is_dir() else []
        if not files:
            got = "no folder" if not root.is_dir() else "none"
            raise Refused("data", f"data sound_folder  path: {short(str(root))}", "sounds in a folder", got, "correct path")
        said = None if self.transcripts is None else Transcripts(root, self.transcripts)
        waves: dict[Path, Float[Tensor, " instant"]] = {}
        bad, brief, rates = [], 0, Counter[int]()
        for file in files:
            try:
                found, rate = self.one(file, root)
                if said is not None:
                    self.suits(found, rate, said.of(file))
            except BadSound as reason:
                bad.append(f"{file}: {reason}")
                if len(bad) > self.max_bad:
                    do = f"replace it, or set max_bad: {len(bad)} to leave so many out"
                    expected = f"at most {self.max_bad} files that are no sounds"
                    raise Refused("data", f"data sound_folder  {file}", expected, str(reason), do) from None
                continue
            rates[rate] += 1
            if len(found) < self.shortest * rate:
                brief += 1
            else:
                waves[file] = resampled(found[: int(self.longest * rate)], rate, self.rate).float()
        names = sorted({self.name(file) for file in waves}) if self.label != "none" and said is None else []
        words = None if said is None else [said.of(file) or "" for file in waves]
        rows = self.made(list(waves.values()), [names.index(self.name(file)) if names else None for file in waves], names, words)
        notes = [f"sound_folder: {len(bad):,} files that are no sounds left out, the first {bad[0]}"] if bad else []
        notes += [f"sound_folder: {brief:,} clips shorter than {self.shortest:g} s left out"] if brief else []
        if moved := {rate: number for rate, number in sorted(rates.items()) if rate != self.rate}:
            told = ", ".join(f"{number:,} from {rate:,}" for rate, number in moved.items())
            notes.append(f"sound_folder: clips brought to {self.rate:,} numbers a second: {told}")
        read = [*waves, *(said.files(waves) if said is not None else ())]
        return finish(self, rows, notes, path or self.path, read or files, split=path is None)

    def suits(self, wave: Float[Tensor, " instant"], rate: int, words: str | None) -> None:
        """Raises `BadSound` where a transcript is missing, or says more than is heard."""
        if words is None:
            raise BadSound(f"no transcript ({self.transcripts})")
        if len(wave) > self.longest * rate:
            raise BadSound(f"{len(wave) / rate:,.1f} s, longer than {self.longest:g}: its transcript would say more than is heard")

    def one(self, file: Path, root: Path) -> tuple[Float[Tensor, " instant"], int]:
        """The waveform of a file, and its rate."""
        found, rate = heard(file, root)
        if self.channels == "refuse" and found.shape[1] > 1:
            raise BadSound(f"{found.shape[1]} channels")
        return torch.from_numpy(found.mean(1)), rate

    def name(self, file: Path) -> str:
        """The class that is written at a file."""
        return file.parent.name if self.label == "folder" else file.stem.partition("_")[0]
