"""Sounds with what is said in them: lists of CMU Sphinx and LibriSpeech, texts beside sounds, and what is wrong with them."""

import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from limbeck.data._overlap import drop_overlap
from limbeck.data.base import Place, Rows
from limbeck.data.sound_folder import SoundFolder
from limbeck.data.vowels import FORMANTS, Vowels
from limbeck.errors import Refused
from limbeck.model.base import Models
from limbeck.numerics import Streams
from limbeck.signals import Row


def clip(path: Path, number: int = 200, rate: int = 8000) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as out:
        out.setparams((1, 2, rate, number, "NONE", "not compressed"))
        out.writeframes(np.random.default_rng(len(path.name) + number).integers(-9000, 9000, number, dtype="<i2").tobytes())


def read(folder: Path, **fields: Any) -> tuple[list[Row], tuple[str, ...]]:
    """All rows of a folder, in the order of its files, and notes."""
    plain = {"path": "sounds", "rate": 8000, "shortest": 0.01, "longest": 0.1, "split": 0, **fields}
    rows = SoundFolder.model_validate(plain).rows(Rows(), Place(Models({}), Streams(0), base=str(folder)))
    return list(rows.train), rows.notes


SPHINX = "<s> and mister john  dashwood </s> (book-0870)\n\n<s> he was not </s> (book-0880)\n"
LIBRISPEECH = "book-0870 and mister john  dashwood\nbook-0880 he was not\n"


@pytest.mark.parametrize(("name", "content"), [("transcription", SPHINX), ("84-1.trans.txt", LIBRISPEECH)])
def test_lists_of_both_forms_give_each_clip_its_words_and_no_class(tmp_path: Path, name: str, content: str) -> None:
    for number, file in ((200, "book-0870.wav"), (300, "book-0880.wav")):
        clip(tmp_path / "sounds" / file, number)
    (tmp_path / "sounds" / name).write_text(content)
    found, _ = read(tmp_path, transcripts=name if name == "transcription" else "*.trans.txt")
    assert [(len(row.content["wave"]), row.content["answer"]) for row in found] == [(200, " and mister john dashwood"), (300, " he was not")]
    assert all(row.content.keys() == {"wave", "rate", "prompt", "answer"} and row.content["prompt"] == row.tag == "" for row in found)


def test_a_list_may_call_clips_by_their_path_where_names_come_again(tmp_path: Path) -> None:
    for name in ("a/001", "b/001"):
        clip(tmp_path / "sounds" / f"{name}.wav", 200 + len(name) + ord(name[0]))
    (tmp_path / "sounds" / "list").write_text("a/001 ten of clubs\nb/001 five five\n")
    assert [row.content["answer"] for row in read(tmp_path, transcripts="list")[0]] == [" ten of clubs", " five five"]


def test_a_text_beside_each_clip_is_its_transcript_on_one_line(tmp_path: Path) -> None:
    clip(tmp_path / "sounds" / "a.wav")
    (tmp_path / "sounds" / "a.txt").write_text("\ufeffEr war\n  nicht übel.\n", encoding="utf-8")
    assert read(tmp_path, transcripts="beside")[0][0].content["answer"] == " Er war nicht übel."


def test_the_key_of_a_row_tells_its_words_and_the_provenance_the_files_that_hold_them(tmp_path: Path) -> None:
    clip(tmp_path / "sounds" / "a.wav")
    keys, marks = set(), set()
    for words in ("one", "two"):
        (tmp_path / "sounds" / "a.txt").write_text(words)
        source = SoundFolder(path="sounds", rate=8000, shortest=0.01, split=0, transcripts="beside")
        rows = source.rows(Rows(), Place(Models({}), Streams(0), base=str(tmp_path)))
        keys.add(rows.train[0].key)
        marks.add(rows.provenance[0]["sha256"])
    assert len(keys) == len(marks) == 2


def folder_with(tmp_path: Path, what: str) -> Path:
    """A good clip, and one that is bad in one way."""
    clip(tmp_path / "sounds" / "good.wav")
    clip(tmp_path / "sounds" / "odd.wav", 2000 if what == "long" else 300)
    (tmp_path / "sounds" / "good.txt").write_text("well said")
    if what != "silent":
        (tmp_path / "sounds" / "odd.txt").write_text(" \n" if what == "empty" else "odd words")
    if what == "corrupt":
        (tmp_path / "sounds" / "odd.wav").write_bytes((tmp_path / "sounds" / "odd.wav").read_bytes()[:100])
    return tmp_path


BAD = [("silent", "no transcript"), ("empty", "no transcript"), ("long", "0.2 s, longer than 0.1"), ("corrupt", "cut short")]


@pytest.mark.parametrize(("what", "says"), BAD)
def test_a_clip_without_transcript_one_too_long_and_a_corrupt_one_are_named_or_left_out_with_a_count(tmp_path: Path, what: str, says: str) -> None:
    folder = folder_with(tmp_path, what)
    with pytest.raises(Refused, match=says) as caught:
        read(folder, transcripts="beside")
    assert caught.value.slug == "data" and "odd.wav" in caught.value.where and "max_bad: 1" in caught.value.do
    found, notes = read(folder, transcripts="beside", max_bad=1)
    assert [row.content["answer"] for row in found] == [" well said"] and any("1 files" in note and says in note for note in notes)


def test_without_transcripts_a_long_clip_is_cut_off_as_ever(tmp_path: Path) -> None:
    assert sorted(len(row.content["wave"]) for row in read(folder_with(tmp_path, "long"))[0]) == [200, 800]


LISTS = [
    ("a one\na two\n", "transcript", "one transcript"),
    ("alone\n", "transcript", "its words"),
    ("<s> </s> (a)\n", "transcript", "its words"),
    (b"a \xff\xfe\n", "data", "UTF-8"),
]


@pytest.mark.parametrize(("content", "slug", "says"), LISTS)
def test_a_list_that_cannot_be_read_is_refused_with_its_line(tmp_path: Path, content: Any, slug: str, says: str) -> None:
    clip(tmp_path / "sounds" / "a.wav")
    (tmp_path / "sounds" / "list").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(Refused, match=says) as caught:
        read(tmp_path, transcripts="list")
    assert caught.value.slug == slug and "list" in caught.value.where


def test_a_list_that_is_not_there_is_refused(tmp_path: Path) -> None:
    clip(tmp_path / "sounds" / "a.wav")
    with pytest.raises(Refused, match="files of this name"):
        read(tmp_path, transcripts="*.trans.txt")


def test_made_clips_of_several_vowels_are_as_long_and_named_as_what_they_are_made_of() -> None:
    here = Place(Models({}), Streams(0))
    plain, spoken = (Vowels(num=20, seconds=0.1, split=0, words=words).rows(Rows(), here).train for words in (0, 3))
    said = [row.content["answer"].split() for row in spoken]
    assert [len(words) for words in said] == [1 + i % 3 for i in range(20)] and {word for words in said for word in words} <= set(FORMANTS)
    assert [words[0] for words in said] == [row.tag for row in plain] and all("label" not in row.content for row in spoken)
    short, longest = min(len(row.content["wave"]) for row in spoken), max(len(row.content["wave"]) for row in spoken)
    assert 1066 <= short and 3 * 1066 <= longest <= 3 * 2134  # a vowel lasts 0.067 to 0.133 s


def test_the_same_words_in_other_sounds_are_no_overlap() -> None:
    rows = Vowels(num=40, seconds=0.1, words=1).rows(Rows(), Place(Models({}), Streams(0)))
    assert rows.held_out and drop_overlap(rows).held_out == rows.held_out
