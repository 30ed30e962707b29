"""Short sounds inside the report: the one function that makes a data URI."""

import base64
import io
import wave
from typing import Any

import numpy as np

MOST_BYTES = 64_000
"""Sounds are cut off after so many: 2 s at 16 kHz."""


def wav(sound: Any, rate: int) -> bytes:
    """The WAV file of the first seconds of a waveform; louder than 1 is cut off."""
    plain = (np.asarray(sound.detach().cpu().float())[: MOST_BYTES // 2].clip(-1, 1) * 32_767).round().astype("<i2")
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setparams((1, 2, rate, len(plain), "NONE", "not compressed"))
        out.writeframes(plain.tobytes())
    return file.getvalue()


def data_uri(sound: Any, rate: int) -> str:
    """A sound as text that an `<audio>` plays without asking anybody."""
    return "data:audio/wav;base64," + base64.b64encode(wav(sound, rate)).decode("ascii")
