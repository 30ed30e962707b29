"""Tones: the pitch that is told is the pitch that is heard, by least squares; splits, and what is refused."""

from collections import Counter
from typing import Any

import numpy as np
import pydantic
import pytest
import torch

from limbeck.data.base import Place, Rows
from limbeck.data.tones import Tones
from limbeck.errors import Refused
from limbeck.model.base import Models
from limbeck.numerics import Streams
from limbeck.signals import Row


def read(**fields: Any) -> Rows:
    return Tones.model_validate(fields).rows(Rows(), Place(Models({}), Streams(0)))


def every(rows: Rows) -> list[Row]:
    return [*rows.train, *rows.held_out]


CLEAR: dict[str, Any] = {"num": 12, "seconds": 0.3, "low": 60.0, "high": 60.0, "pauses": 0.0, "lowest": 100.0, "highest": 600.0}


def left_over(wave: np.ndarray, pitch: np.ndarray) -> float:
    """The share of a sound that harmonics of a pitch do not explain."""
    at = np.arange(len(wave))
    turn = 2 * np.pi * np.cumsum(np.interp(at, 160 * np.arange(len(pitch)), pitch)) / 16_000
    harmonics = np.concatenate([[np.sin(h * turn), np.cos(h * turn)] for h in range(1, 21)])
    fitted = harmonics.T @ np.linalg.lstsq(harmonics.T, wave, rcond=None)[0]
    return float(((wave - fitted) ** 2).sum() / (wave**2).sum())


def test_harmonics_of_the_pitch_that_is_told_explain_the_sound_and_those_of_one_half_a_semitone_off_do_not() -> None:
    found = every(read(**CLEAR))
    assert Counter(row.tag for row in found) == {"steady": 4, "glide": 4, "vibrato": 4}
    for row in found:
        wave, pitch = row.content["wave"].double().numpy(), row.content["pitch"].double().numpy()
        assert pitch.shape == (len(wave) // 160 + 1,) and 100 <= pitch.min() and pitch.max() <= 600
        assert left_over(wave, pitch) < 0.1 < 0.4 < left_over(wave, pitch * 2 ** (50 / 1200)), row.tag
        spread = 1200 * np.log2(pitch.max() / pitch.min())
        assert spread == 0 if row.tag == "steady" else spread < 501 if row.tag == "glide" else 30 < spread < 161, row.tag


def test_where_no_pitch_is_told_only_noise_is_heard() -> None:
    found = every(read(**{**CLEAR, "pauses": 1.0}))
    for row in found:
        wave, pitch = row.content["wave"].numpy(), row.content["pitch"].numpy()
        sounds = np.array([np.sqrt((wave[max(0, 160 * i - 20) : 160 * i + 20] ** 2).mean()) for i in range(len(pitch))])
        inside = np.flatnonzero(pitch == 0)[1:-1]  # at the edges of a pause half of what is around them sounds
        assert 0.1 < (pitch == 0).mean() < 0.45 and len(inside) and sounds[inside].max() < 0.05 * np.abs(wave).max()


def test_the_ratio_of_tone_to_noise_is_the_one_that_is_asked_for() -> None:
    for row in every(read(**{**CLEAR, "low": 10.0, "high": 10.0})):
        share = left_over(row.content["wave"].double().numpy(), row.content["pitch"].double().numpy())
        assert 0.05 < share < 0.16  # noise of one tenth of the tone is 1/11 of the whole


def test_clips_are_always_the_same_and_more_of_them_move_none_to_the_other_side() -> None:
    few, many, other = read(num=30, seconds=0.1), read(num=60, seconds=0.1), read(num=30, seconds=0.1, seed=1)
    assert few == read(num=30, seconds=0.1) and few.held_out and {row.key for row in few.held_out} <= {row.key for row in many.held_out}
    assert {row.key for row in few.train} <= {row.key for row in many.train}
    assert not {row.key for row in every(few)} & {row.key for row in every(other)}
    assert all(row.content["wave"].abs().max() <= 0.9 + 1e-6 for row in every(few)) and few.provenance[0]["licence"] == "CC0-1.0"
    assert Tones.makes == "audio" and all(torch.isfinite(row.content["wave"]).all() for row in every(few))


@pytest.mark.parametrize("fields", [{"lowest": 500.0, "highest": 400.0}, {"low": 9.0, "high": 3.0}, {"rate": 11_025}, {"rate": 3000}])
def test_bounds_that_contradict_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(pydantic.ValidationError, match=next(iter(fields))):
        Tones.model_validate(fields)
    with pytest.raises(Refused, match="held_out"):
        read(num=3, held_out="other")
