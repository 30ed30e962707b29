"""FASTA files: windows, regions, letters that are none, and what is counted."""

import gzip
import sys
from pathlib import Path
from typing import Any

import pytest

from limbeck.data.base import Place, Rows
from limbeck.data.fasta import Fasta
from limbeck.errors import Failed, Refused
from limbeck.model.base import Models
from limbeck.numerics import Streams

SEQUENCE = "ACGTACGGTTCAACGATTGCACGTACCA"  # 28 bases


def read(folder: Path, **fields: Any) -> Rows:
    return Fasta(**{"path": "*.fa*", "shortest": 1, "split": 0.0, **fields}).rows(Rows(), Place(Models({}), Streams(0), base=str(folder)))


def texts(rows: Rows) -> list[str]:
    return [row.content["text"] for row in rows.train]


def test_sequences_are_cut_into_windows_from_the_left_and_the_rest_is_a_shorter_one(tmp_path: Path) -> None:
    (tmp_path / "a.fa").write_text(f">one the first\n{SEQUENCE[:10]}\n{SEQUENCE[10:]}\n\n>two\nACG\n")
    assert texts(read(tmp_path, bases=12)) == [SEQUENCE[:12], SEQUENCE[12:24], SEQUENCE[24:], "ACG"]
    found = read(tmp_path, bases=12, shortest=4)
    assert texts(found) == [SEQUENCE[:12], SEQUENCE[12:24], SEQUENCE[24:]] and found.notes == ("fasta: 1 windows of fewer than 4 bases dropped",)
    assert texts(read(tmp_path, bases=100)) == [SEQUENCE, "ACG"]
    assert [row.source for row in read(tmp_path, bases=12).train] == ["a.fa/one/0"] * 3 + ["a.fa/two/0"]


def test_windows_that_overlap_stay_within_a_region_which_is_held_out_as_one(tmp_path: Path) -> None:
    long = "".join("ACGT"[(i * i // 7 + i // 3) % 4] for i in range(2000))
    (tmp_path / "a.fa").write_text(f">one\n{long}\n")
    rows = read(tmp_path, bases=20, stride=5, region=100, split=0.4)
    sides = [{row.source for row in some} for some in (rows.train, rows.held_out)]
    assert sides[0].isdisjoint(sides[1]) and len(sides[0] | sides[1]) == 20 and all(len(side) > 3 for side in sides)
    for row in (*rows.train, *rows.held_out):
        first = int(row.source.rpartition("/")[2])
        assert row.content["text"] in long[first : first + 100]  # a window that crossed regions would be in both
    one = [row.content["text"] for row in (*rows.train, *rows.held_out) if row.source == "a.fa/one/100"]
    assert one == [long[i : i + 20] for i in range(100, 181, 5)]


def test_packed_files_and_lower_case_are_read_and_told(tmp_path: Path) -> None:
    (tmp_path / "a.fa.gz").write_bytes(gzip.compress(b">one\nACGTacgtNN\r\nnnAC\r\n"))
    rows = read(tmp_path, most_unknown=1.0)
    assert texts(rows) == ["ACGTACGTNNNNAC"] and rows.notes == ("fasta: 6 of 14 letters are lower case, and read as upper case",)


def test_letters_that_are_none_are_refused_by_name_and_place_or_read_as_unknown(tmp_path: Path) -> None:
    (tmp_path / "a.fa").write_text(">one\nACGT\n>two of RNA\nACGU\nRACU\n")
    with pytest.raises(Refused) as caught:
        read(tmp_path)
    error = caught.value
    assert error.slug == "letter" and "a.fa:3  two" in error.where and "other: unknown" in error.do
    assert error.got == "'R' 1 times, 'U' 2 times; first at base 4"
    rows = read(tmp_path, other="unknown", most_unknown=1.0)
    assert texts(rows) == ["ACGT", "ACGNNACN"] and rows.notes == ("fasta: 3 of 12 letters are none of A, C, G, T and N, and read as N",)


def test_windows_in_gaps_are_dropped_and_counted(tmp_path: Path) -> None:
    (tmp_path / "a.fa").write_text(f">one\nACGTACGTAN{'N' * 20}ACGTACGTNN\n")
    rows = read(tmp_path, bases=10)
    assert texts(rows) == ["ACGTACGTAN"] and rows.notes == ("fasta: 3 windows dropped: more than 10% of their letters are N",)


def test_a_file_may_be_a_label(tmp_path: Path) -> None:
    for name, text in (("b.fa", "CCCC"), ("a.fa", "AAAA"), ("c.fa", "AAAA")):
        (tmp_path / name).write_text(f">one\n{text}\n")
    rows = read(tmp_path, label="file").train
    assert [(r.content["text"], r.content["label"], r.tag) for r in rows] == [("AAAA", 0, "a"), ("CCCC", 1, "b"), ("AAAA", 2, "c")]
    (tmp_path / "held").mkdir()
    (tmp_path / "held" / "c.fa").write_text(">one\nACAC\n")
    (held,) = read(tmp_path, label="file", held_out="held/*.fa").held_out
    assert (held.tag, held.content["label"]) == ("c", 2)
    assert len({row.key for row in rows}) == 3 and "label" not in read(tmp_path).train[0].content


@pytest.mark.parametrize(
    ("content", "error", "got"),
    [
        (b"ACGT\n", Refused, "'ACGT'"),
        (b"@read1\nACGT\n+\nIIII\n", Refused, "'@read1'"),
        (b">one\nAC\n>one\nGT\n", Refused, "one again"),
        (b"", Refused, "none in 1 files"),
        (b">one\n>two\n", Refused, "none in 1 files"),
        (gzip.compress(b">one\nACGTACGT\n" * 99)[:40], Failed, "ended before"),
        (b"\xff\xfe\x00", Refused, "\\xff"),
    ],
    ids=["no heading", "fastq", "twice", "empty", "headings alone", "half a gzip", "binary"],
)
def test_what_is_no_fasta_file_is_refused_in_one_clear_message(tmp_path: Path, content: bytes, error: Any, got: str) -> None:
    (tmp_path / "a.fa").write_bytes(content)
    with pytest.raises(error) as caught:
        read(tmp_path)
    assert got in caught.value.got


def test_files_of_an_installed_package_are_found_and_another_one_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mygenomes" / "data").mkdir(parents=True)
    (tmp_path / "mygenomes" / "__init__.py").write_text("raise AssertionError('no code of it is run')\n")
    (tmp_path / "mygenomes" / "data" / "one.fa").write_text(">one\nACGT\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert texts(read(Path("/"), path="package:mygenomes/data/*.fa")) == ["ACGT"]
    with pytest.raises(Refused) as caught:
        read(tmp_path, path="package:nogenomes/data/*.fa")
    assert caught.value.slug == "package" and caught.value.do == "pip install nogenomes" and caught.value.code == 3
