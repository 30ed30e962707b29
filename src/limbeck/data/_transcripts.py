"""Transcripts of sounds in files: one beside each sound, or lists as CMU Sphinx and LibriSpeech keep them."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from limbeck.data._files import reading
from limbeck.errors import Refused

BESIDE = "beside"
"""Says that NAME.txt lies beside NAME.wav."""
MARKED = re.compile(r"(?:<s>)?(?P<words>.*?)(?:</s>)?\s*\((?P<name>[^()\s]+)\)")
"""A line of CMU Sphinx: `<s> words </s> (name)`."""


class Transcripts:
    """What is said in each sound of a folder."""

    def __init__(self, root: Path, where: str):
        """Args:
        root: the folder of the sounds.
        where: `beside`, or how files that list transcripts are called, such as transcription or *.trans.txt.
        """
        self.root, self.where = root, where
        self.known: dict[str, str] = {}
        self.lists: list[Path] = []
        if where == BESIDE:
            return
        self.lists = lists = sorted(file for file in root.rglob(where) if file.is_file())
        if not lists:
            expected = f"files of this name in {root}, or below"
            do = "correct the name, or write transcripts: beside"
            raise Refused("transcript", f"data sound_folder  transcripts: {where}", expected, "none", do)
        for file in lists:
            for i, line in enumerate(lines_of(file), 1):
                if line.strip():
                    self.add(line, f"{file}:{i}")

    def add(self, line: str, where: str) -> None:
        """One line of a list.

        Raises:
            Refused: `transcript`, for one that names no sound, or a sound that has another transcript.
        """
        marked = MARKED.fullmatch(line.strip())
        name, words = (marked["name"], marked["words"]) if marked else line.strip().partition(" ")[::2]
        words = " ".join(words.split())
        if not name or not words:
            do = "write <s> words </s> (NAME), or NAME and the words"
            raise Refused("transcript", f"data sound_folder  {where}", "the name of a sound and its words", repr(line.strip()[:80]), do)
        if self.known.setdefault(name, words) != words:
            got = f"two of {name}"
            raise Refused("transcript", f"data sound_folder  {where}", "one transcript for each sound", got, "remove one, or give sounds other names")

    def files(self, sounds: Iterable[Path]) -> list[Path]:
        """The files that hold the transcripts of some sounds."""
        return self.lists or [file.with_suffix(".txt") for file in sounds]

    def of(self, file: Path) -> str | None:
        """The words of a sound; None where there are none."""
        if self.where != BESIDE:
            return next((self.known[name] for name in names(file, self.root) if name in self.known), None)
        text = file.with_suffix(".txt")
        return " ".join(" ".join(lines_of(text)).split()) or None if text.is_file() else None


def names(file: Path, root: Path) -> Sequence[str]:
    """How a list may call a sound: by its path from the folder, or by itself."""
    path = file.relative_to(root).with_suffix("").as_posix()
    return (path, file.stem)


def lines_of(file: Path) -> list[str]:
    """The lines of a text.

    Raises:
        Refused: `data`, for what is no text of UTF-8.
    """
    with reading(file):
        content = file.read_bytes()
    try:
        return content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise Refused("data", f"data sound_folder  {file}", "text of UTF-8", f"byte {error.start:,} is none", "save it as UTF-8") from None
