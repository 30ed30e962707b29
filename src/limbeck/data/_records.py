"""Rows from records: what JSON lines, Parquet and chats share."""

import json
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator

from limbeck.component import nearest, short
from limbeck.data._files import find, finish, kind_of, reading
from limbeck.data.base import Place, Source, key_of
from limbeck.errors import Failed, Refused
from limbeck.signals import Row
from limbeck.text.spans import READ

LINE_BYTES = 10_000_000
"""Longer lines are no records: a file without line breaks is never in memory whole."""


class Bad(Exception):
    """Why a record cannot be a row."""


class Records(Source):
    """Rows from files of records, one row a record."""

    path: str
    """Files to read, as in `lessons/*.jsonl` (`**` for all folders below); a relative one starts at the recipe."""
    tag: str = "tag"
    """Name of the field that says what a row is (a domain, chosen, rejected), where there is one."""
    max_bad: Annotated[int, Field(ge=0)] = 0
    """So many broken records may be left out, with a note; one more stops the run."""

    @abstractmethod
    def records(self, path: Path) -> Iterator[tuple[str, Any]]:
        """Place and record, one after the other; a `Bad` in place of a record that cannot be read."""

    @abstractmethod
    def pick(self, names: Collection[str]) -> dict[str, str]:
        """Kind of content -> field, of a record with fields of these names; raises `Bad`."""

    @abstractmethod
    def content(self, record: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
        """Content of a row, and the text that makes its document; raises `Bad`."""

    def read(self, place: Place, path: str | None) -> tuple[list[Row], Mapping[str, Any], list[str]]:
        pattern, kind, rows, bad = path or self.path, kind_of(self), [], []
        files = find(pattern, place.base, kind)
        for where, record in (found for file in files for found in self.records(file)):
            try:
                rows.append(self.row(record))
            except Bad as reason:
                bad.append(f"{where}: {reason}")
                if len(bad) > self.max_bad:
                    raise Refused(
                        "data",
                        f"data {kind}  {where}",
                        f"at most {self.max_bad} broken records",
                        str(reason),
                        f"correct it, or set max_bad: {len(bad)} to leave so many out",
                    ) from None
        notes = [f"{kind}: {len(bad):,} broken records left out, the first {bad[0]}"] if bad else []
        rows, more = self.kept(rows)
        return finish(self, rows, [*notes, *more], pattern, files, split=path is None)

    def row(self, record: Any) -> Row:
        """A record as a row; raises `Bad`."""
        if isinstance(record, Bad):
            raise record
        if not isinstance(record, Mapping):
            raise Bad("no mapping from names to values")
        content, document = self.content(record)
        tag = record.get(self.tag)
        name = "" if tag is None else words(tag if isinstance(tag, str) else json.dumps(tag, default=str), self.tag)
        return Row(key_of(json.dumps(content, sort_keys=True, default=str), name), content, tag=name, source=key_of(document))

    def kept(self, rows: list[Row]) -> tuple[list[Row], list[str]]:
        """The rows that can be used, and notes about the others."""
        return rows, []


class Texts(Records):
    """Rows from records whose fields are texts: one text each, or a prompt and perhaps its answer."""

    text: str = "text"
    """Name of the field that holds a whole text."""
    prompt: str = "prompt"
    """Name of the field that holds a prompt; where there is one, `text` is not read."""
    answer: str = "answer"
    """Name of the field that holds the answer to the prompt; where there is none, a later step writes the answers."""
    fields: tuple[str, ...] = ()
    """Names of further fields that are kept as texts, such as a rationale; a row may lack them."""

    @field_validator("fields")
    @classmethod
    def further(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if taken := {*READ, "ids", "asked"} & set(value):
            raise ValueError(f"further fields, not {', '.join(sorted(taken))}")
        return value

    def pick(self, names: Collection[str]) -> dict[str, str]:
        if self.text != "text" and self.prompt != "prompt":
            raise Bad("text and prompt are both named, and a row has one of them")
        if self.prompt != "prompt" or self.text == "text" and self.prompt in names:
            fields = {"prompt": self.prompt} | ({"answer": self.answer} if self.answer in names or self.answer != "answer" else {})
        else:
            fields = {"text": self.text}
        for field in fields.values():
            if field not in names:
                raise Bad(missing(field, names))
        return fields | {name: name for name in self.fields if name in names}

    def content(self, record: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
        fields = self.pick(record)
        content = {name: words(record[field], field) for name, field in fields.items() if name in ("text", "prompt") or record[field] is not None}
        return content, content.get("prompt", content.get("text", ""))


def missing(field: str, names: Collection[str]) -> str:
    """That a field is not there, and which one was probably meant."""
    return f"no field {short(field)}: perhaps {short(nearest(field, list(names)[:20]), 200)}" if names else "no field at all"


def words(value: Any, field: str) -> str:
    """A text that is some, and can be written as UTF-8; raises `Bad`."""
    if not isinstance(value, str):
        raise Bad(f"{field} is {'null' if value is None else type(value).__name__}, not text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise Bad(f"{field} has half a character (a lone surrogate) at {error.start}") from None
    return value


def json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """Place and value of every line that is not blank."""
    with reading(path), path.open("rb") as file:
        number = 0
        while line := file.readline(LINE_BYTES + 1):
            number += 1
            fits = len(line.removesuffix(b"\n")) <= LINE_BYTES
            while not fits and line and not line.endswith(b"\n"):
                line = file.readline(LINE_BYTES)
            if not fits or line.strip():
                yield f"{path}:{number}", parsed(line) if fits else Bad(f"a line of more than {LINE_BYTES:,} bytes")


def parsed(line: bytes) -> Any:
    """A line of JSON, or `Bad`."""
    try:
        return json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return Bad(f"no UTF-8 at byte {error.start} of the line")
    except (ValueError, RecursionError) as error:
        return Bad(f"no JSON: {short(str(error))}")


def parquet_rows(path: Path, pick: Callable[[Collection[str]], Mapping[str, str]], tag: str) -> Iterator[tuple[str, Any]]:
    """Place and record of every row, of the columns that are read, one row group in memory at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with reading(path), pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            try:
                columns = [*pick(names).values(), *([tag] if tag in names else [])]
            except Bad as reason:
                raise Refused(
                    "key",
                    f"data  {path}",
                    f"columns that are there: {short(', '.join(names), 200)}",
                    str(reason),
                    "name the columns to read, as in text: body",
                ) from None
            number = 0
            for group in range(file.num_row_groups):
                for record in file.read_row_group(group, columns=columns).to_pylist():
                    yield f"{path} row {number}", record
                    number += 1
    except (pa.ArrowException, ValueError) as error:  # ValueError: text that is no UTF-8
        raise Failed("file", str(path), "a Parquet file", short(str(error), 120), "write the file again") from None
