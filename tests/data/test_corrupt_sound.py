"""Noise and reverberation: how loud, where, for whom, and drawn by row."""

import math
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

from limbeck.check.models import clips, hearing_model, pair
from limbeck.data.base import Place
from limbeck.data.corrupt_sound import CorruptSound, echoed, files, room
from limbeck.errors import Refused
from limbeck.model.base import Models
from limbeck.model.waves import noise_scale
from limbeck.numerics import Streams
from limbeck.schedule.linear import Linear
from limbeck.signals import Batch, Row

MODELS = Models({"student": hearing_model(), "teacher": hearing_model(1)})
NOISY: dict[str, Any] = {"noisy": 1.0, "echoing": 0.0}


def window(step: Any, number: int = 0, rows: tuple[Row, ...] = clips()[:8], models: Models = MODELS, base: str = ".") -> Batch:
    return step.window(models.batch(rows), Place(models, Streams(0), number, base), None)


def waves(batch: Batch, role: str) -> list[torch.Tensor]:
    view = batch.view(role)
    assert view.instants is not None
    return list(view.inputs["wave"].split(view.instants.tolist()))


def decibels(sound: torch.Tensor, noise: torch.Tensor) -> float:
    return 10 * math.log10(float(sound.double().square().mean() / noise.double().square().mean()))


def test_the_student_hears_noise_and_the_teacher_hears_the_rows_as_they_are() -> None:
    changed, rows = window(CorruptSound(**NOISY)), clips()[:8]
    assert set(changed.views) == {"student", "teacher"}
    assert all(torch.equal(x, row.content["wave"]) for x, row in zip(waves(changed, "teacher"), rows, strict=True))
    assert not any(torch.equal(x, row.content["wave"]) for x, row in zip(waves(changed, "student"), rows, strict=True))
    assert changed.keys == tuple(row.key for row in rows), "what the teacher says is about these rows"
    both = window(CorruptSound(**NOISY, hears=("student", "teacher")))
    assert torch.equal(both.view("student").inputs["wave"], both.view("teacher").inputs["wave"])
    assert not set(both.keys) & {row.key for row in rows}, "then it is not"


@pytest.mark.parametrize("ratio", [0, 5, 20, -5])
def test_noise_is_so_many_decibels_below_the_sound(ratio: int) -> None:
    changed = window(CorruptSound(**NOISY, low=ratio, high=ratio))
    for noisy, clean in zip(waves(changed, "student"), waves(changed, "teacher"), strict=True):
        assert decibels(clean, noisy.double() - clean.double()) == pytest.approx(ratio, abs=1e-3)


def test_ratios_are_whole_numbers_and_both_ends_are_drawn() -> None:
    rows = tuple(replace(clips()[i % 40], key=f"{i}") for i in range(300))
    changed = window(CorruptSound(**NOISY, low=0, high=4), rows=rows)
    found = [decibels(clean, noisy - clean) for noisy, clean in zip(waves(changed, "student"), waves(changed, "teacher"), strict=True)]
    assert max(abs(x - round(x)) for x in found) < 1e-2
    assert set(Counter(round(x) for x in found)) == {0, 1, 2, 3, 4}


def test_noise_and_rooms_and_both_and_neither_are_equally_likely() -> None:
    rows = tuple(replace(clips()[0], key=f"{i}") for i in range(400))
    # at 200 dB noise leaves a sound as it is to the eye, but not a room: told apart by how far a clip is from itself
    silent = window(CorruptSound(low=200, high=200), rows=rows)
    loud = window(CorruptSound(low=0, high=0), rows=rows)
    clean = clips()[0].content["wave"]
    cases = Counter(
        (not torch.allclose(a, clean, atol=1e-4), not torch.allclose(a, b, atol=1e-4))  # in a room; with noise
        for a, b in zip(waves(silent, "student"), waves(loud, "student"), strict=True)
    )
    assert len(cases) == 4 and all(66 < number < 134 for number in cases.values())  # 100 expected, a standard deviation is 8.7


def test_a_room_is_a_convolution_that_begins_at_the_peak_of_its_answer() -> None:
    draw = np.random.default_rng(0)
    sound, answer = draw.standard_normal(300), 0.3 * draw.standard_normal(80)
    answer[23] = -2.0  # the direct path comes 23 numbers late
    found = echoed(torch.from_numpy(sound), torch.from_numpy(answer)).numpy()
    assert np.allclose(found, scipy.signal.convolve(sound, answer / answer[23])[23:323])
    alone = np.zeros(80)
    alone[23] = 5.0
    assert np.allclose(echoed(torch.from_numpy(sound), torch.from_numpy(alone)).numpy(), sound), "a direct path alone changes nothing"


def test_a_room_that_is_drawn_falls_by_60_decibels_in_its_time() -> None:
    answer = room(8000, torch.Generator().manual_seed(0))
    assert int(answer.argmax()) == 0 and 1600 <= len(answer) <= 6401
    first, last = (float(part.square().mean().sqrt()) for part in (answer[1:].split(len(answer) // 10)[i] for i in (0, 9)))
    assert 20 * math.log10(first / last) == pytest.approx(54, abs=3)  # nine tenths of the way


def test_a_clip_is_changed_alike_wherever_it_stands_in_a_window_and_otherwise_in_the_next() -> None:
    step, rows = CorruptSound(), clips()[:8]
    whole, back, later = (waves(window(step, n, some), "student") for n, some in ((3, rows), (3, rows[::-1]), (4, rows)))
    assert all(torch.equal(a, b) for a, b in zip(whole, back[::-1], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(whole, later, strict=True))


def test_ratios_and_rooms_may_follow_a_schedule_over_windows() -> None:
    moving: Any = {"echoing": Linear(start=0.0, end=1.0, steps=10), "low": Linear(start=20.0, end=20.0, steps=10)}
    step = CorruptSound(noisy=1.0, **moving, high=20)
    first, last = window(step, 0), window(step, 10)
    clean = waves(first, "teacher")
    assert all(decibels(c, x - c) == pytest.approx(20, abs=1e-2) for c, x in zip(clean, waves(first, "student"), strict=True))
    assert all(decibels(c, x - c) < 19 for c, x in zip(clean, waves(last, "student"), strict=True)), "all are in a room now"


@pytest.fixture
def sounds(tmp_path: Path) -> Path:
    for name in ("noise", "rooms"):
        (tmp_path / name).mkdir()
    short = np.tile(np.array([8000, -8000], np.int16), 50)
    scipy.io.wavfile.write(tmp_path / "noise" / "buzz.wav", 8000, short)
    answer = np.zeros(60, np.int16)
    answer[[20, 40]] = 20_000, 10_000
    scipy.io.wavfile.write(tmp_path / "rooms" / "hall.wav", 8000, answer)
    return tmp_path


def test_noises_come_from_files_as_often_as_is_said_and_repeat_where_they_are_short(sounds: Path) -> None:
    rows = tuple(replace(clips()[0], key=f"{i}") for i in range(300))
    changed = window(CorruptSound(**NOISY, noise="noise", file_share=0.7), rows=rows, base=str(sounds))
    rest = [x - clean for x, clean in zip(waves(changed, "student"), waves(changed, "teacher"), strict=True)]
    buzzing = sum(bool((x[1:] + x[:-1]).abs().max() < 1e-3 * x.abs().max()) for x in rest)  # it changes its sign at each number
    assert 180 < buzzing < 240  # 210 expected, a standard deviation is 8


def test_rooms_come_from_files(sounds: Path) -> None:
    changed = window(CorruptSound(noisy=0.0, echoing=1.0, rooms="rooms"), base=str(sounds))
    for x, clean in zip(waves(changed, "student"), waves(changed, "teacher"), strict=True):
        late = torch.cat([torch.zeros(20), clean[:-20]])  # half as loud, 20 numbers after the direct path
        assert torch.allclose(x, clean + 0.5 * late, atol=1e-5)


def test_each_noise_is_heard_in_each_room(tmp_path: Path) -> None:
    for i in range(3):
        for name in ("noise", "rooms"):
            (tmp_path / name).mkdir(exist_ok=True)
        answer = np.zeros(60, np.int16)
        answer[[0, 10 * (i + 1)]] = 20_000, 10_000
        scipy.io.wavfile.write(tmp_path / "rooms" / f"{i}.wav", 8000, answer)
        hum = np.sin(2 * np.pi * (i + 1) / 8 * np.arange(800) + 0.4)  # an eighth, a quarter, three eighths of the rate
        scipy.io.wavfile.write(tmp_path / "noise" / f"{i}.wav", 8000, (20_000 * hum).astype(np.int16))
    clean = torch.zeros(400)
    clean[0] = 1.0  # what is heard of it is the room's answer
    rows = tuple(replace(clips()[0], key=f"{i}", content={**clips()[0].content, "wave": clean}) for i in range(180))
    step = CorruptSound(noisy=1.0, echoing=1.0, noise="noise", rooms="rooms", file_share=1.0, low=20, high=20)
    pairs: Counter[tuple[int, int]] = Counter()
    for x in waves(window(step, rows=rows, base=str(tmp_path)), "student"):
        where = max(range(3), key=lambda i, x=x: float(x[10 * (i + 1)]))
        rest = torch.fft.rfft(x[80:].double()).abs()  # 320 numbers: the hums stand at 40, 80 and 120
        pairs[where, max(range(3), key=lambda i, rest=rest: float(rest[40 * (i + 1)]))] += 1
    assert len(pairs) == 9 and min(pairs.values()) >= 7  # 20 expected, a standard deviation is 4.2


def test_of_a_room_the_first_channel_is_taken_and_of_a_noise_the_mean(tmp_path: Path) -> None:
    both = np.array([[0, 0], [20_000, 0], [0, 0], [10_000, -20_000]], np.int16)  # the mean has its peak elsewhere
    scipy.io.wavfile.write(tmp_path / "a.wav", 8000, both)
    assert files(str(tmp_path), 8000, "first")[0].tolist() == (both[:, 0] / 32_768).tolist()
    assert files(str(tmp_path), 8000)[0].tolist() == pytest.approx((both.mean(1) / 32_768).tolist())
    changed = window(CorruptSound(noisy=0.0, echoing=1.0, rooms="."), base=str(tmp_path))
    for x, clean in zip(waves(changed, "student"), waves(changed, "teacher"), strict=True):
        assert torch.allclose(x, clean + 0.5 * torch.cat([torch.zeros(2), clean[:-2]]), atol=1e-5)


def test_what_is_drawn_without_files_is_what_was_drawn_when_its_claim_was_measured() -> None:
    """Numbers of the first version: a claim on them holds as long as they stay."""
    heard_now = torch.cat(waves(window(CorruptSound(low=0, high=20)), "student"))
    expected = [0.024537, -0.537807, 0.282293, -0.497771, -0.450032, -0.914076, -0.600298, 0.930504, 0.299186, 0.175244]
    assert [float(x) for x in heard_now[::300][:10]] == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(
    ("spoiled", "told"),
    [(None, "none"), (b"no sound", "RIFF"), (0, "silence")],
    ids=["empty", "broken", "silent"],
)
def test_noises_that_cannot_be_heard_are_refused(tmp_path: Path, spoiled: Any, told: str) -> None:
    (tmp_path / "noise").mkdir()
    if spoiled == 0:
        scipy.io.wavfile.write(tmp_path / "noise" / "a.wav", 8000, np.zeros(100, np.int16))
    elif spoiled:
        (tmp_path / "noise" / "a.wav").write_bytes(spoiled)
    with pytest.raises(Refused, match=told):
        files(str(tmp_path / "noise"), 8000)


def test_silence_stays_silent_and_nothing_is_not_a_number() -> None:
    rows = (replace(clips()[0], content={**clips()[0].content, "wave": torch.zeros(400)}),)
    for number in range(6):
        assert torch.equal(window(CorruptSound(), number, rows).view("student").inputs["wave"], torch.zeros(400))
    assert noise_scale(torch.ones(4), torch.zeros(4), 0) == 0


def test_rows_without_sound_a_role_that_is_not_there_and_ratios_the_wrong_way_round_are_refused() -> None:
    with pytest.raises(Refused, match="roles that hear sounds"):
        window(CorruptSound(), rows=(Row("a", {"text": "some"}),), models=pair())
    with pytest.raises(Refused, match="no role critic"):
        window(CorruptSound(hears=("critic",)))
    with pytest.raises(ValidationError, match="at most high"):
        CorruptSound(low=10, high=5)
    with pytest.raises(ValidationError, match="low: a whole number of dB, not 2.5"):
        CorruptSound(low=2.5)
    with pytest.raises(ValidationError, match="integer"):
        CorruptSound(high=7.5)  # type: ignore[arg-type]
