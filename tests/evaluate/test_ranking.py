"""Held-out lists: by hand, and against ir-measures, which asks trec_eval."""

import math
import random
from pathlib import Path

import pytest
import torch

from limbeck.check.models import lists, ranker_of
from limbeck.evaluate._ranked import ideals, ndcg, ranked, reciprocal_rank
from limbeck.evaluate.base import Table
from limbeck.evaluate.ranking import Ranking
from limbeck.signals import Row


def candidates(query: str, grades: dict[str, int], judged: list[int] | None = None) -> list[Row]:
    """The rows of one query; documents that are not in `grades` were not judged."""
    ideal = sorted((g for g in grades.values() if g > 0), reverse=True) if judged is None else judged
    content = {"query": f"what is {query}", "query_id": query, "judged": ideal}
    return [Row(f"{query}-{d}", {**content, "text": f"about {d}", "document_id": d, "relevance": g}, source=query) for d, g in grades.items()]


def table(scores: list[float]) -> Table:
    return Table(torch.arange(len(scores)), score=torch.tensor(scores))


def test_five_documents_with_a_tie_and_one_that_nobody_judged_by_hand():
    rows = candidates("q", {"a": 0, "b": 2, "c": 1, "d": 0, "e": 3}, judged=[3, 2, 1])
    (hits,) = ranked(torch.tensor([0.9, 0.5, 0.5, 0.7, 0.1]), rows).values()
    assert [hit.document for hit in hits] == ["a", "d", "c", "b", "e"], "of the tie, the later id comes first"
    gained = 1 / math.log2(4) + 2 / math.log2(5) + 3 / math.log2(6)
    assert ndcg(hits, [3, 2, 1], 10) == pytest.approx(gained / (3 / math.log2(2) + 2 / math.log2(3) + 1 / math.log2(4)), rel=1e-12)
    assert ndcg(hits, [3, 2, 1], 3) == pytest.approx(1 / math.log2(4) / (3 + 2 / math.log2(3) + 1 / math.log2(4)), rel=1e-12)
    assert reciprocal_rank(hits, 10) == 1 / 3 and reciprocal_rank(hits, 2) == 0.0


def test_a_relevant_document_that_is_no_candidate_lowers_what_can_be_reached():
    rows = candidates("q", {"a": 1, "b": 0}, judged=[1, 1])
    found = Ranking().glance(table([1.0, 0.0]), rows)
    assert found["nDCG@10"] == pytest.approx(1 / (1 + 1 / math.log2(3))) and found["MRR@10"] == 1.0


@pytest.mark.parametrize("depth", [3, 10])
def test_figures_are_those_of_ir_measures_with_ties_unjudged_and_missing_documents(depth: int):
    ir = pytest.importorskip("ir_measures")
    draw, rows, scores, qrels, run = random.Random(7), [], [], [], []
    for q in range(12):
        grades = {f"d{q}.{i}": draw.choice((0, 0, 1, 2, 3)) for i in range(draw.randint(2, 15))}
        judged = {d: g for d, g in grades.items() if draw.random() < 0.7} | {f"elsewhere{q}": 2}
        rows += candidates(f"q{q}", {d: judged.get(d, 0) for d in grades}, sorted((g for g in judged.values() if g > 0), reverse=True))
        mine = [float(draw.choice((0.0, 0.5, 1.0, 1.5, 2.0))) for _ in grades]
        scores += mine
        qrels += [ir.Qrel(f"q{q}", d, g) for d, g in judged.items()]
        run += [ir.ScoredDoc(f"q{q}", d, s) for d, s in zip(grades, mine, strict=True)]
    made = Ranking(depth=depth)
    found, (first, second) = made.glance(table(scores), rows), made.figures
    theirs = ir.calc_aggregate([ir.nDCG @ depth, ir.RR @ depth], qrels, run)
    assert found[first] == pytest.approx(theirs[ir.nDCG @ depth], abs=1e-6) and found[second] == pytest.approx(theirs[ir.RR @ depth], abs=1e-6)
    each = {(m.query_id, str(m.measure)): m.value for m in ir.pytrec_eval.iter_calc([ir.nDCG @ depth], qrels, run)}
    ours = {q: ndcg(hits, ideals(rows)[q], depth) for q, hits in ranked(torch.tensor(scores), rows).items()}
    assert all(ours[q] == pytest.approx(value, abs=1e-6) for (q, _), value in each.items()) and len(each) == len(ours)


def test_errors_are_over_queries_and_gaps_are_paired(examine):
    rows = [row for q in ("p", "q", "r") for row in candidates(q, {f"{q}1": 1, f"{q}2": 0})]
    right, wrong = [1.0, 0.0], [0.0, 1.0]
    found = Ranking()(examine(rows, tables={"start": table(right + wrong + wrong), "student": table(right + right + wrong)}))
    low = 1 / math.log2(3)
    each = [1.0, 1.0, low]
    mean = sum(each) / 3
    error = math.sqrt(sum((x - mean) ** 2 for x in each) / 2 / 3)
    assert found["student"]["ndcg"] == pytest.approx(mean) and found["student"]["ndcg_error"] == pytest.approx(error)
    assert found["student"]["metrics"]["nDCG@10"] == {"value": found["student"]["ndcg"], "error": found["student"]["ndcg_error"], "unit": "",
                                                     "lower_is_better": False}
    apart = [0.0, 1 - low, 0.0]
    paired = math.sqrt(sum((x - sum(apart) / 3) ** 2 for x in apart) / 2 / 3)
    assert found["gaps"]["start"]["nDCG@10"] == pytest.approx(sum(apart) / 3) and found["gaps"]["start"]["nDCG@10_error"] == pytest.approx(paired)


def test_runs_are_written_in_the_format_of_trec_and_read_by_ir_measures(examine, tmp_path: Path):
    ir = pytest.importorskip("ir_measures")
    rows = candidates("q", {"a": 0, "b": 1})
    Ranking()(examine(rows, tables={"student": table([0.25, 0.5])}, evidence=tmp_path))
    written = tmp_path / "runs" / "student.run"
    assert written.read_text() == "q Q0 b 1 0.5 limbeck-student\nq Q0 a 2 0.25 limbeck-student\n"
    assert [(x.doc_id, x.score) for x in ir.read_trec_run(str(written))] == [("b", 0.5), ("a", 0.25)]


def test_the_queries_that_are_shown_are_those_on_which_teacher_and_student_differ_most(examine):
    rows = [row for q in ("p", "q") for row in candidates(q, {f"{q}1": 1, f"{q}2": 0})]
    tables = {"teacher": table([1.0, 0.0, 1.0, 0.0]), "student": table([1.0, 0.0, 0.0, 1.0])}
    shown = Ranking(examples=1)(examine(rows, tables=tables))["rankings"]
    assert shown == [
        {"query": "what is q", "place": 1, "teacher": "about q1 [1]", "student": "about q2 [0]"},
        {"query": "what is q", "place": 2, "teacher": "about q2 [0]", "student": "about q1 [1]"},
    ]


def test_what_says_no_score_is_left_out_and_a_role_is_scored_row_by_row(examine, speaker):
    role, rows = ranker_of(0, torch.float32), list(lists(0).train)
    found = Ranking()(examine(rows, {"student": role}))
    with torch.no_grad():
        alone = torch.cat([role.says(role.view([row]), ("score",), {})["score"] for row in rows])
    by_hand = Ranking().glance(Table(torch.arange(len(rows)), score=alone), rows)
    assert found["student"]["ndcg"] == pytest.approx(by_hand["nDCG@10"]) and list(found) == ["student", "gaps"]
    texts = [Row("t", {"text": "one two three"})]
    assert Ranking()(examine(texts, {"student": speaker(0)})) == {}
