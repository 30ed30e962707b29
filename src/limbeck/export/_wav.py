"""Short sounds inside the report: the one function that makes a data URI."""

import base64
import io
import wave
from typing import Any

import numpy as np

from limbeck.data._sounds import resampled

MOST_BYTES = 64_000
"""Sounds are cut off after so many: 2 s at 16 kHz."""
TELEPHONE = 8_000


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


def longer(sound: Any, rate: int) -> str:
    """The same for speech: a sound that would be cut off is heard at 8 kHz, as over a telephone, so that more of it fits."""
    low = len(sound) > MOST_BYTES // 2 and rate > TELEPHONE
    return data_uri(resampled(sound.detach().cpu().float(), rate, TELEPHONE), TELEPHONE) if low else data_uri(sound, rate)
