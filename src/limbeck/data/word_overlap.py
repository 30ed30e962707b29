"""Made-up queries and documents that share words."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator

from limbeck.data._ranked import Collection, Hit, Listing, held
from limbeck.data.base import Place, Source
from limbeck.errors import Refused
from limbeck.signals import Row
from limbeck.store import sha256_json

SYLLABLES = tuple(a + b for a in "bdfgklmnprst" for b in "aeiou")
"""Words are two of them."""


class WordOverlap(Listing, Source):
    r"""Draws queries of made-up words, and for each documents that hold some of them: the more, the more relevant.

    $$ \mathrm{grade}(d) = |q \cap d|, \qquad \mathrm{score}(d) = \mathrm{grade}(d) + \epsilon, \quad \epsilon \sim U(0, \mathrm{noise}) $$

    The run that comes with it is the order by score: what a good re-ranker would say. With `labels: sparse` a training list has one label,
    drawn among its best documents, as collections of clicks have; held-out lists have all grades. Everything is drawn by the seed of the
    recipe. For trials, where every grade is known; it says nothing about language.

    Example:
        >>> WordOverlap(num=50).labels
        'sparse'

    References:
        (folklore)
    """

    kind: Literal["word_overlap"] = "word_overlap"
    num: Annotated[int, Field(ge=2, le=1_000_000)] = 200
    """Queries, with those held out."""
    candidates: Annotated[int, Field(ge=2, le=1000)] = 16
    """Documents drawn for each query."""
    vocabulary: Annotated[int, Field(ge=8, le=len(SYLLABLES) ** 2)] = 60
    """Words that there are."""
    query_words: Annotated[int, Field(ge=1, le=20)] = 3
    """Words of a query, no two alike."""
    document_words: Annotated[int, Field(ge=1, le=200)] = 6
    """Words of a document, no two alike."""
    labels: Literal["sparse", "graded"] = "sparse"
    """sparse: one label a training list, 1; graded: each document's grade."""
    noise: Annotated[float, Field(ge=0)] = 0.5
    """The most that is added to the grade of a document: above 1, the run puts some in a wrong order."""
    split: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Share of queries that is held out for evaluation, chosen by hash."""
    licence: str | None = "CC0-1.0"
    """Licence of the rows, for the model card."""

    @model_validator(mode="after")
    def enough_words(self) -> "WordOverlap":
        if self.vocabulary < self.query_words + self.document_words or self.document_words < self.query_words:
            raise ValueError("vocabulary: as many words as a query and a document together; document_words: as many as query_words")
        return self

    def read(self, place: Place, path: str | None) -> tuple[list[Row], Mapping[str, Any], list[str]]:
        if path is not None:
            do = "remove held_out"
            raise Refused("key", "data word_overlap  held_out", "queries, of which split holds out a share", f"held_out: {path}", do)
        found = Collection({}, {}, {}, {})
        for n in range(self.num):
            self.draw(f"{n:06d}", place.streams("word_overlap", n), found)
        rows, notes = self.lists(found, place, lambda query: held(query, self.split), self.kind)
        facts = {"name": "word_overlap", "sha256": sha256_json([row.key for row in rows]), "rows": len(rows), "licence": self.licence}
        return rows, {**facts, "candidates": self.candidates, "depth": self.depth, "negatives": self.negatives}, notes

    def draw(self, query: str, stream: torch.Generator, found: Any) -> None:
        """One query with its documents, into the collection."""

        def some(num: int, of: int) -> list[int]:
            return torch.randperm(of, generator=stream, device="cpu")[:num].tolist()

        words = some(self.vocabulary, self.vocabulary)
        asked, others = words[: self.query_words], words[self.query_words :]
        grades = torch.randint(self.query_words + 1, (self.candidates,), generator=stream, device="cpu").tolist()
        scores = (torch.tensor(grades, device="cpu") + self.noise * torch.rand(self.candidates, generator=stream, device="cpu")).tolist()
        names = [f"{query}-{i}" for i in range(self.candidates)]
        for name, grade in zip(names, grades, strict=True):
            inside = [asked[i] for i in some(grade, len(asked))] + [others[i] for i in some(self.document_words - grade, len(others))]
            found.documents[name] = " ".join(word(inside[i]) for i in some(len(inside), len(inside)))
        best = [name for name, grade in zip(names, grades, strict=True) if grade == max(grades) > 0]
        clicked = {best[some(1, len(best))[0]]: 1} if best else {}
        found.queries[query] = " ".join(word(i) for i in asked)
        found.judged[query] = clicked if self.labels == "sparse" and not held(query, self.split) else dict(zip(names, grades, strict=True))
        order = sorted(range(self.candidates), key=lambda i: -scores[i])
        found.run[query] = [Hit(names[i], rank, scores[i]) for rank, i in enumerate(order, 1)]


def word(number: int) -> str:
    """A word of two syllables for each number."""
    return SYLLABLES[11 * number % len(SYLLABLES)] + SYLLABLES[(number // len(SYLLABLES) + 7 * number) % len(SYLLABLES)]
