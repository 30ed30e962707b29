"""Held-out lists in the order of a subject's scores, and what that order is worth."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from limbeck.signals import Row


class Ranked(NamedTuple):
    """One candidate in its place."""

    row: int
    document: str
    score: float
    grade: int


def ranked(scores: Float[Tensor, " row"], rows: Sequence[Row]) -> dict[str, list[Ranked]]:
    """Query -> its candidates, best first; of equal scores the later document id comes first, as trec_eval has it."""
    lists: dict[str, list[Ranked]] = {}
    for i, (row, score) in enumerate(zip(rows, scores.tolist(), strict=True)):
        content = row.content
        hit = Ranked(i, str(content.get("document_id", row.key)), score, int(content.get("relevance", 0)))
        lists.setdefault(str(content.get("query_id", row.group or row.key)), []).append(hit)
    return {query: sorted(hits, key=lambda hit: (hit.score, hit.document), reverse=True) for query, hits in lists.items()}


def ideals(rows: Sequence[Row]) -> dict[str, list[int]]:
    """Query -> the grades above 0 that were judged, best first: those of documents that are no candidates too, where the rows say them."""
    found: dict[str, list[int]] = {}
    for row in rows:
        query = str(row.content.get("query_id", row.group or row.key))
        if "judged" in row.content:
            found[query] = sorted((int(grade) for grade in row.content["judged"] if grade > 0), reverse=True)
        elif row.content.get("relevance", 0) > 0:
            found.setdefault(query, []).append(int(row.content["relevance"]))
    return {query: sorted(grades, reverse=True) for query, grades in found.items()}


def gain(grades: Sequence[int], depth: int) -> float:
    """Discounted gain of the first places: the grade itself over log2 of the place and one; what was not judged counts nothing."""
    return sum(max(grade, 0) / math.log2(place + 1) for place, grade in enumerate(grades[:depth], 1))


def ndcg(hits: Sequence[Ranked], ideal: Sequence[int], depth: int) -> float:
    """Discounted gain over that of the best order of all that was judged; 0 where nothing is relevant."""
    best = gain(ideal, depth)
    return gain([hit.grade for hit in hits], depth) / best if best else 0.0


def reciprocal_rank(hits: Sequence[Ranked], depth: int) -> float:
    """One over the place of the first relevant candidate, if that is among the first places; else 0.

    Of equal scores the earlier document id comes first here: so the script of MS MARCO has it, by which RR@k is measured everywhere.
    """
    order = sorted(hits, key=lambda hit: (-hit.score, hit.document))
    return next((1 / place for place, hit in enumerate(order[:depth], 1) if hit.grade > 0), 0.0)


def run_lines(lists: Mapping[str, Sequence[Ranked]], tag: str) -> str:
    """A run in the format of TREC."""
    lines = (f"{query} Q0 {hit.document} {place} {hit.score!r} {tag}" for query, hits in lists.items() for place, hit in enumerate(hits, 1))
    return "".join(line + "\n" for line in lines)
