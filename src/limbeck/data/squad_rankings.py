"""Questions about paragraphs, as a search for the paragraph."""

import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from limbeck.component import short
from limbeck.data._bm25 import search
from limbeck.data._files import find, finish, reading
from limbeck.data._ranked import Collection, Listing, held
from limbeck.data._records import Bad, words
from limbeck.data._trec import bad
from limbeck.data.base import Place, Source
from limbeck.signals import Row

MOST_BYTES = 1 << 30
"""Of a file, once it is unpacked."""


class SquadRankings(Listing, Source):
    r"""Reads question answering in the format of SQuAD as a search: paragraphs are documents, questions are queries, and the paragraph that a
    question was asked about is the one relevant to it.

    Files may be packed (`.json.gz`). Candidates come from BM25 over all paragraphs; the answers are not read. Judgements are sparse: another
    paragraph may answer a question too, and counts as wrong. Questions are trained on or held out by hash; paragraphs are seen by both.

    Example:
        >>> SquadRankings(path="xquad.en.json.gz", depth=20).negatives
        'all'

    References:
        Rajpurkar et al., SQuAD: 100,000+ Questions for Machine Comprehension of Text, 2016, arXiv:1606.05250.
        Artetxe, Ruder and Yogatama, On the Cross-lingual Transferability of Monolingual Representations, 2020, arXiv:1910.11856 (XQuAD).
    """

    kind: Literal["squad_rankings"] = "squad_rankings"
    path: str
    """Files to read, as in `xquad.*.json.gz`; a relative one starts at the recipe."""

    @classmethod
    def example(cls) -> "SquadRankings":
        return cls(path="search/squad.json", depth=6)

    def read(self, place: Place, path: str | None) -> tuple[list[Row], Mapping[str, Any], list[str]]:
        files = find(path or self.path, place.base, self.kind)
        documents: dict[str, str] = {}
        queries: dict[str, str] = {}
        judged: dict[str, dict[str, int]] = {}
        for file in files:
            self.take(file, documents, queries, judged)
        found = Collection(documents, queries, judged, search(documents, queries, self.depth))
        rows, notes = self.lists(found, place, lambda query: path is not None or self.held_out is None and held(query, self.split), self.kind)
        rows, facts, more = finish(self, rows, notes, path or self.path, files, split=path is None)
        return rows, {**facts, "run": "BM25", "depth": self.depth, "negatives": self.negatives}, more

    def take(self, file: Path, documents: dict[str, str], queries: dict[str, str], judged: dict[str, dict[str, int]]) -> None:
        """The paragraphs and questions of one file; ids begin with its name, since translations of a set share theirs."""
        name = file.name.removesuffix(".gz").removesuffix(".json")
        for a, article in enumerate(part(opened(file, self.kind), "data", f"{file}", self.kind)):
            for p, paragraph in enumerate(part(article, "paragraphs", f"{file}  data.{a}", self.kind)):
                where = f"{file}  data.{a}.paragraphs.{p}"
                document = f"{name}/{a}.{p}"
                documents[document] = said(paragraph, "context", where, self.kind)
                for q, question in enumerate(part(paragraph, "qas", where, self.kind)):
                    query = f"{name}/{said(question, 'id', f'{where}.qas.{q}', self.kind)}"
                    if query in queries:
                        raise bad(self.kind, f"{where}.qas.{q}", "each question's id once", f"{short(query)} again")
                    queries[query] = said(question, "question", f"{where}.qas.{q}", self.kind)
                    judged[query] = {document: 1}


def opened(file: Path, kind: str) -> Any:
    """What a file of JSON holds, unpacked."""
    try:
        with reading(file), gzip.open(file) if file.suffix == ".gz" else file.open("rb") as packed:
            data = packed.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise bad(kind, f"{file}", f"at most {MOST_BYTES:,} bytes", "more")
        return json.loads(data)
    except (ValueError, EOFError, RecursionError) as error:
        raise bad(kind, f"{file}", "JSON in UTF-8", short(str(error))) from None


def part(value: Any, name: str, where: str, kind: str) -> list[Any]:
    """A list of a mapping."""
    found = value.get(name) if isinstance(value, Mapping) else None
    if not isinstance(found, list):
        raise bad(kind, where, f"a list called {name}, as SQuAD has it", "none", "name files in the format of SQuAD")
    return found


def said(value: Any, name: str, where: str, kind: str) -> str:
    """A text of a mapping."""
    try:
        return words(value.get(name) if isinstance(value, Mapping) else None, name)
    except Bad as reason:
        raise bad(kind, where, f"a text called {name}", str(reason)) from None
