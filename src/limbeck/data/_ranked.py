"""Lists of candidates from a collection: what sources of rankings share."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field, model_validator

from limbeck.data.base import Place, Step, held_out, key_of
from limbeck.errors import Refused
from limbeck.signals import Row
from limbeck.text.tokens import shortened

CANDIDATES = 8
"""Of a sampled list, where the recipe does not say."""


class Hit(NamedTuple):
    """One line of a run."""

    document: str
    rank: int
    score: float | None


@dataclass(frozen=True)
class Collection:
    """Documents and queries by id, what was judged, and in which order a first search brought documents up."""

    documents: Mapping[str, str]
    queries: Mapping[str, str]
    judged: Mapping[str, Mapping[str, int]]
    """Query -> document -> relevance."""
    run: Mapping[str, Sequence[Hit]]
    """Query -> hits, best first."""
    notes: list[str] = field(default_factory=list)


class Listing(Step):
    """How lists are made of a run. Held-out queries get all candidates of the run, whatever is drawn for training."""

    makes: ClassVar[str] = "rankings"

    depth: Annotated[int, Field(ge=2)] = 100
    """Hits of the run that are candidates, from the first."""
    negatives: Literal["all", "sampled"] = "all"
    """all: a training list is the whole run to that depth; sampled: one relevant document with others drawn from the run."""
    group: Annotated[int, Field(ge=2)] | None = None
    """Candidates of a sampled list, with the relevant one; none: 8."""
    skip: Annotated[int, Field(ge=0)] = 0
    """So many hits from the first are not drawn: near the top, what nobody has judged is often relevant."""
    without_relevant: Literal["leave_out", "keep", "refuse"] = "leave_out"
    """What is done with a training list that has no relevant document; sampled ones cannot be kept."""
    query_length: Annotated[int, Field(ge=1)] | None = None
    """Tokens of the longest query, of the student's tokenizer; the rest is cut off. None: as the models read."""
    document_length: Annotated[int, Field(ge=1)] | None = None
    """Tokens of the longest document, alike."""

    @model_validator(mode="after")
    def sampled_fields(self) -> "Listing":
        if self.negatives == "all" and (self.group is not None or self.skip):
            raise ValueError("group and skip only with negatives: sampled; a whole list has neither")
        if self.skip >= self.depth:
            raise ValueError("skip: fewer than depth")
        return self

    def lists(self, found: Collection, place: Place, held: Callable[[str], bool], kind: str) -> tuple[list[Row], list[str]]:
        """The rows of all queries, those of one query after each other, and what was left out.

        Raises:
            Refused: `data`, for a list without a relevant document where none may be.
        """
        rows: list[Row] = []
        lost: Counter[str] = Counter()
        tokenizer = place.models["student"].tokenizer if "student" in place.models else None
        texts = {name: cut(text, tokenizer, self.document_length) for name, text in found.documents.items()}
        for query, words in found.queries.items():
            judged, hits = found.judged.get(query, {}), found.run.get(query, ())[: self.depth]
            good = sorted(document for document, grade in judged.items() if grade > 0)
            if held(query):
                lost["not judged"] += not good
                picked = hits if good else ()
            elif self.negatives == "sampled":
                picked = self.sampled(query, good, judged, found.run.get(query, ()), place)
            else:
                picked = hits
            if not held(query) and not any(judged.get(hit.document, 0) > 0 for hit in picked):
                if self.without_relevant == "refuse":
                    do = "raise depth, or set without_relevant: leave_out"
                    raise Refused("data", f"data {kind}  query {query}", "a relevant document in every list", f"none among {len(hits)} hits", do)
                lost["without a relevant document"] += 1
                picked = picked if self.without_relevant == "keep" else ()
            rows += self.rows_of(query, cut(words, tokenizer, self.query_length), picked, judged, texts, "held_out" if held(query) else "train")
        told = {"without a relevant document": "kept" if self.without_relevant == "keep" else "left out", "not judged": "left out"}
        return rows, [f"{kind}: {num:,} of {len(found.queries):,} lists {what} {told[what]}" for what, num in lost.items() if num]

    def sampled(self, query: str, good: Sequence[str], judged: Mapping[str, int], run: Sequence[Hit], place: Place) -> list[Hit]:
        """One relevant document, and others from the hits between skip and depth: drawn by a stream of the query's own."""
        others = [hit for hit in run[self.skip : self.depth] if judged.get(hit.document, 0) <= 0]
        if not good or not others:
            return []
        stream = place.streams("rankings", query)
        first = good[int(torch.randint(len(good), (1,), generator=stream, device="cpu"))]
        known = {hit.document: hit for hit in run}
        picked = torch.randperm(len(others), generator=stream, device="cpu")[: (self.group or CANDIDATES) - 1].tolist()
        return [known.get(first, Hit(first, len(run) + 1, None)), *(others[i] for i in picked)]

    def rows_of(
        self, query: str, words: str, hits: Sequence[Hit], judged: Mapping[str, int], texts: Mapping[str, str], split: str
    ) -> list[Row]:
        """One row a candidate; `judged` in its content is what the ideal order of the query is made of, retrieved or not."""
        ideal = sorted((grade for grade in judged.values() if grade > 0), reverse=True)
        out = []
        for hit in hits:
            content: dict[str, Any] = {"query": words, "text": texts[hit.document], "relevance": judged.get(hit.document, 0), "rank": hit.rank}
            content |= {} if hit.score is None else {"score": hit.score}
            content |= {"query_id": query, "document_id": hit.document, "judged": ideal}
            out.append(Row(key_of(json.dumps(content, sort_keys=True), split), content, group=named(query), split=split, source=named(query)))
        return out


def named(query: str) -> str:
    """The document that the rows of a query are of."""
    return f"query {query}"


def held(query: str, share: float) -> bool:
    """Whether a query is held out, by the hash of its name."""
    return held_out(named(query), share)


def cut(text: str, tokenizer: Any, length: int | None) -> str:
    """The beginning of a text, where its length is bounded and somebody counts."""
    return text if length is None or tokenizer is None else shortened(text, tokenizer, length)
