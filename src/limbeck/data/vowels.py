"""Vowels that are made on the spot."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field

from limbeck.data._sounds import Sounds
from limbeck.data.base import Place
from limbeck.errors import Refused
from limbeck.signals import Row
from limbeck.store import sha256_json

FORMANTS = {
    "heed": (270, 2290),
    "hid": (390, 1990),
    "head": (530, 1840),
    "had": (660, 1720),
    "hod": (730, 1090),
    "hawed": (570, 840),
    "hood": (440, 1020),
    "whod": (300, 870),
    "hud": (640, 1190),
    "heard": (490, 1350),
}
"""Hz, means over 33 men (Peterson and Barney 1952, table II)."""
THIRD, WIDTH = 2500, (60, 90, 150)
"""Hz: a third formant that all share, and how wide each is."""
FADE = 0.02
"""Seconds in which a clip rises and falls."""


class Vowels(Sounds):
    """Makes ten English vowels, each clip with a voice of its own, from nothing but a seed.

    Harmonics of a gliding pitch pass two formants of the vowel and a third one. Of each clip are drawn: pitch, glide, length of the vocal
    tract (which moves all formants), loudness and duration; so neighbouring vowels overlap, as they do among people. For trials and tests,
    where nothing may be downloaded: a small network learns them in seconds. No speech: it has no words. With `words` up to so many follow each
    other in a clip, and the row holds their names as its transcript, for models that write what they hear.

    Example:
        >>> Vowels(num=100, seconds=0.25).split
        0.2

    References:
        Peterson and Barney, Control Methods Used in a Study of the Vowels, 1952, JASA 24(2).
        Klatt, Software for a Cascade/Parallel Formant Synthesizer, 1980, JASA 67(3).
    """

    kind: Literal["vowels"] = "vowels"
    split: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Share of clips that is held out for evaluation, chosen by hash."""
    licence: str | None = "CC0-1.0"
    """Licence of the clips, for the model card."""
    num: Annotated[int, Field(ge=10)] = 1000
    """So many clips, as many of each vowel."""
    seconds: Annotated[float, Field(ge=0.1, le=10)] = 0.3
    """How long a clip is on average; each is up to a third longer or shorter."""
    words: Annotated[int, Field(ge=0, le=10, json_schema_extra={"since": 2})] = 0
    """So many vowels at most in a clip, with their names as its transcript; 0: one, and its class."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of all that is drawn: not the run's, so that all runs hear the same clips."""

    @classmethod
    def example(cls) -> "Vowels":
        return cls(num=20, seconds=0.1, rate=8000)

    def read(self, place: Place, path: str | None) -> tuple[list[Row], Mapping[str, Any], list[str]]:
        if path is not None:
            raise Refused("key", "data vowels  held_out", "clips, of which split holds out a share", f"held_out: {path}", "remove held_out")
        names = tuple(FORMANTS)
        labels = [i % len(names) for i in range(self.num)]
        draws = [np.random.default_rng((self.seed, i)) for i in range(self.num)]
        more = [draw.choice(names, i % self.words) if self.words else () for i, draw in enumerate(draws)]
        said = [[names[label], *others] for label, others in zip(labels, more, strict=True)]
        waves = [torch.from_numpy(np.concatenate([self.clip(name, draw) for name in some])) for some, draw in zip(said, draws, strict=True)]
        if self.words:
            rows = self.made(waves, [None] * self.num, (), [" ".join(some) for some in said])
        else:
            rows = self.made(waves, labels, names)
        facts = {"name": "vowels made by limbeck", "sha256": sha256_json([row.key for row in rows]), "rows": len(rows), "licence": self.licence}
        return rows, facts, []

    def clip(self, name: str, draw: np.random.Generator) -> Float[np.ndarray, " instant"]:
        """One clip."""
        number = round(self.rate * self.seconds * draw.uniform(2 / 3, 4 / 3))
        time = np.arange(number) / self.rate
        pitch = draw.uniform(90, 220) * (1 + draw.uniform(-0.2, 0.2) * (time / time[-1] - 0.5))
        tract, loud = draw.uniform(0.9, 1.15), draw.uniform(0.05, 0.3)
        harmonic = np.arange(1, int(0.9 * self.rate / 2 / pitch.max()) + 1)
        strength = 1 / harmonic
        for centre, width in zip((*FORMANTS[name], THIRD), WIDTH, strict=True):
            ratio = harmonic * pitch.mean() / (centre * tract)
            strength = strength / np.sqrt((1 - ratio**2) ** 2 + (ratio * width / centre) ** 2)
        turn = np.exp(2j * math.pi * np.cumsum(pitch) / self.rate)
        wave = np.zeros(number, dtype=np.complex128)
        for each in strength[::-1]:  # by Horner's rule: a sum of sines without a sine for each
            wave = (wave + each) * turn
        sound = wave.imag
        edge = np.minimum(1, np.minimum(time, time[-1] - time) / FADE)
        sound = sound * np.sin(math.pi / 2 * edge) ** 2
        return (loud * sound / np.sqrt((sound**2).mean())).clip(-1, 1).astype(np.float32)
