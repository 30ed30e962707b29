"""The other strand: what is turned, for all roles alike, and that tokens are cut anew."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.check.data import Chatting, masked
from limbeck.check.models import family_of
from limbeck.data.base import Place
from limbeck.data.mask import Mask
from limbeck.data.reverse_complement import ReverseComplement, turned
from limbeck.errors import Refused
from limbeck.model.base import Models
from limbeck.numerics import Streams
from limbeck.signals import Batch, Row

MODELS = Models({"student": masked("nucleotides"), "teacher": masked("kmer6")})
PAIRS = {"A": "T", "C": "G", "G": "C", "T": "A", "N": "N"}


def batch(texts: list[str], models: Models = MODELS) -> Batch:
    return models.batch([Row(f"row-{i}", {"text": text}) for i, text in enumerate(texts)])


def read(found: Batch, role: str) -> list[str]:
    view = found.view(role)
    return [MODELS[role].tokenizer.decode(ids.tolist(), skip_special_tokens=True) for ids in view.inputs["ids"].split(view.ragged.tolist())]


def test_the_complement_of_known_sequences() -> None:
    assert turned("GATTACA") == "TGTAATC" and turned("GAATTC") == "GAATTC" and turned("ANC") == "GNT"  # the second is EcoRI's site: a palindrome


@settings(max_examples=40, deadline=None)
@given(texts=st.lists(st.text("ACGTN", min_size=1, max_size=40), min_size=1, max_size=4))
def test_all_rows_are_turned_for_all_roles_and_read_as_if_they_had_come_so(texts: list[str]) -> None:
    found = ReverseComplement(probability=1.0).window(batch(texts), Place(MODELS, Streams(0)), None)
    expected = ["".join(PAIRS[letter] for letter in reversed(text)) for text in texts]
    fresh = batch(expected)
    for role in MODELS:
        assert read(found, role) == expected and torch.equal(found.view(role).inputs["ids"], fresh.view(role).inputs["ids"])
    assert found.keys == tuple(f"row-{i}/turned" for i in range(len(texts)))


def test_half_of_the_rows_are_turned_each_by_its_key_and_window() -> None:
    texts = ["ACGTACGGTTCA"] * 400
    step = ReverseComplement()
    first, again, later = (step.window(batch(texts), Place(MODELS, Streams(0), window), None) for window in (0, 0, 1))
    share = sum(key.endswith("/turned") for key in first.keys)
    assert 160 < share < 240 and first.keys == again.keys != later.keys  # 200, with a standard deviation of 10
    part = step.window(batch(texts).at(torch.arange(5, 9)), Place(MODELS, Streams(0)), None)
    assert part.keys == first.keys[5:9]
    for i, key in enumerate(first.keys[:20]):
        assert read(first, "teacher")[i] == read(first, "student")[i] == (turned(texts[0]) if key.endswith("/turned") else texts[0])


def test_after_a_mask_and_of_other_letters_it_is_refused() -> None:
    where, step = Place(MODELS, Streams(0)), ReverseComplement(probability=1.0)
    with pytest.raises(Refused, match="before mask"):
        step.window(Mask().window(batch(["ACGTACC"]), where, None), where, None)
    role = family_of("bert")
    role.tokenizer = Chatting()
    models = Models({"student": role})
    with pytest.raises(Refused) as caught:
        step.window(models.batch([Row("a", {"text": "ACGU"})]), Place(models, Streams(0)), None)
    assert caught.value.slug == "letter" and "'U' at letter 4" in caught.value.got
