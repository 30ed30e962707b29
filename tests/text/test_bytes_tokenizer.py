"""The tokenizer of bytes: every text there and back, and specials that text cannot spell."""

from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.text.bytes_tokenizer import BOS, EOS, ByteTokenizer

TOKENIZER = ByteTokenizer()


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.text(st.characters(exclude_categories=("Cs",))))
def test_every_text_comes_back(text: str) -> None:
    ids = TOKENIZER.encode(text)
    assert ids[0] == BOS and TOKENIZER.decode(ids, skip_special_tokens=True) == text
    assert TOKENIZER.encode(text, add_special_tokens=False) == list(text.encode()) == ids[1:]


def test_specials_are_ids_that_no_text_has() -> None:
    assert not {BOS, EOS} & set(TOKENIZER.encode("<s></s>", add_special_tokens=False))
    assert TOKENIZER.decode([BOS, 104, 105, EOS]) == "<s>hi</s>"
    assert TOKENIZER.decode([BOS, 104, EOS, 105], skip_special_tokens=True) == "hi"


def test_bytes_that_are_no_text_and_ids_beyond_the_vocabulary_do_not_raise() -> None:
    assert TOKENIZER.decode([0xE2, 0x82]) == "\ufffd" and TOKENIZER.decode([97, 999, 98]) == "ab" and TOKENIZER.decode([]) == ""
    assert TOKENIZER.decode([0xE2, EOS, 0x82, 0xAC], skip_special_tokens=True) == "\ufffd\ufffd\ufffd"  # a special parts what stands around it


def test_half_a_character_has_ids() -> None:
    assert TOKENIZER.encode("\ud800", add_special_tokens=False) == [0xED, 0xA0, 0x80]


def test_the_vocabulary_names_every_id_once() -> None:
    names = TOKENIZER.get_vocab()
    assert len(names) == len(TOKENIZER) == 258 and sorted(names.values()) == list(range(258))
    assert names["<0x0A>"] == 10 and names["</s>"] == TOKENIZER.eos_token_id == TOKENIZER.pad_token_id
