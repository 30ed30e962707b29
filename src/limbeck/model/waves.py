"""Waveforms: the one of a row, and how loud one is beside another."""

from jaxtyping import Float
from torch import Tensor

from limbeck.errors import Refused
from limbeck.signals import Row


def noise_scale(sound: Float[Tensor, " instant"], noise: Float[Tensor, " instant"], ratio: float) -> float:
    """What a noise is multiplied by, so that a sound is so many dB above it; 0 beside silence, or of it."""
    of_sound, of_noise = (float(x.double().square().mean()) for x in (sound, noise))
    return (of_sound / (of_noise * 10 ** (ratio / 10))) ** 0.5 if of_noise > 0 else 0.0


def one_wave(row: Row, rate: int) -> Float[Tensor, " instant"]:
    """The waveform of a row, of one channel and at the rate that is heard.

    Raises:
        Refused: `data`, `channels`, `rate`.
    """
    wave, own = row.content.get("wave"), row.content.get("rate")
    if not isinstance(wave, Tensor) or not wave.is_floating_point():
        got = "none" if wave is None else f"{getattr(wave, 'dtype', type(wave).__name__)}"
        raise Refused("data", f"row {row.key}", "a waveform of real numbers", got, "use a source of sounds: sound_folder, vowels")
    if wave.ndim != 1:
        do = "mix the channels, or choose one: channels of sound_folder"
        raise Refused("channels", f"row {row.key}", "a waveform of one channel", f"shape {tuple(wave.shape)}", do)
    if own != rate:
        do = f"write rate: {rate} at the source of the rows, so that all are brought to it"
        raise Refused("rate", f"row {row.key}", f"{rate:,} numbers a second", f"{own}", do)
    return wave
