"""Sentences that search for the passage they were taken from."""

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Field

from limbeck.data._bm25 import search
from limbeck.data._overlap import WORD
from limbeck.data._ranked import Collection, Listing
from limbeck.data.base import Part, Place, Rows
from limbeck.errors import Refused
from limbeck.signals import Row

END = re.compile(r"(?<=[.!?])\s+")
BREAK = re.compile(r"\n\s*\n")


class InverseCloze(Listing):
    r"""Makes a search of plain text: a sentence is the query, and the passage that it was taken from, without it, is what it searches for.

    Documents that came before it in `data` are cut into passages at blank lines; all passages together are the collection, and BM25 over them
    gives each query its candidates. Of each passage that is long enough one sentence is drawn, by the seed. Queries from held-out documents
    are held out. It needs no judgements, so it works for any text; what is relevant is then only what stood beside. For search engines'
    questions, read them with `rankings`.

    Example:
        >>> InverseCloze(shortest=30).depth
        100

    References:
        Lee, Chang and Toutanova, Latent Retrieval for Weakly Supervised Open Domain Question Answering, 2019, arXiv:1906.00300.
    """

    kind: Literal["inverse_cloze"] = "inverse_cloze"
    shortest: Annotated[int, Field(ge=2)] = 20
    """Words that a passage has at least, without its query."""
    query_words: Annotated[int, Field(ge=1)] = 5
    """Words that a query has at least."""

    @classmethod
    def example(cls) -> "InverseCloze":
        return cls(shortest=2, query_words=1, depth=6)

    def rows(self, rows: Rows, place: Place) -> Rows:
        found = Collection({}, {}, {}, {})
        held: set[str] = set()
        every = (*rows.train, *rows.held_out)
        for row in every:
            for name, passage in passages(row):
                self.take(name, passage, place, found)
                if row.split == "held_out":
                    held.add(name)
        if rows.train and not found.queries:
            raise Refused("data", "data inverse_cloze", f"passages of {self.shortest} words and a sentence", "none", "lower shortest, or query_words")
        run = search(found.documents, found.queries, self.depth)
        made, notes = self.lists(replace(found, run=run), place, held.__contains__, self.kind)
        train = tuple(row for row in made if row.split == "train")
        told = [f"inverse_cloze: {len(found.queries):,} queries of {len(found.documents):,} passages"] if found.queries else []
        other = sum(not isinstance(row.content.get("text"), str) for row in every)
        told += [f"inverse_cloze: {other:,} rows without a text left out"] if other else []
        held_out = tuple(row for row in made if row.split == "held_out")
        return Rows((Part(train),) if train else (), held_out, rows.provenance, (*rows.notes, *told, *notes))

    def take(self, name: str, passage: str, place: Place, found: Any) -> None:
        """One passage into the collection, and a sentence of it as its query, where it is long enough."""
        found.documents[name] = passage
        sentences = END.split(passage)
        sizes = [len(WORD.findall(sentence)) for sentence in sentences]
        fit = [i for i, size in enumerate(sizes) if size >= self.query_words and sum(sizes) - size >= self.shortest]
        if fit:
            pick = fit[place.streams.number("inverse_cloze", name) % len(fit)]
            found.queries[name], found.judged[name] = sentences[pick], {name: 1}
            found.documents[name] = " ".join(sentence for i, sentence in enumerate(sentences) if i != pick)


def passages(row: Row) -> Iterator[tuple[str, str]]:
    """Id and text of the passages of a row."""
    text = row.content.get("text")
    for i, passage in enumerate(BREAK.split(text) if isinstance(text, str) else ()):
        if passage.strip():
            yield f"{row.key}.{i}", " ".join(passage.split())
