"""Hidden tokens: which are chosen, that all roles hide the same letters, and what is asked for."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.check.data import Chatting, masked
from limbeck.check.models import family_of
from limbeck.data.base import Place
from limbeck.data.mask import Mask
from limbeck.errors import Refused
from limbeck.model.base import Models
from limbeck.model.loading import named_tokenizer
from limbeck.numerics import Streams
from limbeck.signals import Batch, Row

MODELS = Models({"student": masked("nucleotides"), "teacher": masked("kmer6")})
ALONE = Models({"student": masked("kmer6")})
DNA = st.lists(st.text("ACGTN", min_size=1, max_size=60), min_size=1, max_size=4)


def place(models: Models = MODELS, seed: int = 0, window: int = 0) -> Place:
    return Place(models, Streams(seed), window)


def batch(texts: list[str], models: Models = MODELS) -> Batch:
    return models.batch([Row(f"row-{i}", {"text": text}) for i, text in enumerate(texts)])


def hidden(found: Batch, role: str) -> list[list[bool]]:
    view = found.view(role)
    assert view.asked is not None
    return [row.tolist() for row in view.asked.split(view.ragged.tolist())]


def letters(found: Batch, role: str, texts: list[str]) -> list[set[int]]:
    """Which letters of each text are hidden from a role, by its tokenizer's own offsets."""
    tokenizer, out = MODELS[role].tokenizer if role in MODELS else None, []
    for text, gone in zip(texts, hidden(found, role), strict=True):
        spans = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
        out.append({i for (a, b), g in zip(spans, gone, strict=True) if g for i in range(a, b)})
    return out


@settings(max_examples=60, deadline=None)
@given(texts=DNA, share=st.sampled_from([0.05, 0.15, 0.5, 0.9]), window=st.integers(0, 3))
def test_teacher_and_student_hide_the_same_letters_and_they_are_whole_tokens_of_the_teacher(texts: list[str], share: float, window: int) -> None:
    found = Mask(share=share).window(batch(texts), place(window=window), None)
    assert letters(found, "student", texts) == letters(found, "teacher", texts)
    for text, gone, theirs in zip(texts, letters(found, "student", texts), hidden(found, "teacher"), strict=True):
        pieces = ["", *MODELS["teacher"].tokenizer.tokenize(text)]
        assert len(gone) == sum(len(piece) for piece, g in zip(pieces, theirs, strict=True) if g)  # 6 letters a token, 1 in the tail
        assert sum(theirs) == max(1, round(share * (len(pieces) - 1))) and not theirs[0]


def test_the_known_wrong_way_masks_drawn_by_each_side_alone_leak_letters() -> None:
    texts, step = ["ACGTACGGTTCAACGATTGCACGTACCA"], Mask(share=0.4)
    single, six = Models({"student": MODELS["student"]}), Models({"student": MODELS["teacher"]})
    student = letters(step.window(batch(texts, single), place(single), None), "student", texts)[0]
    gone = hidden(step.window(batch(texts, six), place(six), None), "student")[0]
    spans = MODELS["teacher"].tokenizer(texts[0], return_offsets_mapping=True)["offset_mapping"]
    teacher = {i for (a, b), g in zip(spans, gone, strict=True) if g for i in range(a, b)}
    assert student - teacher and teacher - student  # what each is asked for stands in the other's sight
    together = step.window(batch(texts), place(), None)
    assert letters(together, "student", texts) == letters(together, "teacher", texts) == [teacher]
    grown = Mask(by="student", share=0.1).window(batch(texts), place(), None)  # single bases are chosen, whole tokens are hidden
    assert letters(grown, "teacher", texts) == letters(grown, "student", texts)
    assert len(letters(grown, "student", texts)[0]) > round(0.1 * len(texts[0]))


def test_a_mask_stands_in_the_hidden_places_and_the_originals_are_what_is_asked_for() -> None:
    texts = ["ACGTACGGTTCANACGATTGCACGTACCA", "ACG"]
    before = batch(texts)
    found = Mask(share=0.3, unseen=("student",)).window(before, place(), None)
    for role in ("student", "teacher"):
        old, new = before.view(role), found.view(role)
        ids, gone = new.inputs["ids"], new.asked
        assert gone is not None and torch.equal(new.inputs["original"], old.inputs["ids"])
        assert (ids[gone] == MODELS[role].tokenizer.mask_token_id).all() and torch.equal(ids[~gone], old.inputs["ids"][~gone])
        said = MODELS[role].says(new, ("label", "asked"), {})
        assert torch.equal(said["label"], old.inputs["ids"][gone]) and torch.equal(said["asked"], gone)
        assert ("seen" in new.inputs) == (role == "student")
    assert torch.equal(found.view("student").inputs["seen"], ~found.view("student").asked)  # type: ignore[operator]


def test_a_mark_is_never_hidden_even_where_nearly_all_is() -> None:
    found = Mask(share=0.99).window(batch(["ACGTAC", "A", "NNN"]), place(), None)
    for role in ("student", "teacher"):
        view = found.view(role)
        marks = view.inputs["original"] == MODELS[role].tokenizer.cls_token_id
        assert int(marks.sum()) == 3 and not (marks & view.asked).any()  # type: ignore[operator]


def test_spared_tokens_stay_and_a_row_of_them_alone_is_asked_nothing() -> None:
    found = Mask(share=0.9, spare=("N",)).window(batch(["ACGTACNNNN", "NNN"]), place(), None)
    view = found.view("student")
    unknown = view.inputs["original"] == MODELS["student"].tokenizer.convert_tokens_to_ids("N")
    assert int(unknown.sum()) == 7 and not (unknown & view.asked).any()  # type: ignore[operator]
    assert view.asked is not None and int(view.asked.sum()) == 6 and len(found.at(torch.tensor([1])).view("student").targets) == 0


def test_how_many_are_chosen_and_that_each_is_as_often() -> None:
    text, counts = "ACGTAC" * 20, torch.zeros(20)
    for window in range(200):
        gone = hidden(Mask().window(batch([text], ALONE), place(ALONE, window=window), None), "student")[0]
        assert sum(gone) == 3  # 0.15 of 20
        counts += torch.tensor(gone[1:], dtype=torch.float32)
    assert 15 < counts.min() and counts.max() < 50  # 30 each on average, with a standard deviation of 5.05


def test_a_row_is_drawn_by_its_own_key_whatever_stands_beside_it() -> None:
    texts = ["ACGTACGGTTCAACGATTGC", "TTGACCA", "ACGTACGGTTCAACGATTGCACGTACCA"]
    step = Mask(share=0.4)
    whole = step.window(batch(texts), place(), None)
    part = step.window(batch(texts).at(torch.tensor([0, 2])), place(), None)
    kept = whole.at(torch.tensor([0, 2]))
    assert kept.keys == part.keys and all(torch.equal(kept.view(r).asked, part.view(r).asked) for r in ("student", "teacher"))  # type: ignore[arg-type]
    again, other = step.window(batch(texts), place(), None), step.window(batch(texts), place(window=1), None)
    assert again.keys == whole.keys != other.keys and set(whole.keys).isdisjoint(batch(texts).keys)


def test_tokens_of_another_tokenizer_can_be_hidden_where_no_teacher_reads_with_it() -> None:
    texts = ["ACGTACGGTTCANACGATTGCACGTACCA"]
    single = Models({"student": MODELS["student"]})
    with_teacher = Mask(by="teacher", share=0.4).window(batch(texts), place(), None)
    named = Mask(by="kmer6", share=0.4).window(batch(texts, single), place(single), None)
    both = Mask(by="kmer6", share=0.4).window(batch(texts), place(), None)
    assert len(letters(named, "student", texts)[0]) > 4 and letters(both, "teacher", texts) == letters(named, "student", texts)
    assert letters(named, "student", texts) == letters(with_teacher, "student", texts)  # the same tokens, so the same draws
    lone = Mask(share=0.4).window(batch(texts, single), place(single), None)
    assert sum(hidden(lone, "student")[0]) == round(0.4 * len(texts[0]))


def test_words_of_two_tokenizers_are_hidden_on_both_sides_where_their_edges_cross() -> None:
    """Not of DNA alone: bytes beside pieces of BPE, each text by its own offsets."""
    one, other = family_of("bert"), family_of("bert")
    one.tokenizer, other.tokenizer = Masking(), named_tokenizer("python_4k")
    other.tokenizer.add_special_tokens({"mask_token": "<mask>"})
    models = Models({"student": one, "teacher": other})
    found = Mask(share=0.4).window(batch(["the lambda expression yields a function"], models), place(models), None)
    spans, gone = other.tokenizer("the lambda expression yields a function", return_offsets_mapping=True)["offset_mapping"], list[bool]()
    for (a, b), g in zip(spans, hidden(found, "teacher")[0], strict=True):
        gone += [g] * (b - a)
    assert hidden(found, "student")[0] == [False, *gone] and any(gone) and not all(gone)


class Masking(Chatting):
    """Bytes, with a mask."""

    mask_token_id = 258


@pytest.mark.parametrize(
    ("step", "models", "slug", "got"),
    [
        (Mask(), Models({"student": family_of("llama")}), "tokenizer", "one without"),
        (Mask(by="nobody"), MODELS, "role", "nobody"),
        (Mask(unseen=("nobody",)), MODELS, "role", "nobody"),
    ],
    ids=["causal", "by", "unseen"],
)
def test_what_cannot_be_masked_is_refused(step: Mask, models: Models, slug: str, got: str) -> None:
    with pytest.raises(Refused) as caught:
        step.window(models.batch([Row("a", {"text": "ACGT"})]), place(models), None)
    assert caught.value.slug == slug and got in caught.value.got


def test_a_causal_model_whose_tokenizer_has_a_mask_is_refused_too() -> None:
    role: Any = family_of("llama")
    role.tokenizer = named_tokenizer("nucleotides")
    models = Models({"student": role})
    with pytest.raises(Refused, match="sees both sides") as caught:
        Mask().window(models.batch([Row("a", {"text": "ACGT"})]), place(models), None)
    assert "from the left" in caught.value.got


def test_roles_that_have_read_unlike_texts_are_refused() -> None:
    one, other = batch(["ACGTACA"]), batch(["ACGTACC"])
    mixed = replace(one, views={"student": one.view("student"), "teacher": other.view("teacher")})
    with pytest.raises(Refused, match="one text, read by all roles"):
        Mask().window(mixed, place(), None)


def test_a_mask_over_a_mask_is_refused() -> None:
    once = Mask().window(batch(["ACGTACGTACGT"]), place(), None)
    with pytest.raises(Refused, match="write mask once"):
        Mask(share=0.3).window(once, place(), None)
