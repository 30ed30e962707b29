"""Queries, documents, judgements and a run, from files."""

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

from limbeck.data._bm25 import search
from limbeck.data._files import find, finish
from limbeck.data._ranked import Collection, Listing, held
from limbeck.data._trec import judgements, run, texts
from limbeck.data.base import Place, Source
from limbeck.signals import Row


class Rankings(Listing, Source):
    r"""Reads queries, documents, judgements and a run, and makes of each query a list of candidates, one row each.

    Documents and queries are JSON lines (an id and a text) or TSV; `qrels` and `run` are in the format of TREC. A row holds query and text,
    what the candidate was judged (`relevance`, 0 where nobody did), and `rank` and `score` of the run: of a re-ranker, that is its order to be
    learned. Without a run, one is made by BM25. Queries are trained on or held out as a whole, by hash; lists may be of any lengths.

    Two runs that go to different depths, or that draw negatives in another way, give tasks that cannot be compared: the provenance keeps both.

    Example:
        >>> Rankings(documents="docs.tsv", queries="queries.tsv", qrels="qrels.txt", run="run.txt", negatives="sampled").depth
        100

    References:
        Voorhees and Harman, TREC: Experiment and Evaluation in Information Retrieval, 2005.
    """

    kind: Literal["rankings"] = "rankings"
    documents: str
    """Files of documents; as all paths, a relative one starts at the recipe, and a pattern may name several."""
    queries: str
    """Files of queries; `held_out` names others, of which nothing is trained on."""
    qrels: str
    """Files of judgements."""
    run: str | None = None
    """Files of a run; none: BM25."""
    unknown: Literal["refuse", "leave_out"] = "refuse"
    """What is done with lines of a run whose ids nothing was read of."""

    @classmethod
    def example(cls) -> "Rankings":
        return cls(documents="search/docs.jsonl", queries="search/queries.tsv", qrels="search/qrels.txt", run="search/run.txt", depth=6)

    def read(self, place: Place, path: str | None) -> tuple[list[Row], Mapping[str, Any], list[str]]:
        where = partial(find, base=place.base, kind=self.kind)
        files = {name: where(pattern) for name, pattern in self.patterns(path).items()}
        documents, queries = texts(files["documents"], self.kind), texts(files["queries"], self.kind)
        if self.run is None:
            hits, left = search(documents, queries, self.depth), 0
        else:
            hits, left = run(files["run"], self.kind, documents, queries, self.unknown)
        found = Collection(documents, queries, judgements(files["qrels"], self.kind), hits)
        rows, notes = self.lists(found, place, lambda query: self.looked_at(query, path), self.kind)
        notes += [f"rankings: {left:,} lines of the run left out: nothing was read of their ids"] if left else []
        every = [file for some in files.values() for file in some]
        rows, facts, more = finish(self, rows, notes, path or self.queries, every, split=path is None)
        return rows, {**facts, "run": self.run or "BM25", "depth": self.depth, "negatives": self.negatives}, more

    def patterns(self, path: str | None) -> dict[str, str]:
        """What is read, by what it is."""
        every = {"documents": self.documents, "queries": path or self.queries, "qrels": self.qrels}
        return every if self.run is None else {**every, "run": self.run}

    def looked_at(self, query: str, path: str | None) -> bool:
        """Whether a query is held out."""
        return path is not None or self.held_out is None and held(query, self.split)
