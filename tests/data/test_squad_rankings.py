"""Questions about paragraphs as a search, packed or not, and files that are none."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from limbeck.data.base import Place, Rows
from limbeck.data.squad_rankings import SquadRankings
from limbeck.errors import Refused
from limbeck.model.base import Models
from limbeck.numerics import Streams

PARAGRAPHS = [
    {"context": "The river floods in spring.", "qas": [{"id": "1", "question": "When does the river flood in spring?", "answers": []}]},
    {"context": "Trains leave in spring.", "qas": [{"id": "2", "question": "When do trains leave?"}, {"id": "3", "question": "Who is it?"}]},
]


def write(path: Path, value: Any) -> None:
    data = json.dumps(value).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def read(folder: Path, **fields: Any) -> Rows:
    return SquadRankings(**{"split": 0.0, **fields}).rows(Rows(), Place(Models({}), Streams(0), base=str(folder)))


@pytest.mark.parametrize("name", ["set.en.json", "set.en.json.gz"])
def test_a_question_searches_for_its_paragraph_among_all(name, tmp_path):
    write(tmp_path / name, {"data": [{"paragraphs": PARAGRAPHS}]})
    rows = read(tmp_path, path=name)
    lists = {row.content["query_id"]: {} for row in rows.train}
    for row in rows.train:
        lists[row.content["query_id"]][row.content["document_id"]] = row.content["relevance"]
    assert lists == {"set.en/1": {"set.en/0.0": 1, "set.en/0.1": 0}, "set.en/2": {"set.en/0.1": 1}}
    assert "squad_rankings: 1 of 3 lists without a relevant document left out" in rows.notes, "its question shares no word with any paragraph"


def test_translations_that_share_their_ids_are_kept_apart(tmp_path):
    for language in ("en", "de"):
        write(tmp_path / f"x.{language}.json", {"data": [{"paragraphs": PARAGRAPHS[:1]}]})
    assert {row.content["query_id"] for row in read(tmp_path, path="x.*.json").train} == {"x.en/1", "x.de/1"}


@pytest.mark.parametrize(
    "value, where, got",
    [
        ([], "a.json", "none"),
        ({"data": [{}]}, "data.0", "none"),
        ({"data": [{"paragraphs": [{"context": 3, "qas": []}]}]}, "data.0.paragraphs.0", "context is int, not text"),
        ({"data": [{"paragraphs": [{"context": "c", "qas": [{"id": "1"}]}]}]}, "data.0.paragraphs.0.qas.0", "question is null, not text"),
        ({"data": [{"paragraphs": [{**PARAGRAPHS[0], "qas": PARAGRAPHS[0]["qas"] * 2}]}]}, "data.0.paragraphs.0.qas.1", "a/1 again"),
    ],
)
def test_what_is_no_squad_is_refused_with_its_place(value, where, got, tmp_path):
    write(tmp_path / "a.json", value)
    with pytest.raises(Refused) as caught:
        read(tmp_path, path="a.json")
    assert caught.value.where.endswith(where) and caught.value.got == got


def test_a_file_that_is_cut_off_is_refused(tmp_path):
    write(tmp_path / "a.json.gz", {"data": [{"paragraphs": PARAGRAPHS}]})
    (tmp_path / "a.json.gz").write_bytes((tmp_path / "a.json.gz").read_bytes()[:60])
    with pytest.raises(Refused, match="JSON in UTF-8"):
        read(tmp_path, path="a.json.gz")
