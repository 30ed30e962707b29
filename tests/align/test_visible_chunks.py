"""States beside each other, stretch by stretch, where nothing is hidden."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.align.base import Aligned, raw
from limbeck.align.visible_chunks import VisibleChunks
from limbeck.check.data import masked
from limbeck.check.models import family_of
from limbeck.data.base import Place
from limbeck.data.mask import Mask
from limbeck.errors import Refused
from limbeck.model.base import Models
from limbeck.numerics import Streams
from limbeck.objective.hidden_normed import HiddenNormed
from limbeck.signals import Batch, Row
from limbeck.train.settle import settle
from limbeck.train.stage import Turn

MODELS = Models({"student": masked("nucleotides"), "teacher": masked("kmer6")})
ALIGN = VisibleChunks()
NAMES = {role: ("chunk_hidden.1",) for role in MODELS}


def window(texts: list[str], share: float | None = 0.3) -> Batch:
    batch = MODELS.batch([Row(f"row-{i}", {"text": text}) for i, text in enumerate(texts)])
    return batch if share is None else Mask(share=share).window(batch, Place(MODELS, Streams(0)), None)


def said(batch: Batch, role: str) -> Any:
    with torch.no_grad():
        return Aligned(MODELS, (ALIGN,)).says(role, batch, ("chunk_hidden.1", "hidden.1"))


@settings(max_examples=25, deadline=None)
@given(texts=st.lists(st.text("ACGTN", min_size=1, max_size=40), min_size=1, max_size=3), share=st.sampled_from([None, 0.2, 0.6]))
def test_each_visible_token_stands_beside_the_mean_of_its_letters(texts: list[str], share: float | None) -> None:
    """By a loop over tokens and letters, in double precision, with the offsets of the tokenizers."""
    batch = window(texts, share)
    try:
        indexed = ALIGN.index(batch, MODELS)
    except Refused:  # nothing is visible
        assert all(bool((batch.view(r).asked | (batch.view(r).offsets == 0)).all()) for r in MODELS)  # type: ignore[operator]
        return
    ours, theirs = said(indexed, "student"), said(indexed, "teacher")
    expected, beside, rows, starts = [], [], [], {"student": 0, "teacher": 0}
    for row, text in enumerate(texts):
        tokens = MODELS["teacher"].tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
        for place, (a, b) in enumerate(tokens):
            at, teacher = starts["student"] + 1 + a, starts["teacher"] + place
            asked = share is not None and bool(batch.view("teacher").asked[teacher])  # type: ignore[index]
            if a < b and not asked:
                expected.append(sum(ours["hidden.1"][i] for i in range(at, at + b - a)) / (b - a))  # type: ignore[arg-type]
                beside.append(theirs["hidden.1"][teacher])
                rows.append(row)
        starts = {"student": starts["student"] + len(text) + 1, "teacher": starts["teacher"] + len(tokens)}
    torch.testing.assert_close(ours["chunk_hidden.1"], torch.stack(expected))  # type: ignore[arg-type]
    torch.testing.assert_close(theirs["chunk_hidden.1"], torch.stack(beside))
    assert ours.rows["chunk"].tolist() == theirs.rows["chunk"].tolist() == rows


def test_no_hidden_position_and_no_mark_is_in_a_chunk() -> None:
    indexed = ALIGN.index(window(["ACGTACGGTTCANACGATTGCACGTACCA", "ACGTACGGTTCA"]), MODELS)
    for role in MODELS:
        view = indexed.view(role)
        marks = view.inputs["original"] == MODELS[role].tokenizer.cls_token_id
        assert view.chunk_at is not None and (view.chunk_at[view.asked | marks] == -1).all()  # type: ignore[operator]
        assert (view.chunk_at[~(view.asked | marks)] >= 0).all()  # type: ignore[operator]
        assert view.chunk_of is not None and (view.chunk_of == -1).all() and len(view.chunk_of) == len(view.targets)


def test_rows_are_cut_out_of_a_window_with_their_chunks() -> None:
    indexed = ALIGN.index(window(["ACGTACGGTTCANACGATTGCACGTACCA", "ACGTACGGTTCA", "GATTACAGATTACA"]), MODELS)
    whole = said(indexed, "student")
    for rows in (torch.tensor([0]), torch.tensor([1, 2])):
        part = said(indexed.at(rows), "student")
        torch.testing.assert_close(part["chunk_hidden.1"], whole["chunk_hidden.1"][torch.isin(whole.rows["chunk"], rows)])


def test_what_is_hidden_on_one_side_alone_is_in_no_chunk_either() -> None:
    batch, text = window(["ACGTACGGTTCA"], None), "ACGTACGGTTCA"
    one = Mask(by="student", share=0.01).window(Models({"student": MODELS["student"]}).batch([Row("row-0", {"text": text})]), single(), None)
    batch = Batch({**batch.views, "student": one.view("student")}, batch.tags, batch.group, batch.keys, batch.weights)
    assert int(one.view("student").asked.sum()) == 1  # type: ignore[union-attr]
    assert len(ALIGN.index(batch, MODELS).view("teacher").chunk_row) == 1  # type: ignore[arg-type]


def single() -> Place:
    return Place(Models({"student": MODELS["student"]}), Streams(0))


def test_of_a_role_it_asks_states_and_of_others_what_they_are_asked() -> None:
    assert raw((ALIGN,), "student", ("chunk_hidden.-1", "label")) == ("hidden.-1", "label")
    assert raw((ALIGN,), "judge", ("chunk_hidden.-1",)) == ("chunk_hidden.-1",)


def test_a_recipe_without_it_is_told_to_add_it() -> None:
    turn = Turn(objective=(HiddenNormed(signal="chunk_hidden"),))  # type: ignore[call-arg]
    with pytest.raises(Refused) as caught:
        settle(turn, (), MODELS, "train.0")
    assert caught.value.slug == "need" and caught.value.do == "add align: visible_chunks"


def test_roles_that_read_unlike_texts_and_tokenizers_that_lose_letters_are_refused() -> None:
    with pytest.raises(Refused, match="stretch of the same letters"):
        ALIGN.index(window(["ACGTACC"], 0.99), MODELS)
    lossy: Any = family_of("bert")
    lossy.tokenizer = type("Lossy", (), {"is_fast": False, "all_special_ids": []})()
    with pytest.raises(Refused, match="a tokenizer whose ids say their bytes"):
        ALIGN.settle(Models({"student": MODELS["student"], "teacher": lossy}))
