"""Collections as files: documents and queries as JSON lines or TSV, judgements and runs as TREC writes them."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from limbeck.component import short
from limbeck.data._files import reading
from limbeck.data._ranked import Hit
from limbeck.data._records import LINE_BYTES, Bad, json_lines, words
from limbeck.errors import Refused

IDS, TEXTS = ("id", "_id", "docno", "doc_id", "query_id", "qid"), ("text", "contents", "body", "query", "title")
"""Names of the fields of a JSON line that hold id and text: the first that is there."""
Unknown = Literal["refuse", "leave_out"]


def bad(kind: str, where: str, expected: str, got: str, do: str = "correct the file") -> Refused:
    return Refused("data", f"data {kind}  {where}", expected, got, do)


def lines(path: Path, kind: str) -> Iterator[tuple[str, str]]:
    """Place and text of every line that is not blank."""
    with reading(path), path.open("rb") as file:
        number = 0
        while line := file.readline(LINE_BYTES + 1):
            number += 1
            where = f"{path}:{number}"
            if len(line) > LINE_BYTES:
                raise bad(kind, where, f"lines of at most {LINE_BYTES:,} bytes", "a longer one")
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise bad(kind, where, "UTF-8", f"the byte 0x{line[error.start]:02x}", "convert the file, as with iconv -t utf-8") from None
            if text.strip():
                yield where, text.rstrip("\r\n")


def texts(files: Sequence[Path], kind: str) -> dict[str, str]:
    """Id -> text, of JSON lines (`.jsonl`, `.json`) or of TSV: an id, a tab, the text.

    Raises:
        Refused: for a line that is neither, and for an id that comes twice with another text.
    """
    found: dict[str, str] = {}
    for path in files:
        records = json_texts(path) if path.suffix in (".jsonl", ".json") else tab_texts(path, kind)
        for where, name, text in records:
            if isinstance(text, Bad):
                raise bad(kind, where, "an id and a text", str(text))
            if found.setdefault(name, text) != text:
                raise bad(kind, where, "each id once", f"{short(name)} again, with another text")
    return found


def json_texts(path: Path) -> Iterator[tuple[str, str, Any]]:
    for where, record in json_lines(path):
        try:
            if isinstance(record, Bad):
                raise record
            if not isinstance(record, Mapping):
                raise Bad("no mapping from names to values")
            name = next((record[field] for field in IDS if record.get(field) not in (None, "")), None)
            if not isinstance(name, (str, int)) or isinstance(name, bool):
                raise Bad(f"no id: none of {', '.join(IDS)}")
            field = next((field for field in TEXTS if field in record), None)
            if field is None:
                raise Bad(f"no text: none of {', '.join(TEXTS)}")
            yield where, str(name), words(record[field], field)
        except Bad as reason:
            yield where, "", reason


def tab_texts(path: Path, kind: str) -> Iterator[tuple[str, str, Any]]:
    for where, line in lines(path, kind):
        name, tab, text = line.partition("\t")
        yield where, name.strip(), text.strip() if tab and name.strip() and text.strip() else Bad(f"no tab between the two: {short(line)}")


def judgements(files: Sequence[Path], kind: str) -> dict[str, dict[str, int]]:
    """Query -> document -> grade, from qrels: `query 0 document grade`.

    Raises:
        Refused: for a line that is none, and for a document that is judged twice in two ways.
    """
    found: dict[str, dict[str, int]] = {}
    for where, line in (each for path in files for each in lines(path, kind)):
        parts = line.split()
        grade = whole(parts[3]) if len(parts) == 4 else None
        if grade is None:
            raise bad(kind, where, "query, iteration, document, and a whole number as grade", short(line))
        if found.setdefault(parts[0], {}).setdefault(parts[2], grade) != grade:
            raise bad(kind, where, f"one judgement of {short(parts[2])} for query {short(parts[0])}", f"{found[parts[0]][parts[2]]} and {grade}")
    return found


def run(
    files: Sequence[Path], kind: str, documents: Mapping[str, str], queries: Mapping[str, str], unknown: Unknown
) -> tuple[dict[str, list[Hit]], int]:
    """Query -> hits by rank, from a run: `query Q0 document rank score tag`; and how many lines of unknown ids were left out.

    Raises:
        Refused: for a line that is none, an unknown id (unless such lines are left out), a rank or a document that comes twice for a query.
    """
    found: dict[str, dict[int, Hit]] = {}
    seen: dict[str, set[str]] = {}
    left = 0
    for where, line in (each for path in files for each in lines(path, kind)):
        parts = line.split()
        rank, score = (whole(parts[3]), number(parts[4])) if len(parts) == 6 else (None, None)
        if rank is None or rank < 0 or score is None:
            raise bad(kind, where, "query, Q0, document, rank, score, tag", short(line))
        query, document = parts[0], parts[2]
        strange = f"query {short(query)}" if query not in queries else f"document {short(document)}" if document not in documents else ""
        if strange and unknown == "refuse":
            do = "add it to the collection, or set unknown: leave_out"
            raise bad(kind, where, "ids of the documents and queries that were read", f"{strange}, which is unknown", do)
        left += bool(strange)
        if strange:
            continue
        if rank in found.setdefault(query, {}):
            raise bad(kind, where, f"each rank once for query {short(query)}", f"rank {rank} again, of {short(document)}")
        if document in seen.setdefault(query, set()):
            raise bad(kind, where, f"each document once for query {short(query)}", f"{short(document)} again, at rank {rank}")
        seen[query].add(document)
        found[query][rank] = Hit(document, rank, score)
    return {query: counted([hits[rank] for rank in sorted(hits)]) for query, hits in found.items()}, left


def counted(hits: Sequence[Hit]) -> list[Hit]:
    """The same with ranks from 1 on, whatever the run began with or left out."""
    return [hit._replace(rank=i) for i, hit in enumerate(hits, 1)]


def whole(text: str) -> int | None:
    return parsed(int, text)


def number(text: str) -> float | None:
    value = parsed(float, text)
    return value if value is not None and math.isfinite(value) else None


def parsed(of: Callable[[str], Any], text: str) -> Any:
    try:
        return of(text) if len(text) < 40 and "_" not in text else None
    except ValueError:
        return None
