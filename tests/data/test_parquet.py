import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from limbeck.data.base import Rows
from limbeck.data.parquet import Parquet


@pytest.fixture
def read(tmp_path, place):
    """Rows of a file with the given columns, in row groups of two."""

    def call(columns, **fields) -> Rows:
        pq.write_table(pa.table(columns), tmp_path / "a.parquet", row_group_size=2)
        return Parquet(**{"path": "a.parquet", "split": 0, **fields}).rows(Rows(), place())

    return call


def test_rows_come_in_the_order_of_the_file_over_row_groups(read):
    rows = read({"text": ["a", "b", "c", "d", "e"], "tag": ["x", None, "y", "", "z"], "other": [1, 2, 3, 4, 5]})
    assert [row.content["text"] for row in rows.train] == list("abcde") and [row.tag for row in rows.train] == ["x", "", "y", "", "z"]


def test_columns_may_be_named(read):
    rows = read({"question": ["a"], "solution": ["b"], "domain": ["maths"], "text": ["x"]}, prompt="question", answer="solution", tag="domain")
    assert dict(rows.train[0].content) == {"prompt": "a", "answer": "b"} and rows.train[0].tag == "maths"


def test_only_the_columns_that_are_read_are_loaded_one_row_group_at_a_time(read, monkeypatch):
    asked = []
    real = pq.ParquetFile.read_row_group
    monkeypatch.setattr(pq.ParquetFile, "read_row_group", lambda self, i, columns: asked.append((i, columns)) or real(self, i, columns=columns))
    read({"text": ["a", "b", "c"], "embedding": [[0.5]] * 3})
    assert asked == [(0, ["text"]), (1, ["text"])]


def test_a_column_that_is_not_there_is_refused_with_the_one_that_was_meant(read, refused, tmp_path):
    slug, where, expected, got, do = refused(lambda: read({"body": ["a"], "id": [1]}, text="boddy"))
    assert (slug, where) == ("key", f"data  {tmp_path / 'a.parquet'}")
    assert (expected, got, do) == ("columns that are there: body, id", "no field boddy: perhaps body", "name the columns to read, as in text: body")
    assert refused(lambda: read({"body": ["a"]}, max_bad=5))[3] == "no field text: perhaps one of body"


def test_a_null_is_a_broken_record(read, refused, tmp_path):
    error = refused(lambda: read({"text": ["a", "b", None]}))
    assert error[1:4] == (f"data parquet  {tmp_path / 'a.parquet'} row 2", "at most 0 broken records", "text is null, not text")
    assert len(read({"text": ["a", "b", None]}, max_bad=1).train) == 2


@pytest.mark.parametrize("data", [b"", b"PAR1", b"no parquet at all", b"PAR1" + b"\xff" * 100 + b"PAR1"])
def test_what_is_no_parquet_file_fails_with_its_name(tmp_path, place, refused, data):
    (tmp_path / "a.parquet").write_bytes(data)
    error = refused(lambda: Parquet(path="a.parquet").rows(Rows(), place()), code=4)
    assert error[:3] == ("file", str(tmp_path / "a.parquet"), "a Parquet file") and error[4] == "write the file again" and len(error[3]) <= 120


def test_damaged_files_end_in_one_of_our_errors_or_in_rows(tmp_path, place):
    from limbeck.errors import LimbeckError

    pq.write_table(pa.table({"text": [f"row {i}" for i in range(40)]}), tmp_path / "good.parquet")
    data = (tmp_path / "good.parquet").read_bytes()
    endings = set()
    for i in range(0, len(data), 7):
        for damaged in (data[:i], data[:i] + bytes([data[i] ^ 0xFF]) + data[i + 1 :]):
            (tmp_path / "a.parquet").write_bytes(damaged)
            try:
                Parquet(path="a.parquet", max_bad=40, split=0).rows(Rows(), place())
                endings.add("rows")
            except LimbeckError as error:
                endings.add(error.slug)
    assert endings >= {"file"} and endings <= {"rows", "file", "key", "data"}
