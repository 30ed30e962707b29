"""Words that espeak-ng speaks: what it is asked, what is cut, drawn and refused; with a program that stands in for it, and with itself."""

import contextlib
import shutil
import struct
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from limbeck.check.speaker import write_speaker
from limbeck.data import _espeak
from limbeck.data._espeak import RATE, Utterance, apart, cut, heard
from limbeck.data._sounds import BadSound
from limbeck.data.base import Place, Rows
from limbeck.data.spoken import DIGITS, Spoken
from limbeck.data.vowels import Vowels
from limbeck.errors import Failed, Refused
from limbeck.evaluate.base import Exam
from limbeck.evaluate.transcription import Transcription
from limbeck.model.base import Models, Role
from limbeck.model.opening import open_pretrained
from limbeck.model.role import as_role
from limbeck.numerics import Streams
from limbeck.recipe import SHIPPED
from limbeck.signals import Row

TWO = {"words": ["yes", "no"], "voices": ["en-us"], "split": 0.0}
real = pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")


def read(before: Rows | None = None, **fields: Any) -> Rows:
    return Spoken.model_validate(fields).rows(before or Rows(), Place(Models({}), Streams(0)))


def every(rows: Rows) -> list[Row]:
    return [*rows.train, *rows.held_out]


@pytest.fixture
def tones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that answers with tones is the one that is found."""
    monkeypatch.setenv("PATH", str(write_speaker(tmp_path / "programs")))


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Puts a script of one's own in the place of the program."""

    def put(script: str) -> Path:
        (tmp_path / "espeak-ng").write_text(f"#!{sys.executable} -IS\nimport sys\n{script}\n")
        (tmp_path / "espeak-ng").chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        return tmp_path

    return put


# what is heard


def wav(sound: np.ndarray, stated: int | None = None, form: tuple[int, ...] = (1, 1, RATE, 2 * RATE, 2, 16), between: bytes = b"") -> bytes:
    """A WAV as the format's definition lays it out, whose header states some length."""
    content = sound.astype("<i2").tobytes()
    head = b"fmt " + struct.pack("<IHHIIHH", 16, *form) + between + b"data" + struct.pack("<I", len(content) if stated is None else stated)
    return b"RIFF" + struct.pack("<I", (4 + len(head) + len(content)) & 0xFFFFFFFF) + b"WAVE" + head + content


@pytest.mark.parametrize("stated", [None, 0x7FFFF000, 0xFFFFFFFF, 0], ids=["right", "as espeak-ng 1.51", "most", "none"])
def test_all_that_follows_the_header_is_heard_whatever_length_it_states(stated: int | None) -> None:
    assert heard(wav(np.array([0, 16_384, -32_768]), stated)).tolist() == [0, 0.5, -1]


def test_a_chunk_of_odd_length_before_the_sound_is_passed_over() -> None:
    assert heard(wav(np.array([8192]), between=b"LIST" + struct.pack("<I", 3) + b"abc\0")).tolist() == [0.25]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"Error: no such voice, and more of it",
        wav(np.ones(4))[:30],
        wav(np.ones(4))[:-1],
        wav(np.ones(4), form=(1, 2, RATE, 4 * RATE, 4, 16)),
        wav(np.ones(4), form=(1, 1, 16_000, 32_000, 2, 16)),
        wav(np.ones(4), form=(3, 1, RATE, 4 * RATE, 4, 32)),
    ],
    ids=["nothing", "text", "no sound", "half a number", "two channels", "another rate", "floats"],
)
def test_what_is_no_sound_of_the_program_is_told(content: bytes) -> None:
    with pytest.raises(BadSound):
        heard(content)


def test_silence_is_cut_off_but_for_20_ms_and_what_is_softer_than_a_hundredth_is_silence() -> None:
    sound = np.zeros(4000)
    sound[[500, 1000, 1500, 3000]] = 0.0079, 0.81, -0.0082, 0.008  # the threshold is 0.0081
    found = cut(sound)
    assert len(found) == 441 + 501 + 441  # 0.02 s at 22,050 a second are 441
    assert found[441] == 0.81 and found[-442] == -0.0082


def test_sounds_are_set_apart_by_pauses_of_more_than_a_second() -> None:
    sound = np.zeros(5 * RATE)
    for at in (0.2, 1.1, 2.3, 2.4):  # gaps of 0.9, 1.2 and 0.1 s
        sound[round(at * RATE)] = 0.5
    assert [round(len(part) / RATE, 2) for part in apart(sound)] == [0.94, 0.14]  # with 0.02 s on each side
    assert apart(np.zeros(100)) == []


# what is asked and drawn


@pytest.mark.usefixtures("tones")
def test_each_word_is_said_as_often_and_is_a_class_by_its_place_in_the_list() -> None:
    rows = every(read(num=30, voices=["en-us", "en-gb+f2"]))
    assert Counter((row.content["label"], row.tag) for row in rows) == {(i, word): 3 for i, word in enumerate(DIGITS)}
    assert all(row.content.keys() == {"wave", "rate", "label"} and row.content["rate"] == 16_000 for row in rows)


@pytest.mark.usefixtures("tones")
def test_clips_are_the_same_in_every_run_others_with_another_seed_and_few_are_part_of_many() -> None:
    one, again, other, more = (read(**TWO, num=num, seed=seed) for num, seed in ((20, 0), (20, 0), (20, 1), (40, 0)))
    keys = [{row.key for row in every(rows)} for rows in (one, again, other, more)]
    assert every(one) == every(again) and not keys[0] & keys[2] and keys[0] < keys[3]


@pytest.mark.usefixtures("tones")
def test_speed_pitch_and_loudness_are_heard_as_they_are_drawn() -> None:
    source = Spoken.model_validate({**TWO, "num": 8, "slowest": 100, "fastest": 200, "lowest": 0, "highest": 99, "rate": RATE})
    rows = {row.key: row for row in source.rows(Rows(), Place(Models({}), Streams(0))).train}
    drawn = [source.drawn(i) for i in range(8)]
    assert len({utterance[1:] for utterance, _, _ in drawn}) == 8 == len(rows)
    for i, ((words, speed, pitch), voice, peak) in enumerate(drawn):
        period = 140 - pitch // 2 - sum(map(ord, words)) % 40  # as the program that stands in says it
        length = RATE * 30 // speed // period * period
        same = [row for row in rows.values() if row.tag == words and abs(float(row.content["wave"].abs().max()) - peak) < 1e-6]
        assert len(same) == 1 and voice == "en-us" and 100 <= speed <= 200 and 0.1 <= peak <= 0.9
        wave = same[0].content["wave"].double().numpy()
        middle = wave[441 : 441 + 6 * period]
        assert len(wave) == length + (882 - 1 if i else 441)  # 0.02 s on each side, but nothing before the first; a sine begins with one 0
        assert np.corrcoef(middle[:-period], middle[period:])[0, 1] > 0.99


@pytest.mark.usefixtures("tones")
def test_with_most_a_row_holds_what_is_said_one_word_after_the_other_and_no_class() -> None:
    rows = {row.content["answer"]: row for row in read(**{**TWO, "num": 60, "most": 3}).train}
    source = Spoken.model_validate({**TWO, "num": 60, "most": 3})
    said = [source.drawn(i)[0].words for i in range(60)]
    assert {f" {words}" for words in said} == set(rows) and all(row.content.keys() == {"wave", "rate", "prompt", "answer"} for row in rows.values())
    assert [len(words.split()) for words in said[:6]] == [1, 2, 3, 1, 2, 3] and [words.split()[0] for words in said[:3]] == ["yes", "no", "yes"]
    assert set(" ".join(said).split()) == {"yes", "no"} and len(set(said)) > 6  # 2 + 4 + 8 ways


@pytest.mark.usefixtures("tones")
def test_a_model_that_writes_what_it_hears_reads_the_clips_and_its_words_are_counted() -> None:
    role = as_role(open_pretrained(f"config:{SHIPPED / 'models' / 'tiny_whisper'}.json"))
    rows = read(**TWO, num=6, most=3, slowest=250, fastest=300).train

    @contextlib.contextmanager
    def opened(_: str) -> Iterator[Role]:
        yield role

    exam = Exam(rows, ("student",), opened, lambda subject: pytest.fail("no table is needed"), 0, {})
    found = Transcription.model_validate({"tokens": 2})(exam)
    assert found["transcription"] == {"clips": 6, "words": 2 * (1 + 2 + 3)} and found["student"]["word_error_rate"] > 0


def test_words_go_in_as_text_and_never_as_options(program: Callable[[str], Path]) -> None:
    folder = program("open(sys.argv[0] + '.asked', 'wb').write(repr(sys.argv[1:]).encode() + b'|' + sys.stdin.buffer.read())")
    with pytest.raises(Failed, match="0 bytes"):
        _espeak.said("en-us", [Utterance("-w über-x", 150, 40)])
    asked, _, text = (folder / "espeak-ng.asked").read_text(encoding="utf-8").partition("|")
    assert asked == "['-b', '1', '-m', '--stdout', '-v', 'en-us', '--stdin']" and text.startswith("\x01150S \x0140P -w über-x \x01175S\n")


@pytest.mark.usefixtures("tones")
def test_what_was_spoken_by_which_program_is_in_the_provenance() -> None:
    (facts,) = read(**TWO, num=4, licence="CC-BY-4.0").provenance
    assert facts["name"] == "spoken by espeak-ng 0.1" and facts["licence"] == "CC-BY-4.0" and facts["rows"] == 4
    assert facts["sha256"] != read(**TWO, num=4, seed=1).provenance[0]["sha256"]


@pytest.mark.usefixtures("tones")
def test_classes_that_another_source_numbers_otherwise_are_refused() -> None:
    vowels = Vowels(num=10, seconds=0.1).rows(Rows(), Place(Models({}), Streams(0)))
    with pytest.raises(Refused, match="in a source before") as caught:
        read(vowels, **TWO, num=4)
    assert caught.value.slug == "label"


# what is refused


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["one"], "at least 2"),
        (["one", ""], "''"),
        (["one", "two!"], "two!"),
        (["one", "<b>"], "<b>"),
        (["one", "a  b"], "single spaces"),
        (["one", " two"], "single spaces"),
        (["one", "-'-"], "letters"),
        (["one", "2"], "letters"),
        (["one", "two\x01"], "letters"),
        (["one", "x" * 41], "up to 40"),
        (["one", "two", "One"], "each word once"),
    ],
)
def test_lists_that_are_no_words_are_refused(words: list[str], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        Spoken.model_validate({"words": words, "num": 100})


def test_words_of_any_alphabet_hyphens_apostrophes_and_phrases_are_words() -> None:
    assert Spoken.model_validate({"words": ["-minus", "o'clock", "it’s", "turn left", "grün", "да"]}).words[3] == "turn left"


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"slowest": 200, "fastest": 190}, "slowest"),
        ({"lowest": 60, "highest": 50}, "lowest"),
        ({"num": 9}, "at least 10"),
        ({"voices": []}, "voices"),
    ],
)
def test_ranges_that_are_none_and_too_few_clips_are_refused(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        Spoken.model_validate(fields)


def test_a_missing_program_is_refused_with_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Refused, match="not installed") as caught:
        read(**TWO, num=4)
    assert (caught.value.slug, caught.value.code) == ("extra", 3) and caught.value.do.startswith("apt-get install espeak-ng")


@pytest.mark.usefixtures("tones")
@pytest.mark.parametrize(
    ("voice", "got", "do"),
    [
        ("en-uss", "en-uss", "write en-us;"),
        ("en-us+f22", "f22", "write f2;"),
        ("../en-us", "../en-us", "write en-us;"),
        ("en-gb+", "none", "write one of f2;"),
    ],
)
def test_a_voice_that_the_program_would_silently_replace_is_refused_with_a_near_one(voice: str, got: str, do: str) -> None:
    with pytest.raises(Refused) as caught:
        read(**{**TWO, "voices": ["en-us", voice]}, num=4)
    assert caught.value.slug == "voice" and voice in caught.value.where and caught.value.got == got and caught.value.do.startswith(do)


def test_a_program_that_does_not_end_is_stopped_and_named(program: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    program("import signal; signal.pause()")
    monkeypatch.setattr(_espeak, "TIMEOUT_SECONDS", 0.05)
    with pytest.raises(Failed, match=r"none after 0\.05 s") as caught:
        read(**TWO, num=4)
    assert caught.value.slug == "program" and "espeak-ng" in caught.value.where


def test_a_program_that_ends_with_an_error_is_quoted(program: Callable[[str], Path]) -> None:
    program("sys.exit('cannot open its data')")
    with pytest.raises(Failed, match="exit code 1: cannot open its data"):
        read(**TWO, num=4)


def test_a_file_that_cannot_be_run_is_no_traceback(program: Callable[[str], Path]) -> None:
    (program("") / "espeak-ng").write_text("#!/nowhere/at/all\n")
    with pytest.raises(Failed, match="FileNotFoundError"):
        read(**TWO, num=4)


def test_fewer_sounds_than_utterances_are_told_and_not_given_to_the_wrong_words(program: Callable[[str], Path]) -> None:
    one = wav(np.r_[np.full(100, 9000), np.zeros(RATE)])
    program(f"sys.stdout.buffer.write({one!r})")
    with pytest.raises(Failed, match="1, as pauses set them apart") as caught:
        _espeak.said("en-us", [Utterance("one", 150, 50), Utterance("two", 150, 50)])
    assert caught.value.expected == "2 sounds" and "en-us" in caught.value.where


@pytest.mark.usefixtures("tones")
def test_held_out_files_are_refused() -> None:
    with pytest.raises(Refused, match="held_out: more"):
        read(**TWO, num=4, held_out="more")


# the program itself


@real
def test_the_program_says_the_same_again_and_each_clip_the_same_in_a_smaller_number() -> None:
    few, again, many = (read(num=num, voices=["en-us", "en-gb-scotland+f2"], split=0) for num in (20, 20, 40))
    assert few.train == again.train and {row.key for row in few.train} < {row.key for row in many.train}
    assert all(0.1 < len(row.content["wave"]) / 16_000 < 1 for row in many.train)


@real
def test_all_voices_that_stand_there_by_default_are_there() -> None:
    _espeak.check(Spoken().voices)


@real
@pytest.mark.parametrize("voice", ["en-us+f2", "en-gb+m7"])
def test_the_program_sets_many_utterances_apart_however_slow_and_long(voice: str) -> None:
    draw = np.random.default_rng(0)
    asked = [Utterance(" ".join(draw.choice(DIGITS, 1 + i % 10)), int(draw.integers(80, 301)), int(draw.integers(100))) for i in range(30)]
    long = [len(sound) / RATE * one.speed / len(one.words.split()) for sound, one in zip(_espeak.said(voice, asked), asked, strict=True)]
    assert 20 < min(long) and max(long) < 120  # seconds a word at one word a minute: 60 but for short words, and for how it counts


def pitch_of(sound: np.ndarray) -> float:
    """Hz: where the autocorrelation of the middle is greatest between 60 and 400."""
    middle = sound[len(sound) // 3 :][:3000]
    power = np.correlate(middle, middle, "full")[len(middle) - 1 :]
    return RATE / (55 + int(power[55:367].argmax()))


@real
def test_a_higher_pitch_and_a_greater_speed_are_heard() -> None:
    low, high, fast = _espeak.said("en-us", [Utterance("nine", 150, 10), Utterance("nine", 150, 90), Utterance("nine", 280, 10)])
    assert pitch_of(high) > 1.3 * pitch_of(low) and len(fast) < 0.8 * len(low)


@real
def test_a_word_that_begins_with_a_dash_is_said_as_without_it() -> None:
    plain, dashed = (_espeak.said("en-us", [Utterance(word, 150, 50)])[0] for word in ("seven", "-seven"))
    assert abs(len(plain) - len(dashed)) < 0.05 * len(plain)


@real
def test_a_voice_that_is_none_is_refused_by_the_names_that_the_program_lists() -> None:
    for voice, near in (("en-uss", "en-us"), ("en-us+femal2", None), ("mb-us1", None)):
        with pytest.raises(Refused) as caught:
            _espeak.check([voice])
        assert near is None or caught.value.do.startswith(f"write {near};")


@real
def test_ten_words_are_told_apart_by_a_nearest_neighbour_over_their_spectra() -> None:
    """What is said is what the row says: labels that were shifted by one would be read at chance."""
    rows = read(num=100, voices=["en-us"], slowest=150, fastest=160, lowest=45, highest=55, split=0).train
    pictures = []
    for row in rows:
        power = torch.stft(row.content["wave"], 400, 160, window=torch.hann_window(400), return_complex=True).abs().square()
        bands = power[:200].unflatten(0, (20, 10)).sum(1).clamp(min=1e-8).log()
        picture = torch.nn.functional.interpolate(bands[None], 24, mode="linear")[0]
        pictures.append((picture - picture.mean()).flatten())
    apart = torch.cdist(torch.stack(pictures), torch.stack(pictures)).fill_diagonal_(torch.inf)
    labels = torch.tensor([row.content["label"] for row in rows])
    assert (labels[apart.argmin(1)] == labels).float().mean() > 0.9
