"""Sources of sounds: waveforms, rates, classes, splits, and what is wrong with files."""

import math
import sys
import wave
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io.wavfile
import scipy.signal
import torch
from pydantic import ValidationError

from limbeck.data._sounds import BadSound, heard, pcm, resampled
from limbeck.data.base import Place, Rows, Step
from limbeck.data.sound_folder import SoundFolder
from limbeck.data.vowels import FORMANTS, Vowels
from limbeck.errors import Refused
from limbeck.model.base import Models
from limbeck.numerics import Streams
from limbeck.signals import Row


def read(step: Step, base: Path | str = ".") -> Rows:
    return step.rows(Rows(), Place(Models({}), Streams(0), base=str(base)))


def every(rows: Rows) -> list[Row]:
    return [*rows.train, *rows.held_out]


def tone(rate: int, hertz: float, number: int) -> torch.Tensor:
    return torch.sin(2 * torch.pi * hertz * torch.arange(number, dtype=torch.float64) / rate)


def write(file: Path, sound: Any, rate: int = 8000) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    scipy.io.wavfile.write(file, rate, np.asarray(sound))
    return file


# rates


@pytest.mark.parametrize(("old", "new"), [(8000, 16_000), (44_100, 16_000), (48_000, 8000), (11_025, 16_000)])
def test_a_tone_brought_to_another_rate_is_the_same_tone(old: int, new: int) -> None:
    found = resampled(tone(old, 440, old // 4), old, new)
    assert len(found) == round(old // 4 * new / old)
    middle = slice(len(found) // 4, -len(found) // 4)  # at its ends a tone begins and stops, which no band holds
    assert (found - tone(new, 440, len(found)))[middle].abs().max() < 2e-3


def test_what_a_lower_rate_cannot_hold_is_gone_and_does_not_come_back_as_another_tone() -> None:
    found = resampled(tone(48_000, 7000, 12_000), 48_000, 8000)  # 7,000 Hz would be heard as 1,000
    assert found[200:-200].abs().max() < 1e-3


def test_rates_are_changed_as_scipy_does_it_with_filters_of_its_own() -> None:
    draw = np.random.default_rng(0)
    low, high = scipy.signal.butter(6, 0.5), draw.standard_normal(4000)
    sound = scipy.signal.filtfilt(*low, high)
    ours = resampled(torch.from_numpy(sound.copy()), 16_000, 12_000).numpy()
    theirs = scipy.signal.resample_poly(sound, 3, 4, window=("kaiser", 12.0))
    assert np.abs(ours - theirs)[100:-100].max() < 0.03 * np.abs(theirs).max()  # other filters near the edge of the band


@pytest.mark.parametrize(("old", "new"), [(22_050, 16_000), (12_289, 8192), (8000, 22_050)])
def test_each_sample_at_another_rate_is_the_weighed_sum_that_the_definition_says(old: int, new: int) -> None:
    sound = np.random.default_rng(0).standard_normal(1500)
    cut = min(1.0, new / old)
    reach = math.ceil(16 / cut)
    expected = []
    for n in range(round(1500 * new / old)):
        at, total = n * old / new, 0.0
        for i in range(math.floor(at) - reach + 1, math.floor(at) + reach + 1):
            if 0 <= i < 1500:
                total += sound[i] * cut * np.sinc(cut * (at - i)) * math.cos(math.pi / 2 * (at - i) / reach) ** 2
        expected.append(total)
    assert np.abs(resampled(torch.from_numpy(sound), old, new).numpy() - expected).max() < 1e-11


# files


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32"])
def test_numbers_of_a_file_are_those_that_scipy_reads_from_minus_1_to_1(tmp_path: Path, dtype: str) -> None:
    info = np.iinfo(dtype)
    plain = np.random.default_rng(0).integers(info.min, info.max + 1, (50, 2)).astype(dtype)
    found, rate = pcm(write(tmp_path / "a.wav", plain, 11_025))
    half = 2.0 ** (info.bits - 1)
    assert rate == 11_025 and np.array_equal(found, (plain.astype(np.float64) - (half if dtype == "uint8" else 0)) / half)


def test_numbers_of_three_bytes_are_read_with_their_sign(tmp_path: Path) -> None:
    with wave.open(str(tmp_path / "a.wav"), "wb") as out:
        out.setparams((1, 3, 8000, 0, "NONE", ""))
        out.writeframes(b"\x00\x00\x40" + b"\x00\x00\x80" + b"\xff\xff\xff")
    assert pcm(tmp_path / "a.wav")[0][:, 0].tolist() == [0.5, -1.0, -(2.0**-23)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    draw = np.random.default_rng(0)
    for i, rate in enumerate((8000, 8000, 16_000, 44_100)):
        sound = (draw.uniform(-1, 1, rate // 5) * 20_000).astype(np.int16)
        write(tmp_path / "a" / ("yes", "no")[i % 2] / f"{i % 2}_ann_{i}.wav", sound, rate)
    write(tmp_path / "a" / "no" / "1_bob_9.WAV", np.stack([np.full(1600, 8000), np.full(1600, 16_000)], 1).astype(np.int16), 8000)
    return tmp_path


def test_clips_of_any_rate_come_at_one_and_a_note_says_so_once(folder: Path) -> None:
    rows = read(SoundFolder(path="a", split=0.0), folder)
    assert sorted(len(row.content["wave"]) for row in rows.train) == [3200] * 5
    assert {row.content["rate"] for row in rows.train} == {16_000} and {row.content["wave"].dtype for row in rows.train} == {torch.float32}
    assert Counter(row.tag for row in rows.train) == {"no": 3, "yes": 2} and {row.content["label"] for row in rows.train} == {0, 1}
    assert [note for note in rows.notes if "brought" in note] == [
        "sound_folder: clips brought to 16,000 numbers a second: 3 from 8,000, 1 from 44,100"
    ]


def test_classes_may_stand_in_names_of_files_or_nowhere(folder: Path) -> None:
    named = read(SoundFolder(path="a", label="name", split=0.0), folder).train
    assert Counter(row.tag for row in named) == {"0": 2, "1": 3}
    plain = read(SoundFolder(path="a", label="none", split=0.0), folder).train
    assert {row.tag for row in plain} == {""} and not any("label" in row.content for row in plain)


def test_held_out_classes_are_numbered_as_those_that_are_trained_on_and_others_are_refused(folder: Path) -> None:
    sound = np.arange(-1000, 1000, dtype=np.int16)
    write(folder / "b" / "yes" / "x.wav", sound)  # alone it would be class 0, which is `no`
    rows = read(SoundFolder(path="a", held_out="b"), folder)
    assert {(row.tag, row.content["label"]) for row in rows.train} == {("no", 0), ("yes", 1)}
    assert [(row.tag, row.content["label"], row.split) for row in rows.held_out] == [("yes", 1, "held_out")]
    alone = read(SoundFolder(path="b", split=0.0), folder).train[0]
    assert alone.content["label"] == 0 and alone.key != rows.held_out[0].key
    with pytest.raises(Refused, match="same number for the same class") as caught:
        SoundFolder(path="b", split=0.0).rows(read(SoundFolder(path="a", split=0.0), folder), Place(Models({}), Streams(0), base=str(folder)))
    assert caught.value.got == "0 is no in a source before, yes in this one"
    write(folder / "b" / "maybe" / "x.wav", sound[::-1])
    with pytest.raises(Refused, match="classes that path has: no, yes") as caught:
        read(SoundFolder(path="a", held_out="b"), folder)
    assert caught.value.got == "maybe" and "held_out" in caught.value.where
    with pytest.raises(ValidationError, match="longest: at least shortest"):
        SoundFolder(path="a", shortest=1.0, longest=0.5)


def test_of_several_channels_the_mean_is_heard_or_the_file_is_refused(folder: Path) -> None:
    (mixed,) = (row for row in read(SoundFolder(path="a", split=0.0), folder).train if float(row.content["wave"].std()) < 0.1)
    assert float(mixed.content["wave"][1600]) == pytest.approx(12_000 / 32_768, abs=1e-3)
    with pytest.raises(Refused, match="2 channels") as caught:
        read(SoundFolder(path="a", channels="refuse"), folder)
    assert "1_bob_9.WAV" in caught.value.where and "max_bad: 1" in caught.value.do
    assert len(every(read(SoundFolder(path="a", channels="refuse", max_bad=1), folder))) == 4


def spoil(file: Path, how: str) -> str:
    """Makes a file bad; returns what must be told about it."""
    if how == "cut short":
        file.write_bytes(file.read_bytes()[:-100])
        return "cut short: 3,100 bytes of 3,200"
    if how == "nothing":
        write(file, np.zeros(0, np.int16))
        return "nothing in it"
    if how == "no sound":
        file.write_bytes(b"no sound at all")
        return "file does not start with RIFF id"
    outside = write(file.parents[2] / "outside.wav", np.ones(1600, np.int16))
    file.unlink()
    file.symlink_to(outside)
    return "a link that leads out of the folder"


@pytest.mark.parametrize("how", ["cut short", "nothing", "no sound", "link"])
def test_a_bad_file_is_named_and_refused_or_left_out_with_a_count(folder: Path, how: str) -> None:
    told = spoil(folder / "a" / "yes" / "0_ann_0.wav", how)
    with pytest.raises(Refused) as caught:
        read(SoundFolder(path="a"), folder)
    assert told in caught.value.got.replace("3,200", "3,200") and "0_ann_0.wav" in caught.value.where
    rows = read(SoundFolder(path="a", max_bad=1), folder)
    assert len(every(rows)) == 4 and rows.notes[0].startswith("sound_folder: 1 files that are no sounds left out, the first ")


def test_short_clips_are_left_out_with_a_count_and_long_ones_are_cut(folder: Path) -> None:
    write(folder / "a" / "yes" / "0_eve_7.wav", np.ones(80, np.int16))  # 10 ms
    rows = read(SoundFolder(path="a", longest=0.15, split=0.0), folder)
    assert [len(row.content["wave"]) for row in rows.train] == [2400] * 5
    assert "sound_folder: 1 clips shorter than 0.1 s left out" in rows.notes


def test_a_folder_without_sounds_is_refused(tmp_path: Path) -> None:
    for path, got in (("missing", "no folder"), (".", "none")):
        with pytest.raises(Refused, match=got):
            read(SoundFolder(path=path), tmp_path)


def test_other_formats_than_plain_wav_ask_for_soundfile_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "a.wav", np.linspace(-1, 1, 100, dtype=np.float32))  # WAV of floats, which the standard library does not read
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(BadSound, match=r"unknown format: 3; .*limbeck\[speech\]"):
        heard(file, tmp_path)


def test_soundfile_reads_the_same_numbers(tmp_path: Path) -> None:
    soundfile = pytest.importorskip("soundfile")
    plain = np.linspace(-1, 1, 100, dtype=np.float32)
    assert np.array_equal(heard(write(tmp_path / "a.wav", plain), tmp_path)[0][:, 0], plain.astype(np.float64))
    whole = (plain * 32_767).astype(np.int16)
    soundfile.write(tmp_path / "b.flac", whole, 8000)
    found, rate = heard(tmp_path / "b.flac", tmp_path)
    assert rate == 8000 and np.array_equal(found, pcm(write(tmp_path / "c.wav", whole))[0])
    (tmp_path / "d.flac").write_bytes(b"fLaC and nothing else")
    with pytest.raises(BadSound):
        heard(tmp_path / "d.flac", tmp_path)


# vowels


def test_vowels_are_the_same_in_every_run_and_others_with_another_seed() -> None:
    one, again, other = (every(read(Vowels(num=20, seed=seed))) for seed in (0, 0, 1))
    assert one == again and not {row.key for row in one} & {row.key for row in other}
    assert Counter(row.tag for row in one) == dict.fromkeys(FORMANTS, 2)
    assert all(0.19 < len(row.content["wave"]) / 16_000 < 0.41 and row.content["wave"].abs().max() <= 1 for row in one)


def test_a_vowel_is_loudest_near_its_first_formant() -> None:
    for row in every(read(Vowels(num=20))):
        wave, low = row.content["wave"].double(), FORMANTS[row.tag][0]
        power = torch.fft.rfft(wave * torch.hann_window(len(wave), dtype=torch.float64), 16_000).abs() ** 2  # a bin is 1 Hz
        around = float(power[int(0.55 * low) : int(1.6 * low)].sum() / power[int(0.55 * low) : 3500].sum())
        assert around > 0.5, f"{row.tag}: {around:.2f}"


def test_a_smaller_number_of_clips_is_part_of_a_larger_one() -> None:
    few, many = read(Vowels(num=20)), read(Vowels(num=40))
    assert {row.key for row in few.train} < {row.key for row in many.train}
    assert replace(few.train[0]).source and few.held_out
