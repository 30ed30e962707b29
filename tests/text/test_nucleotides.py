"""Tokenizers of DNA: how they cut, what each token stands for, and what they refuse."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.errors import Refused
from limbeck.model.loading import named_tokenizer
from limbeck.model.opening import open_pretrained
from limbeck.model.role import as_role
from limbeck.signals import Row
from limbeck.text.bytes_of import exact
from limbeck.text.bytes_tokenizer import ByteTokenizer
from limbeck.text.chunks import beside
from limbeck.text.nucleotides import letters_of
from limbeck.text.spans import encode
from limbeck.text.tokens import encoded, fingerprint, specials, tokens

KMER, SINGLE = named_tokenizer("kmer6"), named_tokenizer("nucleotides")
DNA = st.text("ACGTN", max_size=40)


def cut(text: str) -> list[str]:
    """Six bases at a time from the left, anew after each N, else single letters: by a loop over the letters."""
    out, i = [], 0
    while i < len(text):
        size = 6 if len(text[i : i + 6]) == 6 and "N" not in text[i : i + 6] else 1
        out.append(text[i : i + size])
        i += size
    return out


@settings(max_examples=80, deadline=None)
@given(text=DNA)
def test_six_bases_are_one_token_and_the_tail_and_what_stands_near_an_n_are_single_letters(text: str) -> None:
    assert KMER.tokenize(text) == cut(text) and SINGLE.tokenize(text) == list(text)


@settings(max_examples=80, deadline=None)
@given(text=DNA)
def test_each_token_says_which_letters_it_stands_for(text: str) -> None:
    for tokenizer in (KMER, SINGLE):
        found, spelled = tokens(text, tokenizer), exact(tokenizer, "here")
        assert [text[a:b].encode() for a, b in zip(found.starts, found.ends, strict=True)] == [spelled.bytes[i] for i in found.ids]
        assert tokenizer.decode(encoded(text, tokenizer, special=True), skip_special_tokens=True) == text


@settings(max_examples=120, deadline=None)
@given(text=DNA)
def test_from_a_token_to_its_letters_and_back_is_the_identity_whatever_the_length_and_with_unknown_bases(text: str) -> None:
    one, other = encoded(text, KMER, special=True), encoded(text, SINGLE, special=True)
    chunks = beside(one, other, [exact(KMER, "here"), exact(SINGLE, "here")])
    assert [chunk[0] for chunk in chunks] == [(i + 1,) for i in range(len(cut(text)))]  # each token by itself, behind the mark
    letters = [place for chunk in chunks for place in chunk[1]]
    assert letters == list(range(1, len(text) + 1)) and [len(chunk[1]) for chunk in chunks] == [len(piece) for piece in cut(text)]
    back = beside(other, one, [exact(SINGLE, "here"), exact(KMER, "here")])
    assert tuple((b, a) for a, b in back) == chunks


def test_a_mark_stands_before_each_sequence_and_spells_nothing() -> None:
    assert len(KMER) == 4 + 4**6 + 5 and len(SINGLE) == 4 + 5
    for tokenizer in (KMER, SINGLE):
        assert specials(tokenizer) == ((tokenizer.cls_token_id,), ())
        spelled = exact(tokenizer, "here")
        assert all(spelled.bytes[i] == b"" for i in tokenizer.all_special_ids) and tokenizer.mask_token_id in spelled.marks


def test_only_these_tokenizers_have_letters_and_no_others() -> None:
    assert letters_of(KMER) == letters_of(SINGLE) == set("ACGTN")
    assert letters_of(ByteTokenizer()) is letters_of(named_tokenizer("python_4k")) is letters_of(None) is None


@pytest.mark.parametrize(
    ("text", "got"),
    [("ACGU", "'U' at letter 4"), ("acgt", "'a' at letter 1, and 3 more"), ("ACG\nT", "at letter 4"), ("ACRYT", "'R' at letter 3, and 1 more")],
    ids=["rna", "lower", "line break", "ambiguous"],
)
@pytest.mark.parametrize("tokenizer", [KMER, SINGLE], ids=["kmer6", "nucleotides"])
def test_a_letter_outside_of_the_alphabet_is_refused_by_its_row_and_place(tokenizer: Any, text: str, got: str) -> None:
    with pytest.raises(Refused) as caught:
        encode(Row("bad", {"text": text}), tokenizer)
    error = caught.value
    assert error.slug == "letter" and error.where == "row bad" and got in error.got and "A, C, G, N, T" in error.expected


@pytest.mark.parametrize("name", ["kmer6", "nucleotides"])
def test_a_config_names_it_and_the_saved_model_brings_it_along(tmp_path: Path, name: str) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "pad_token_id": 1}
    (tmp_path / "small.json").write_text(json.dumps({"model_type": "bert", "architectures": ["BertForMaskedLM"], **sizes, "tokenizer": name}))
    opened = open_pretrained(f"config:{tmp_path / 'small.json'}")
    opened.module.save_pretrained(tmp_path / "saved")
    opened.tokenizer.save_pretrained(tmp_path / "saved")
    again = open_pretrained(f"path:{tmp_path / 'saved'}")
    assert fingerprint(again.tokenizer) == fingerprint(opened.tokenizer) and again.tokenizer.mask_token_id == opened.tokenizer.mask_token_id
    rows = [Row("a", {"text": "ACGTACGTNA"})]
    ours, theirs = (as_role(x).says(as_role(x).view(rows), ("hidden.1",), {})["hidden.1"] for x in (opened, again))
    assert torch.equal(ours, theirs)
