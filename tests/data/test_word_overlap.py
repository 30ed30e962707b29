"""Made-up queries and documents: grades are what they say they are."""

from collections import defaultdict

import pytest

from limbeck.data.base import Place, Rows
from limbeck.data.word_overlap import SYLLABLES, WordOverlap, word
from limbeck.model.base import Models
from limbeck.numerics import Streams


def made(seed: int = 0, **fields) -> Rows:
    return WordOverlap(**{"num": 40, **fields}).rows(Rows(), Place(Models({}), Streams(seed)))


def overlap(row) -> int:
    return len(set(row.content["query"].split()) & set(row.content["text"].split()))


def test_grades_of_held_out_lists_are_the_words_shared_and_the_run_is_in_their_order():
    rows = made(noise=0.5).held_out
    assert rows and all(row.content["relevance"] == overlap(row) for row in rows)
    lists = defaultdict(list)
    for row in rows:
        lists[row.group].append(row)
    for some in lists.values():
        grades = [row.content["relevance"] for row in sorted(some, key=lambda row: row.content["rank"])]
        assert grades == sorted(grades, reverse=True) and [row.content["rank"] for row in some] == list(range(1, 17))


def test_sparse_labels_are_one_a_list_of_the_most_relevant_and_graded_ones_are_all():
    lists = defaultdict(list)
    for row in made().train:
        lists[row.group].append(row)
    for some in lists.values():
        (labelled,) = [row for row in some if row.content["relevance"]]
        assert overlap(labelled) == max(map(overlap, some)) and labelled.content["relevance"] == 1
    assert all(row.content["relevance"] == overlap(row) for row in made(labels="graded").train)


def test_much_noise_puts_some_documents_in_a_wrong_order():
    rows = made(noise=3.0, labels="graded").train
    wrong = sum(a.content["relevance"] < b.content["relevance"] for a, b in zip(rows, rows[1:], strict=False) if a.group == b.group)
    assert wrong > len(rows) / 10


def test_words_are_told_apart_and_seeds_draw_other_lists():
    assert len({word(i) for i in range(len(SYLLABLES) ** 2)}) == len(SYLLABLES) ** 2
    assert made(0) == made(0) and made(0).train[0].content["query"] != made(1).train[0].content["query"]
    with pytest.raises(ValueError, match="vocabulary"):
        WordOverlap(vocabulary=8, document_words=6)
