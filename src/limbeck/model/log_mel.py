"""What Whisper hears of a waveform: the log of its power in bands of the mel scale, a hundred times a second."""

from functools import cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from limbeck.errors import Refused
from limbeck.model.headers import quoted, read_json
from limbeck.model.sound import EXTRACTOR

RATE, WIDTH, HOP = 16_000, 400, 160
"""Numbers a second; how many are heard at a time, and how many from one frame to the next."""
LEAST, RANGE = 1e-10, 8.0
"""The least power, and how many powers of ten below the loudest are told apart."""


@cache
def bands(num: int) -> Float[Tensor, "band frequency"]:
    """How much each band hears of each frequency: triangles on the mel scale, of one area each."""
    from transformers.audio_utils import mel_filter_bank

    how: dict[str, Any] = {"min_frequency": 0.0, "max_frequency": 8000.0, "sampling_rate": RATE, "norm": "slaney", "mel_scale": "slaney"}
    return torch.from_numpy(mel_filter_bank(1 + WIDTH // 2, num, **how)).float().mT.contiguous()


def log_mel(waves: Float[Tensor, "row instant"], num: int) -> Float[Tensor, "row band frame"]:
    """The features of waveforms of one length, each relative to its own loudest place; in float32 at least."""
    waves = waves.to(torch.promote_types(waves.dtype, torch.float32))
    window = torch.hann_window(WIDTH, dtype=waves.dtype, device=waves.device)
    power = torch.stft(waves, WIDTH, HOP, window=window, return_complex=True)[..., :-1].abs().square()
    found = (bands(num).to(waves) @ power).clamp(min=LEAST).log10()
    return (found.maximum(found.amax((1, 2), keepdim=True) - RANGE) + 4) / 4


def refuse_other(folder: Path | None, num: int) -> None:
    """Refuses a folder whose file about waveforms asks for other features than these.

    Raises:
        Refused: `value`, with the field.
    """
    path = folder / EXTRACTOR if folder is not None else None
    values = read_json(path, 10_000_000) if path is not None and path.is_file() else {}
    for name, own in {"sampling_rate": RATE, "n_fft": WIDTH, "hop_length": HOP, "feature_size": num}.items():
        if values.get(name, own) != own:
            raise Refused("value", f"{path}  {name}", f"{own}, as Whisper hears", quoted(values[name]), f"write {name}: {own}")


def extractor(num: int, seconds: float) -> dict[str, Any]:
    """What transformers reads beside a model of so many bands and seconds."""
    told: dict[str, Any] = {"feature_extractor_type": "WhisperFeatureExtractor", "feature_size": num, "sampling_rate": RATE}
    how = {"hop_length": HOP, "n_fft": WIDTH, "padding_value": 0.0, "return_attention_mask": False}
    return told | how | {"chunk_length": int(seconds) if seconds == int(seconds) else seconds}
