"""The i-th token of one answer beside the i-th of the other: shifted as all predictions are, and nothing beyond the shorter."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import two_tokenizers
from limbeck.align.base import Aligned
from limbeck.align.by_position import ByPosition
from limbeck.check.models import family_of, quiet
from limbeck.errors import Refused
from limbeck.model.base import Models
from limbeck.objective.sorted_l1 import SortedL1
from limbeck.recipe import load
from limbeck.signals import Row, dense
from limbeck.start import run
from limbeck.train.settle import settle
from limbeck.train.stage import Turn
from toy import TINY, at_home, metrics, toy  # noqa: F401

HELLO = [Row("a", {"prompt": "he", "answer": "hello"})]  # the student reads h e l l o end, the teacher he ll o end


def swapped(begin: bool = False) -> Models:
    """The student reads pairs of letters, and its teacher bytes."""
    both = two_tokenizers.models(begin)
    return Models({"student": both["teacher"], "teacher": both["student"]})


def chunks(align: ByPosition, models: Models, rows: list[Row]) -> tuple[list[int], list[int]]:
    """The pair of each target of the student, and of the teacher."""
    batch = align.index(models.batch(rows), models)
    ours, theirs = (batch.view(role).chunk_of for role in ("student", "teacher"))
    assert ours is not None and theirs is not None
    return ours.tolist(), theirs.tolist()


def test_pairs_end_with_the_shorter_answer_and_what_is_left_over_is_in_none() -> None:
    assert chunks(ByPosition(), two_tokenizers.models(), HELLO) == ([0, 1, 2, 3, -1, -1], [0, 1, 2, 3])  # l beside the teacher's end
    both = two_tokenizers.models()
    assert chunks(ByPosition(), both, [*HELLO, Row("b", {"prompt": "a", "answer": "x"})])[1] == [0, 1, 2, 3, 4, -1]


def test_the_students_end_is_skipped_and_the_teachers_is_not() -> None:
    assert chunks(ByPosition(), swapped(), HELLO) == ([0, 1, 2, -1], [0, 1, 2, -1, -1, -1])
    assert chunks(ByPosition(skip_end=False), swapped(), HELLO) == ([0, 1, 2, 3], [0, 1, 2, 3, -1, -1])
    assert chunks(ByPosition(), swapped(), [Row("a", {"prompt": "he", "answer": "hello", "open": True})])[0] == [0, 1, 2]


def test_each_answer_of_a_chat_begins_anew() -> None:
    both = two_tokenizers.models()
    batch = both.batch([Row("a", {"text": "helloxhello"})])  # begin h e l l o x h e l l o; he ll o x he ll o
    views = {
        "student": replace(batch.view("student"), asked=torch.tensor([False, *[True] * 5, False, *[True] * 5])),
        "teacher": replace(batch.view("teacher"), asked=torch.tensor([False, True, True, False, True, True, True])),
    }
    found = ByPosition().index(replace(batch, views=views), both)
    ours, theirs = (found.view(role).chunk_of for role in ("student", "teacher"))
    assert ours is not None and theirs is not None
    assert ours.tolist() == [0, 1, -1, -1, -1, 2, 3, 4, -1, -1] and theirs.tolist() == [0, 1, 2, 3, 4]


def test_rows_with_another_number_of_answers_have_no_pair_and_a_window_without_any_is_refused() -> None:
    both = two_tokenizers.models()
    batch = both.batch(HELLO)
    view = replace(batch.view("teacher"), asked=torch.tensor([False, True, False, True, True]))
    with pytest.raises(Refused) as caught:
        ByPosition().index(replace(batch, views={**batch.views, "teacher": view}), both)
    assert (caught.value.slug, caught.value.where) == ("chunk", "align.by_position")


def test_a_token_that_one_side_cannot_predict_is_paired_with_nothing() -> None:
    text = [Row("a", {"text": "hello"})]  # bytes begin with a mark; pairs of letters only if told to
    assert chunks(ByPosition(), two_tokenizers.models(begin=True), text) == ([0, 1, 2, -1, -1], [0, 1, 2])
    assert chunks(ByPosition(), two_tokenizers.models(), text) == ([-1, 0, 1, -1, -1], [0, 1])  # h beside he, which nothing predicts


def test_a_row_is_what_predicts_the_token_and_not_what_follows_it() -> None:
    both = two_tokenizers.models()
    batch = ByPosition().index(both.batch(HELLO), both)
    listen = Aligned(both, (ByPosition(),))
    for role, first in (("student", 2 + 1), ("teacher", 1)):  # begin h e | h e l l o end; he | he ll o end
        said = listen.says(role, batch, ("last_logits", "lead_logprob"))
        every = both[role].module(batch.view(role).inputs["ids"][None]).logits[0]  # type: ignore[operator]
        torch.testing.assert_close(dense(said["last_logits"]), every[first - 1 : first + 3])
        assert not torch.allclose(dense(said["last_logits"]), every[first : first + 4])  # the unshifted slice
        assert said["lead_logprob"].tolist() == [0.0] * 4 and said.num("chunk") == 4


def test_it_needs_no_bytes_of_a_tokenizer_and_makes_nothing_that_asks_what_was_said() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"[UNK]": 0, "he": 1, "said": 2}, "[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    teacher = family_of("llama", 1, vocab=300)
    teacher.tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]")
    both = Models({"student": family_of("llama", 0), "teacher": teacher})
    settled = settle(Turn.model_validate({"align": ["by_position"], "objective": ["sorted_l1"]}), (), both, "main")
    assert settled.needs["teacher"] == ("last_logits", "lead_logprob")
    with pytest.raises(Refused) as caught:
        settle(Turn.model_validate({"align": ["by_position"], "objective": [{"kind": "jsd", "per": "chunk"}]}), (), both, "main")
    assert (caught.value.slug, caught.value.do) == ("need", "write align: byte_chunks")


def test_a_role_that_is_not_there_is_refused() -> None:
    with pytest.raises(Refused) as caught:
        ByPosition(teacher="critic").settle(two_tokenizers.models())
    assert (caught.value.slug, caught.value.where, caught.value.got) == ("role", "align.by_position", "critic")


def teacher_of_pairs(folder: Path) -> str:
    """A teacher in a folder that reads pairs of letters."""
    both = two_tokenizers.models()
    with quiet():
        both["teacher"].module.float().save_pretrained(folder)  # type: ignore[operator]
    both["teacher"].tokenizer.save_pretrained(folder)
    return f"path:{folder}"


@pytest.mark.parametrize("name", ["uld", "gold"])
def test_the_recipes_run_between_two_tokenizers(name: str, tmp_path: Path) -> None:
    turn = load(name).train[0].turn[0]
    stage: dict[str, Any] = {field: [one.model_dump(mode="json") for one in getattr(turn, field)] for field in ("align", "objective")}
    recipe = toy(tmp_path, stage, teacher=teacher_of_pairs(tmp_path / "teacher"), student={"start": f"config:{TINY}"}, evaluate=["perplexity"])
    found = metrics(run(recipe).path)
    kind = turn.objective[-1].kind  # type: ignore[attr-defined]
    assert [record["step"] for record in found if record["name"] == kind] == [0, 1, 2, 3]
    assert all(record["count"] > 0 and record["sum"] > 0 for record in found if record["name"] == kind)


def test_uld_can_stand_as_an_arm_of_alm() -> None:
    changes = ["train.0.align=[by_position]", "train.0.objective=[cross_entropy, {kind: sorted_l1, weight: 1.5}]", "train.0.balance=none"]
    ours, arm = (recipe.train[0].turn[0] for recipe in (load("uld"), load("alm", changes)))
    assert (arm.align, arm.objective, arm.balance) == (ours.align, ours.objective, ours.balance)
    assert arm.objective[1] == SortedL1(weight=1.5) and arm.align == (ByPosition(),)
    with pytest.raises(Refused, match="either weights of objectives, or balance"):
        load("alm", changes[:2])
