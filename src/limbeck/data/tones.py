"""Tones whose pitch is known at every moment, made on the spot."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field, model_validator

from limbeck.data._sounds import Sounds
from limbeck.data.base import Place
from limbeck.errors import Refused
from limbeck.signals import Row
from limbeck.store import sha256_json

WAYS = ("steady", "glide", "vibrato")
HARMONICS = 20
"""At most, as far as the rate holds them."""
FRAMES = 100
"""A second: how often the pitch is told."""


class Tones(Sounds):
    """Makes tones with harmonics and noise, and tells the pitch every 10 ms, from nothing but a seed.

    Of each clip are drawn: pitch (evenly over the logarithm), how steeply harmonics fall and how each deviates (the lowest may be nearly gone),
    loudness, duration, and noise. A third of the clips keep their pitch, a third glide, a third have vibrato; some pause, where only noise is
    heard and the pitch is told as 0. For trials and tests of pitch trackers: labels are exact, which no annotator's are. Neither voices nor
    instruments: a tracker that is good at these may be poor at music.

    Example:
        >>> Tones(num=100, highest=800.0).split
        0.2

    References:
        Kim, Salamon, Li and Bello, CREPE: A Convolutional Representation for Pitch Estimation, 2018, arXiv:1802.06182 (resynthesised music, whose
        pitch is known exactly).
    """

    kind: Literal["tones"] = "tones"
    split: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Share of clips that is held out for evaluation, chosen by hash."""
    licence: str | None = "CC0-1.0"
    """Licence of the clips, for the model card."""
    num: Annotated[int, Field(ge=3)] = 1000
    """So many clips, a third of them in each of the three ways."""
    seconds: Annotated[float, Field(ge=0.1, le=10)] = 0.5
    """How long a clip is on average; each is up to a third longer or shorter."""
    lowest: Annotated[float, Field(ge=32)] = 65.0
    """The least pitch in Hz."""
    highest: Annotated[float, Field(le=1975)] = 1000.0
    """The greatest pitch in Hz."""
    low: float = 0.0
    """Least ratio of tone to noise in dB."""
    high: float = 30.0
    """Greatest ratio of tone to noise in dB."""
    pauses: Annotated[float, Field(ge=0, le=1)] = 0.3
    """Share of clips that pause for a fifth to a third of their time."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of all that is drawn: not the run's, so that all runs hear the same clips."""

    @classmethod
    def example(cls) -> "Tones":
        return cls(num=9, seconds=0.1)

    @model_validator(mode="after")
    def in_order(self) -> "Tones":
        if not self.lowest < self.highest < self.rate / 4:
            raise ValueError("lowest: below highest, and that below a quarter of rate")
        if self.low > self.high:
            raise ValueError("low: at most high")
        if self.rate % FRAMES:
            raise ValueError("rate: a multiple of 100, for the pitch is told every 10 ms")
        return self

    def read(self, place: Place, path: str | None) -> tuple[list[Row], Mapping[str, Any], list[str]]:
        if path is not None:
            raise Refused("key", "data tones  held_out", "clips, of which split holds out a share", f"held_out: {path}", "remove held_out")
        clips = [self.clip(WAYS[i % len(WAYS)], np.random.default_rng((self.seed, i))) for i in range(self.num)]
        rows = self.made([torch.from_numpy(wave) for wave, _ in clips], [None] * len(clips), ())
        rows = [
            replace(row, content={**row.content, "pitch": torch.from_numpy(pitch)}, tag=WAYS[i % len(WAYS)])
            for i, (row, (_, pitch)) in enumerate(zip(rows, clips, strict=True))
        ]
        facts = {"name": "tones made by limbeck", "sha256": sha256_json([row.key for row in rows]), "rows": len(rows), "licence": self.licence}
        return rows, facts, []

    def clip(self, way: str, draw: np.random.Generator) -> tuple[Float[np.ndarray, " instant"], Float[np.ndarray, " frame"]]:
        """One clip, and its pitch in the middle of each frame."""
        number = round(self.rate * self.seconds * draw.uniform(2 / 3, 4 / 3))
        time = np.arange(number) / self.rate
        middle = self.lowest * (self.highest / self.lowest) ** draw.uniform()
        pitch = np.clip(middle * 2 ** (self.bend(way, time, draw) / 1200), self.lowest, self.highest)
        tone = self.tone(pitch, draw)
        heard = np.ones(number, dtype=bool)
        if draw.uniform() < self.pauses:
            long = draw.uniform(1 / 5, 1 / 3) * number
            first = draw.uniform(0, number - long)
            heard[int(first) : int(first + long)] = False
        tone *= heard
        noise = draw.standard_normal(number)
        noise *= np.sqrt((tone**2).sum() / max(1, heard.sum()) / (noise**2).mean() / 10 ** (draw.uniform(self.low, self.high) / 10))
        sound = tone + noise
        sound *= draw.uniform(0.1, 0.9) / np.abs(sound).max()
        at = np.minimum(np.arange(number // (self.rate // FRAMES) + 1) * (self.rate // FRAMES), number - 1)
        return sound.astype(np.float32), np.where(heard[at], pitch[at], 0).astype(np.float32)

    @staticmethod
    def bend(way: str, time: Float[np.ndarray, " instant"], draw: np.random.Generator) -> Float[np.ndarray, " instant"]:
        """How far the pitch is from where the clip stands, in cents."""
        if way == "glide":
            return draw.uniform(-500, 500) * (time / time[-1] - 0.5)
        if way == "vibrato":
            return draw.uniform(20, 80) * np.sin(2 * math.pi * (draw.uniform(4, 8) * time + draw.uniform()))
        return np.zeros_like(time)

    def tone(self, pitch: Float[np.ndarray, " instant"], draw: np.random.Generator) -> Float[np.ndarray, " instant"]:
        """Harmonics of a pitch."""
        harmonic = np.arange(1, min(HARMONICS, int(0.9 * self.rate / 2 / pitch.max())) + 1)
        strength = draw.uniform(0.2, 1, len(harmonic)) / harmonic ** draw.uniform(0.3, 2)
        turn = np.exp(2j * math.pi * np.cumsum(pitch) / self.rate)
        wave = np.zeros(len(pitch), dtype=np.complex128)
        for each in (strength * np.exp(2j * math.pi * draw.uniform(size=len(harmonic))))[::-1]:  # by Horner's rule
            wave = (wave + each) * turn
        return wave.imag
