"""Rows filled up to whole blocks."""

import pytest

from limbeck.check.models import TOKENIZER, fresh
from limbeck.data.base import Part, Place, Rows
from limbeck.data.fill_blocks import FillBlocks
from limbeck.errors import Refused
from limbeck.model.base import Models
from limbeck.numerics import Streams
from limbeck.signals import Row
from limbeck.text.spans import encode

END = TOKENIZER.eos_token_id


def filled(row: Row, **fields) -> Row:
    place = Place(Models({"student": fresh()}), Streams(0))
    return FillBlocks(**fields).rows(Rows((Part((row,)),), held_out=(row,)), place).train[0]


@pytest.mark.parametrize("asked", [True, False])
def test_an_answer_ends_with_ends_of_text_up_to_a_whole_block(asked):
    row = Row("a", {"prompt": "who", "answer": "me"})  # begin and 3; 2 and the end: 7
    before, after = encode(row, TOKENIZER), encode(made := filled(row, length=4, asked=asked), TOKENIZER)
    assert after == ([*before[0], END], [*before[1], asked])
    assert made.key != row.key and made.content["answer"] == "me"
    assert filled(row, length=4, asked=True).key != filled(row, length=4, asked=False).key


def test_a_row_of_whole_blocks_stays_as_it_was():
    row = Row("a", {"text": "abc"})  # begin and 3
    assert filled(row, length=4) is row


def test_without_a_tokenizer_it_is_refused():
    with pytest.raises(Refused, match="an end of text"):
        FillBlocks().rows(Rows(), Place(Models({}), Streams(0)))
