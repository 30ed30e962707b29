import hashlib

import pytest

from limbeck.data.base import Rows
from limbeck.data.text import Text


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "deep").mkdir()
    for name, text in {"b.txt": "second", "a.txt": "first\n\nfirst again", "deep/c.txt": "third", "empty.txt": " \n"}.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def read(place, **fields) -> Rows:
    return Text(**{"split": 0, **fields}).rows(Rows(), place())


def texts(rows: Rows) -> list[str]:
    return [row.content["text"] for row in rows.train]


def test_files_are_documents_in_the_order_of_their_names(place, folder):
    assert texts(read(place, path="*.txt")) == ["first\n\nfirst again", "second"]
    assert texts(read(place, path="**/*.txt")) == ["first\n\nfirst again", "second", "third"]
    assert texts(read(place, path="b.txt")) == ["second"] == texts(read(place, path=str(folder / "b.txt")))


def test_a_separator_parts_the_documents_of_a_file(place, folder):
    assert texts(read(place, path="a.txt", separator="\n\n")) == ["first", "first again"]


def test_text_is_taken_as_it_stands_but_for_a_byte_order_mark(place, tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeff  é\r\n\tx \u202e".encode())
    assert texts(read(place, path="a.txt")) == ["  é\r\n\tx \u202e"]


def test_links_and_names_with_brackets_are_read(place, tmp_path):
    (tmp_path / "a[1].txt").write_text("bracket")
    (tmp_path / "link.txt").symlink_to(tmp_path / "a[1].txt")
    assert texts(read(place, path="a[1].txt")) == ["bracket"] == texts(read(place, path="link.txt"))


def test_the_same_text_is_kept_once_with_a_note(place, folder):
    (folder / "z.txt").write_text("second")
    rows = read(place, path="*.txt")
    assert texts(rows) == ["first\n\nfirst again", "second"]
    assert rows.notes == ("text: 1 of 3 rows repeat another one, and are kept once",)


def test_keys_come_from_the_content_and_not_from_the_name(place, folder):
    before = {row.content["text"]: row.key for row in read(place, path="*.txt").train}
    (folder / "b.txt").rename(folder / "0.txt")
    assert {row.content["text"]: row.key for row in read(place, path="*.txt").train} == before and len(set(before.values())) == 2


def test_provenance_is_the_hash_of_the_files(place, folder):
    (facts,) = read(place, path="b.txt", licence="CC0-1.0").provenance
    assert facts == {"name": "b.txt", "sha256": hashlib.sha256(b"second").hexdigest(), "files": 1, "rows": 1, "licence": "CC0-1.0"}
    first, second = (hashlib.sha256(x).hexdigest() for x in (b"first\n\nfirst again", b"second"))
    assert read(place, path="[ab].txt").provenance[0]["sha256"] == hashlib.sha256((first + second).encode()).hexdigest()


def test_a_held_out_file_leaves_all_of_the_source_to_train_on(place, folder):
    rows = read(place, path="[ab].txt", held_out="deep/*.txt", split=0.9)
    assert len(rows.train) == 2 and [row.content["text"] for row in rows.held_out] == ["third"]
    assert rows.provenance[0]["held_out"]["name"] == "deep/*.txt"


def test_a_split_holds_out_its_share_of_documents(place, tmp_path):
    (tmp_path / "many.txt").write_text("\n".join(f"line {i}" for i in range(2000)))
    rows = read(place, path="many.txt", separator="\n", split=0.1)
    assert len(rows.train) + len(rows.held_out) == 2000 and 150 < len(rows.held_out) < 250  # 5 standard deviations: 67


def test_few_documents_are_noted_if_none_is_held_out_and_refused_if_all_are(place, folder, refused):
    assert read(place, path="b.txt", split=0.01).notes == ("text: nothing is held out: 1 rows are few for split 0.01",)
    error = refused(lambda: read(place, path="b.txt", split=0.9999))
    assert error == ("data", "data text  split: 0.9999", "rows to train on", "1 rows, all of them held out", "set split: 0, or add documents")


def test_no_file_is_refused(place, folder, refused):
    do = "correct path; a relative one starts at the folder of the recipe"
    assert refused(lambda: read(place, path="no/*.txt")) == ("data", "data text  path: no/*.txt", "at least one file", "none", do)
    do = "write deep/* for the files in it"
    assert refused(lambda: read(place, path="deep")) == ("data", "data text  path: deep", "at least one file", "a folder", do)
    for bad in ("a\0b", "x" * 5000):
        assert refused(lambda bad=bad: read(place, path=bad))[0] == "data"


def test_files_without_text_are_refused(place, folder, refused):
    error = refused(lambda: read(place, path="empty.txt"))
    assert error == ("data", "data text  path: empty.txt", "at least one row", "none in 1 files", "correct path")


def test_another_encoding_fails_with_file_and_byte(place, tmp_path, refused):
    (tmp_path / "latin.txt").write_bytes("naïve".encode("latin1"))
    assert refused(lambda: read(place, path="latin.txt"), code=4) == (
        "encoding",
        str(tmp_path / "latin.txt"),
        "UTF-8",
        "the byte 0xef at 2",
        "convert the file, as with iconv -f latin1 -t utf-8",
    )


def test_a_file_that_cannot_be_read_fails_with_its_name(place, folder, refused, monkeypatch):
    from pathlib import Path

    def broken(self):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "read_bytes", broken)
    error = refused(lambda: read(place, path="b.txt"), code=4)
    assert error == ("file", str(folder / "b.txt"), "a file that can be read", "Input/output error", "check the disk and the file's rights")
