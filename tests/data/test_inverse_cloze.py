"""Sentences that search for their passage."""

from limbeck.data.base import Part, Place, Rows
from limbeck.data.inverse_cloze import InverseCloze
from limbeck.model.base import Models
from limbeck.numerics import Streams
from limbeck.signals import Row

TEXT = """Rivers carry water to the sea. Water of rivers comes from rain in the hills.

Bread is made of flour. Flour is made of wheat and of other corn."""


def made(*rows: Row, seed: int = 0, **fields) -> Rows:
    train, held = (tuple(row for row in rows if row.split == split) for split in ("train", "held_out"))
    step = InverseCloze(**{"shortest": 4, "query_words": 4, **fields})
    return step.rows(Rows((Part(train),), held), Place(Models({}), Streams(seed)))


def test_the_query_is_a_sentence_that_its_passage_no_longer_holds_and_that_passage_alone_is_relevant():
    rows = made(Row("doc", {"text": TEXT}, source="doc"))
    queries = {row.content["query"] for row in rows.train}
    assert len(queries) == 2 and all(query in TEXT for query in queries)
    for row in rows.train:
        if row.content["relevance"]:
            assert row.content["query"] not in row.content["text"] and row.content["document_id"] == row.content["query_id"]
            assert TEXT.count(row.content["text"]) == 1, "the other sentence of the same passage"


def test_queries_of_held_out_documents_are_held_out_and_search_all_passages():
    both = [Row("a", {"text": TEXT}, source="a"), Row("b", {"text": TEXT.replace("Rivers", "Streams")}, split="held_out", source="b")]
    rows = made(*both)
    assert {row.content["query_id"].split(".")[0] for row in rows.held_out} == {"b"} and {row.split for row in rows.train} == {"train"}
    assert {row.content["document_id"].split(".")[0] for row in rows.held_out} == {"a", "b"}


def test_passages_that_are_too_short_are_documents_and_no_queries_and_rows_without_a_text_are_counted():
    rows = made(Row("a", {"text": TEXT + "\n\nToo short for it."}, source="a"), Row("b", {"prompt": "p"}, source="b"))
    assert "inverse_cloze: 2 queries of 3 passages" in rows.notes and "inverse_cloze: 1 rows without a text left out" in rows.notes


def test_the_seed_draws_the_sentence():
    drawn = {frozenset(row.content["query"] for row in made(Row("doc", {"text": TEXT}, source="doc"), seed=seed).train) for seed in range(8)}
    assert len(drawn) > 1
