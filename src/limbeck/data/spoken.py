"""Words and sentences that a program speaks on the spot."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from limbeck.data._espeak import RATE, Utterance, check, said, version
from limbeck.data._sounds import Sounds, resampled
from limbeck.data.base import Place
from limbeck.errors import Refused
from limbeck.signals import Row
from limbeck.store import sha256_json

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ACCENTS = ("en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp")
VARIANTS = ("m1", "m3", "m7", "f1", "f2", "f5")
"""Men and women whose formants, breath and roughness differ."""
LONGEST = 40
"""Letters of a word or a phrase."""


class Spoken(Sounds):
    """Has espeak-ng speak words, each clip with a voice, speed and pitch of its own, from nothing but a seed.

    Needs the program (`apt-get install espeak-ng`), and no download beside it. The words are the classes, as many clips of each; with `most`
    up to so many of them follow each other in one utterance, and the row holds them as its transcript, for models that write what they hear.
    Silence before and after is cut off. Real words of synthetic voices: clearer than what people say, and the same few voices speak what is
    trained on and what is held out. For trials of recognition where nothing may be downloaded; for figures that others can compare, read
    recordings with `sound_folder`. The same seed gives the same clips with the same version of the program, which the provenance names.

    Example:
        >>> Spoken(words=["yes", "no"], num=100).split
        0.2

    References:
        Dunn and others, eSpeak NG text-to-speech, 2015-2022 (a formant synthesizer; GPL-3.0-or-later, which does not cover what it speaks).
        Warden, Speech Commands: A Dataset for Limited-Vocabulary Speech Recognition, 2018, arXiv:1804.03209 (single words as classes).
    """

    kind: Literal["spoken"] = "spoken"
    names_classes: ClassVar[bool] = True
    split: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Share of clips that is held out for evaluation, chosen by hash."""
    words: tuple[str, ...] = Field(default=DIGITS, min_length=2, max_length=1000)
    """What is said, and the names of the classes, numbered in this order: letters, spaces, hyphens and apostrophes."""
    num: Annotated[int, Field(ge=2)] = 1000
    """So many clips, as many of each word."""
    voices: tuple[str, ...] = Field(default=tuple(f"{accent}+{variant}" for accent in ACCENTS for variant in VARIANTS), min_length=1)
    """Voices of the program: a language (`espeak-ng --voices`), or one with a variant (`espeak-ng --voices=variant`) behind a plus."""
    slowest: Annotated[int, Field(ge=80, le=300)] = 130
    """Least speed in words a minute."""
    fastest: Annotated[int, Field(ge=80, le=300)] = 220
    """Greatest speed in words a minute."""
    lowest: Annotated[int, Field(ge=0, le=99)] = 30
    """Least pitch, where 50 is that of the voice."""
    highest: Annotated[int, Field(ge=0, le=99)] = 70
    """Greatest pitch, where 50 is that of the voice."""
    most: Annotated[int, Field(ge=0, le=10)] = 0
    """So many words at most in a clip, with them as its transcript; 0: one, and its class."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of all that is drawn: not the run's, so that all runs hear the same clips."""

    @field_validator("words")
    @classmethod
    def are_words(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for word in value:
            plain = len(word) <= LONGEST and word == " ".join(word.split()) and any(c.isalpha() for c in word)
            if not plain or not all(c.isalpha() or c in " -'’" for c in word):
                raise ValueError(f"{word[:LONGEST]!r}: up to {LONGEST} letters, hyphens and apostrophes, with single spaces between them")
        if len({word.casefold() for word in value}) < len(value):
            raise ValueError("each word once")
        return value

    @model_validator(mode="after")
    def in_order(self) -> "Spoken":
        if self.slowest > self.fastest:
            raise ValueError("slowest: at most fastest")
        if self.lowest > self.highest:
            raise ValueError("lowest: at most highest")
        if self.num < len(self.words):
            raise ValueError(f"num: at least {len(self.words)}, one clip of each word")
        return self

    @classmethod
    def example(cls) -> "Spoken":
        return cls(words=("yes", "no"), num=20, voices=("en-us", "en-gb+f2"), rate=8000)

    def read(self, place: Place, path: str | None) -> tuple[list[Row], Mapping[str, Any], list[str]]:
        if path is not None:
            raise Refused("key", "data spoken  held_out", "clips, of which split holds out a share", f"held_out: {path}", "remove held_out")
        check(self.voices)
        drawn = [self.drawn(i) for i in range(self.num)]
        of = defaultdict(list)
        for i, (_, voice, _) in enumerate(drawn):
            of[voice].append(i)
        made = {i: sound for voice, clips in of.items() for i, sound in zip(clips, said(voice, [drawn[i][0] for i in clips]), strict=True)}
        waves = [self.loud(made[i], peak) for i, (_, _, peak) in enumerate(drawn)]
        if self.most:
            rows = self.made(waves, [None] * self.num, (), [utterance.words for utterance, _, _ in drawn])
        else:
            rows = self.made(waves, [i % len(self.words) for i in range(self.num)], self.words)
        name = f"spoken by espeak-ng {version()}"
        return rows, {"name": name, "sha256": sha256_json([row.key for row in rows]), "rows": len(rows), "licence": self.licence}, []

    def loud(self, sound: Float[np.ndarray, " instant"], peak: float) -> Float[Tensor, " other"]:
        """A sound at the rate and with the peak that are wanted."""
        wave = resampled(torch.from_numpy(sound.copy()), RATE, self.rate)
        return (wave * (peak / wave.abs().max())).float()

    def drawn(self, i: int) -> tuple[Utterance, str, float]:
        """What clip i says and how, its voice, and its peak."""
        draw = np.random.default_rng((self.seed, i))
        more = draw.integers(len(self.words), size=i % self.most if self.most else 0)
        words = " ".join(self.words[j] for j in (i % len(self.words), *more))
        voice = self.voices[draw.integers(len(self.voices))]
        speed, pitch = (int(draw.integers(*ends, endpoint=True)) for ends in ((self.slowest, self.fastest), (self.lowest, self.highest)))
        return Utterance(words, speed, pitch), voice, draw.uniform(0.1, 0.9)
