"""Parquet."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from limbeck.data._records import Texts, parquet_rows


class Parquet(Texts):
    r"""Reads Parquet files: a text, or a prompt and its answer, in each row.

    Only the named columns are read, one row group after the other. Where there is a column `prompt`, only the answer is
    learnt.

    Example:
        >>> Parquet(path="pages/*.parquet", text="body").split
        0.05

    References:
        Apache Parquet, https://parquet.apache.org.
    """

    kind: Literal["parquet"] = "parquet"

    @classmethod
    def example(cls) -> "Parquet":
        return cls(path="*.parquet")

    def records(self, path: Path) -> Iterator[tuple[str, Any]]:
        return parquet_rows(path, self.pick, self.tag)
