"""Captions of pictures in files: one file for all of them, or one of text beside each."""

from collections.abc import Mapping, Set
from pathlib import Path
from typing import NamedTuple

from limbeck.component import short
from limbeck.data._files import reading
from limbeck.data._images import SUFFIXES
from limbeck.data._records import Bad, json_lines, words
from limbeck.errors import Refused

NAME, TEXT = "file_name", "text"
WHERE = "data image_folder  captions"


class Captioned(NamedTuple):
    """Pictures with their captions."""

    pictures: dict[Path, str | None]
    """File -> caption; None where it has none."""
    files: list[Path]
    """What the captions were read from."""


def captions_of(root: Path, captions: str) -> Captioned:
    """The pictures below a folder, each with its caption, in the order of their names.

    Args:
        root: the folder.
        captions: `.txt` for a file of text beside each picture, or the name of a file of JSON lines in the folder.

    Raises:
        Refused: `data`, if there is no picture, or a caption of none.
    """
    found = sorted(file for file in root.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file()) if root.is_dir() else []
    if not found:
        got = "no folder" if not root.is_dir() else "none below it"
        raise Refused("data", f"data image_folder  path: {short(str(root))}", "pictures with captions", got, "correct path")
    if captions.endswith(".jsonl") or not captions.startswith("."):
        texts, files = listed(root, root / captions, set(found)), [root / captions]
        return Captioned({file: texts.get(file) for file in found}, files)
    beside = {file: file.with_suffix(captions) for file in found}
    files = [text for text in beside.values() if text.is_file()]
    if not files:
        expected = f"a file {found[0].with_suffix(captions).name} beside {found[0].name}"
        raise Refused("data", WHERE, expected, "none beside any picture", "correct captions")
    return Captioned({file: plain(text) if text.is_file() else None for file, text in beside.items()}, files)


def listed(root: Path, file: Path, pictures: Set[Path]) -> Mapping[Path, str]:
    """Picture -> caption, of a file of JSON lines."""
    if not file.is_file():
        do = "name a file of JSON lines in the folder, such as metadata.jsonl, or write .txt for texts beside pictures"
        raise Refused("data", WHERE, f"the file {short(file.name)} in {short(str(root))}", "no such file", do)
    out: dict[Path, str] = {}
    for where, record in json_lines(file):
        try:
            if isinstance(record, Bad):
                raise record
            if not isinstance(record, Mapping) or not {NAME, TEXT} <= record.keys():
                raise Bad(f"no record with {NAME} and {TEXT}")
            picture = root / words(record[NAME], NAME)
            if picture not in pictures:
                raise Bad(f"no picture {short(record[NAME])}")
            out[picture] = words(record[TEXT], TEXT).strip()
        except Bad as reason:
            expected = f"{NAME}, a picture in the folder, and {TEXT}"
            raise Refused("data", f"data image_folder  {where}", expected, str(reason), "correct the line") from None
    return out


def plain(file: Path) -> str:
    """The text of a file, without blanks around it."""
    with reading(file):
        try:
            return file.read_bytes().decode("utf-8-sig").strip()
        except UnicodeDecodeError as error:
            raise Refused("data", f"data image_folder  {file}", "text as UTF-8", f"none at byte {error.start}", "write it as UTF-8") from None
