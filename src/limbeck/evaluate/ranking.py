"""How well held-out queries are answered."""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from limbeck.evaluate._ranked import Ranked, ideals, ndcg, ranked, reciprocal_rank, run_lines
from limbeck.evaluate.base import Evaluator, Exam, Table
from limbeck.signals import Row
from limbeck.store import write_text

Figures = dict[str, list[float]]
"""Measure -> its value for each query, in one order."""


class Ranking(Evaluator):
    r"""Orders the candidates of held-out queries by each subject's scores, and measures that order against what was judged.

    $$ \mathrm{nDCG}@k = \frac{\sum_{i \le k} g_i / \log_2(i + 1)}{\sum_{i \le k} g^*_i / \log_2(i + 1)}, \qquad
       \mathrm{RR}@k = \frac{1}{\min \{ i \le k : g_i > 0 \}} \text{ or } 0 $$

    g are the grades in the subject's order (0 where nobody judged), g* all judged grades of the query in the best order, whether a candidate
    or not. Both equal ir-measures: equal scores are ordered by document id, for nDCG the later first (trec_eval), for RR the earlier (MS MARCO).
    Means over queries, with standard errors over queries;
    the student's gaps to other subjects are paired. Runs are written in the format of TREC beside the other evidence.

    Example:
        >>> Ranking(depth=5).figures
        ('nDCG@5', 'MRR@5')

    References:
        Järvelin and Kekäläinen, Cumulated gain-based evaluation of IR techniques, ACM TOIS 20(4), 2002.
        MacAvaney, Macdonald and Ounis, Streamlining Evaluation with ir-measures, 2022, arXiv:2111.13466.
    """

    kind: Literal["ranking"] = "ranking"
    measures: ClassVar[Literal["logits", "label", "score", "hidden"]] = "score"
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"ndcg": (0.0, 1.0), "mrr": (0.0, 1.0), "ndcg_error": (0.0, 0.5), "mrr_error": (0.0, 0.5)}
    depth: int = Field(default=10, gt=0)
    """Places that count."""
    examples: int = Field(default=3, ge=0)
    """Queries that the report shows with the first documents of teacher and student: those on which both differ most."""

    @property
    def figures(self) -> tuple[str, str]:
        """Names of both measures."""
        return f"nDCG@{self.depth}", f"MRR@{self.depth}"

    def glance(self, table: Table, rows: Sequence[Row]) -> Mapping[str, float]:
        if table.score is None:
            return {}
        return {name: statistics.fmean(each) for name, each in self.measured(ranked(table.score, rows), ideals(rows)).items() if each}

    def measured(self, lists: Mapping[str, Sequence[Ranked]], ideal: Mapping[str, Sequence[int]]) -> Figures:
        """Both measures of every query."""
        first, then = self.figures
        return {
            first: [ndcg(hits, ideal.get(query, ()), self.depth) for query, hits in lists.items()],
            then: [reciprocal_rank(hits, self.depth) for hits in lists.values()],
        }

    def __call__(self, exam: Exam) -> dict[str, Any]:
        tables = {name: table.score for name in exam.subjects if (table := exam.table(name)).score is not None}
        lists = {name: ranked(score, exam.rows) for name, score in tables.items()}
        ideal = ideals(exam.rows)
        found = {name: self.measured(each, ideal) for name, each in lists.items()}
        out: dict[str, Any] = {name: self.told(each) for name, each in found.items()}
        if "student" in found:
            others = {name: each for name, each in found.items() if name != "student"}
            out["gaps"] = {name: self.gap(found["student"], each) for name, each in others.items()}
        if "evidence" in exam.context:
            self.keep(lists, Path(exam.context["evidence"]) / "runs")
        if {"teacher", "student"} <= lists.keys() and self.examples:
            out["rankings"] = self.shown(lists, found, exam.rows)
        return out

    def told(self, each: Figures) -> dict[str, Any]:
        """Means with their errors, plain and as the table of a run shows them."""
        out: dict[str, Any] = {"metrics": {}}
        for short, (name, values) in zip(("ndcg", "mrr"), each.items(), strict=True):
            mean, error = statistics.fmean(values), standard_error(values)
            out |= {short: mean, f"{short}_error": error}
            out["metrics"][name] = {"value": mean, "error": error, "unit": "", "lower_is_better": False}
        return out

    def gap(self, student: Figures, other: Figures) -> dict[str, float | None]:
        """The student's means minus another subject's, with errors paired over queries."""
        out: dict[str, float | None] = {}
        for name, values in student.items():
            each = [a - b for a, b in zip(values, other[name], strict=True)]
            out |= {name: statistics.fmean(each), f"{name}_error": standard_error(each)}
        return out

    def keep(self, lists: Mapping[str, Mapping[str, Sequence[Ranked]]], folder: Path) -> None:
        """Writes a run a subject."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, each in lists.items():
            write_text(folder / f"{name}.run", run_lines(each, f"limbeck-{name}"))

    def shown(self, lists: Mapping[str, Any], found: Mapping[str, Figures], rows: Sequence[Row]) -> list[dict[str, Any]]:
        """The queries on which teacher and student differ most, and what each puts first."""
        name, queries = self.figures[0], list(lists["teacher"])
        apart = [abs(a - b) for a, b in zip(found["student"][name], found["teacher"][name], strict=True)]
        picked = sorted(range(len(queries)), key=lambda i: (-apart[i], i))[: self.examples]
        out = []
        for i in picked:
            firsts = {who: [(rows[hit.row].content["text"], hit.grade) for hit in lists[who][queries[i]][:3]] for who in ("teacher", "student")}
            query = rows[lists["teacher"][queries[i]][0].row].content["query"]
            out += [
                {"query": query, "place": place + 1, **{who: f"{text[:200]} [{grade}]" for who, (text, grade) in both.items()}}
                for place, both in enumerate(dict(zip(firsts, pair, strict=True)) for pair in zip(*firsts.values(), strict=True))
            ]
        return out


def standard_error(values: Sequence[float]) -> float | None:
    """Of a mean over independent values; None for fewer than two."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
