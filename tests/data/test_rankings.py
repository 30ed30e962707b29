"""Queries, documents, judgements and runs from files: lists as they are, as they are drawn, and what cannot be read."""

import json
from collections import defaultdict
from pathlib import Path

import pytest

from limbeck.data._bm25 import search
from limbeck.data._overlap import drop_overlap
from limbeck.data.base import Place, Rows
from limbeck.data.rankings import Rankings
from limbeck.errors import Refused
from limbeck.model.base import Models
from limbeck.numerics import Streams
from limbeck.signals import Row

DOCUMENTS = {f"d{i}": f"text number {i}" for i in range(12)}
QUERIES = {"q1": "first", "q2": "second", "q3": "third"}
QRELS = "q1 0 d1 2\nq1 0 d5 1\nq1 0 d11 1\nq1 0 d3 0\nq2 0 d9 1\nq3 0 d11 1\n"
RUN = {"q1": ["d0", "d1", "d2", "d3", "d5", "d6"], "q2": ["d9", "d0"], "q3": ["d1", "d2", "d3"]}


def lines(run: dict[str, list[str]] = RUN) -> str:
    return "".join(f"{q} Q0 {d} {rank} {1 / rank} tag\n" for q, hits in run.items() for rank, d in enumerate(hits, 1))


def write(folder: Path, run: str | None = None, qrels: str = QRELS) -> Path:
    (folder / "docs.jsonl").write_text("".join(json.dumps({"_id": k, "contents": v}) + "\n" for k, v in DOCUMENTS.items()))
    (folder / "queries.tsv").write_text("".join(f"{k}\t{v}\n" for k, v in QUERIES.items()))
    (folder / "qrels.txt").write_text(qrels)
    (folder / "run.txt").write_text(lines() if run is None else run)
    return folder


def source(**fields) -> Rankings:
    return Rankings(**{"documents": "docs.jsonl", "queries": "queries.tsv", "qrels": "qrels.txt", "run": "run.txt", "split": 0.0, **fields})


def read(folder: Path, seed: int = 0, **fields) -> Rows:
    return source(**fields).rows(Rows(), Place(Models({}), Streams(seed), base=str(folder)))


def by_query(rows: tuple[Row, ...]) -> dict[str, list[tuple[str, int, int]]]:
    out = defaultdict(list)
    for row in rows:
        out[row.content["query_id"]].append((row.content["document_id"], row.content["rank"], row.content["relevance"]))
    return dict(out)


def test_a_list_is_the_run_to_its_depth_with_ranks_scores_and_judgements_and_lists_may_be_of_any_lengths(tmp_path):
    rows = read(write(tmp_path), depth=5)
    assert by_query(rows.train) == {
        "q1": [("d0", 1, 0), ("d1", 2, 2), ("d2", 3, 0), ("d3", 4, 0), ("d5", 5, 1)],
        "q2": [("d9", 1, 1), ("d0", 2, 0)],
    }
    first = rows.train[1]
    assert first.content["query"] == "first" and first.content["text"] == "text number 1" and first.content["score"] == 0.5
    assert first.content["judged"] == [2, 1, 1], "d11 was judged relevant, and is no candidate: the best order has it"
    assert [len(group) for group in rows.parts[0].groups] == [5, 2] and all(row.group == row.source for row in rows.train)
    assert "rankings: 1 of 3 lists without a relevant document left out" in rows.notes


def test_a_list_without_a_relevant_document_is_left_out_kept_or_refused(tmp_path):
    write(tmp_path)
    assert "q3" in by_query(read(tmp_path, without_relevant="keep").train)
    with pytest.raises(Refused) as caught:
        read(tmp_path, without_relevant="refuse")
    assert (caught.value.where, caught.value.got) == ("data rankings  query q3", "none among 3 hits")


def test_sampled_lists_have_one_relevant_document_and_others_drawn_below_skip_by_the_seed(tmp_path):
    write(tmp_path)
    one, again, other = (read(tmp_path, seed, negatives="sampled", group=3, skip=1, depth=6).train for seed in (0, 0, 1))
    assert one == again and one != other
    for rows in (one, other):
        lists = by_query(rows)
        (good, *rest) = lists["q1"]
        assert good[2] > 0 and len(rest) == 2 and all(grade == 0 and rank > 1 for _, rank, grade in rest)
        assert len({name for name, _, _ in lists["q1"]}) == 3
    drawn = {by_query(read(tmp_path, seed, negatives="sampled", group=2).train)["q1"][0][0] for seed in range(24)}
    assert drawn == {"d1", "d5", "d11"}, "any of the judged ones, in the run or not"


def test_what_was_not_in_the_run_has_a_rank_behind_it_and_no_score(tmp_path):
    rows = read(write(tmp_path), negatives="sampled", group=2).train
    (row,) = [row for row in rows if row.content["query_id"] == "q3" and row.content["relevance"]]
    assert row.content["document_id"] == "d11" and row.content["rank"] == 4 and "score" not in row.content


def test_held_out_queries_get_the_whole_run_whatever_is_drawn_for_training_and_share_no_list_with_it(tmp_path):
    rows = read(write(tmp_path), negatives="sampled", group=2, split=0.6)
    held = by_query(rows.held_out)
    assert held and not held.keys() & by_query(rows.train).keys() and {row.split for row in rows.held_out} == {"held_out"}
    assert all([name for name, _, _ in hits] == RUN[query] for query, hits in held.items())


def test_a_file_of_held_out_queries_is_evaluated_whole(tmp_path):
    write(tmp_path)
    (tmp_path / "dev.tsv").write_text("q3\tthird\n")
    (tmp_path / "queries.tsv").write_text("q1\tfirst\nq2\tsecond\n")
    rows = read(tmp_path, held_out="dev.tsv", unknown="leave_out")
    assert by_query(rows.train).keys() == {"q1", "q2"} and by_query(rows.held_out) == {"q3": [("d1", 1, 0), ("d2", 2, 0), ("d3", 3, 0)]}


def test_documents_that_everybody_searches_do_not_make_held_out_queries_known_but_the_same_query_does():
    text = " ".join(f"word{i}" for i in range(30))
    train = Row("a", {"query": "which one", "text": text}, source="query 1")
    other, same = (Row(k, {"query": q, "text": text}, split="held_out", source=f"query {k}") for k, q in (("b", "another"), ("c", "which one")))
    from limbeck.data.base import Part

    assert [row.key for row in drop_overlap(Rows((Part((train,)),), (other, same))).held_out] == ["b"]


BROKEN = {
    "unknown document": ("q1 Q0 d0 1 1.0 t\nq1 Q0 d99 2 0.5 t\n", "run.txt:2", "document d99, which is unknown"),
    "unknown query": ("q7 Q0 d0 1 1.0 t\n", "run.txt:1", "query q7, which is unknown"),
    "rank twice": ("q1 Q0 d0 1 1.0 t\nq1 Q0 d1 1 0.5 t\n", "run.txt:2", "rank 1 again, of d1"),
    "document twice": ("q1 Q0 d0 1 1.0 t\nq1 Q0 d0 2 0.5 t\n", "run.txt:2", "d0 again, at rank 2"),
    "too few columns": ("q1 Q0 d0 1 1.0\n", "run.txt:1", "q1 Q0 d0 1 1.0"),
    "no rank": ("q1 Q0 d0 first 1.0 t\n", "run.txt:1", "q1 Q0 d0 first 1.0 t"),
    "no score": ("q1 Q0 d0 1 nan t\n", "run.txt:1", "q1 Q0 d0 1 nan t"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_run_that_cannot_be_is_refused_with_its_line(name, tmp_path):
    run, where, got = BROKEN[name]
    with pytest.raises(Refused) as caught:
        read(write(tmp_path, run))
    assert caught.value.slug == "data" and caught.value.where.endswith(where) and caught.value.got == got


def test_lines_of_unknown_ids_can_be_left_out_and_are_counted(tmp_path):
    rows = read(write(tmp_path, "q1 Q0 d99 1 2.0 t\nq1 Q0 d1 2 1.0 t\nq7 Q0 d1 1 1.0 t\nq1 Q0 d0 3 0.5 t\n"), unknown="leave_out")
    assert by_query(rows.train) == {"q1": [("d1", 1, 2), ("d0", 2, 0)]}, "ranks count from 1 over what is left"
    assert "rankings: 2 lines of the run left out: nothing was read of their ids" in rows.notes


@pytest.mark.parametrize(
    "file, text, got",
    [
        ("qrels.txt", "q1 0 d1\n", "q1 0 d1"),
        ("qrels.txt", "q1 0 d1 yes\n", "q1 0 d1 yes"),
        ("qrels.txt", "q1 0 d1 1\nq1 0 d1 2\n", "1 and 2"),
        ("queries.tsv", "q1 first\n", "no tab between the two: q1 first"),
        ("queries.tsv", "q1\tone\nq1\tother\n", "q1 again, with another text"),
        ("docs.jsonl", '{"id": "d0"}\n', "no text: none of text, contents, body, query, title"),
        ("docs.jsonl", '{"text": "x"}\n', "no id: none of id, _id, docno, doc_id, query_id, qid"),
        ("docs.jsonl", "[1]\n", "no mapping from names to values"),
    ],
)
def test_other_files_that_cannot_be_read_are_refused_with_their_line(file, text, got, tmp_path):
    write(tmp_path)
    (tmp_path / file).write_text(text)
    with pytest.raises(Refused) as caught:
        read(tmp_path)
    assert f"{file}:" in caught.value.where and caught.value.got == got


def test_fields_that_have_no_effect_are_refused():
    for fields in ({"group": 4}, {"skip": 2}, {"negatives": "sampled", "skip": 100}):
        with pytest.raises(ValueError, match="sampled|depth"):
            source(**fields)


def test_texts_are_cut_at_a_token_of_the_students_tokenizer(tmp_path):
    from limbeck.check.models import ranker_of

    place = Place(Models({"student": ranker_of(0)}), Streams(0), base=str(write(tmp_path)))  # tokens are bytes
    rows = source(query_length=3, document_length=6).rows(Rows(), place)
    assert rows.train[0].content["query"] == "fir" and rows.train[0].content["text"] == "text n"


def test_without_a_run_one_is_made_by_bm25_as_written_out(tmp_path):
    import math

    documents = {"a": "the cat sat", "b": "the dog", "c": "a cat and a cat and a dog"}
    found = search(documents, {"q": "cat dog", "nothing": "zebra"}, 10)
    assert found["nothing"] == []
    mean = 13 / 3  # words of a, b, c: 3, 2, 8

    def weight(tf: int, size: int, df: int) -> float:
        return math.log(1 + (3 - df + 0.5) / (df + 0.5)) * tf * 2.2 / (tf + 1.2 * (0.25 + 0.75 * size / mean))

    by_hand = {"a": weight(1, 3, 2), "b": weight(1, 2, 2), "c": weight(2, 8, 2) + weight(1, 8, 2)}
    assert {hit.document: hit.score for hit in found["q"]} == pytest.approx(by_hand)
    assert [hit.document for hit in found["q"]] == sorted(by_hand, key=lambda name: -by_hand[name]) and [hit.rank for hit in found["q"]] == [1, 2, 3]
    write(tmp_path)
    (tmp_path / "queries.tsv").write_text("q1\tnumber 5\n")
    rows = read(tmp_path, run=None)
    assert by_query(rows.train)["q1"][0] == ("d5", 1, 1) and len(rows.train) == len(DOCUMENTS)
    assert rows.provenance[0]["run"] == "BM25"
