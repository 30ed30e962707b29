"""One tokenizer and heads of other sizes: cut to the ids that both have, before the softmax."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from limbeck.align.base import Aligned
from limbeck.align.shared_vocab import SharedVocab
from limbeck.errors import Refused
from limbeck.model.base import Models, Role
from limbeck.signals import Logits, Row, View, dense
from limbeck.text.bytes_tokenizer import ByteTokenizer


class Head(Role):
    """One position a row, and a head of some size over it."""

    offers = frozenset({"logits", "hidden"})

    def __init__(self, size: int, tokenizer: Any, lazy: bool = True):
        super().__init__(nn.Linear(3, size).double())
        self.tokenizer, self.vocab, self.lazy = tokenizer, size, lazy

    def view(self, rows: Any) -> View:
        return View({"ids": torch.arange(len(rows))}, torch.ones(len(rows), dtype=torch.long), shift=0)

    def says(self, view: View, names: Any, inject: Any) -> dict[str, Any]:
        hidden = torch.randn(len(view.inputs["ids"]), 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        return {"logits": Logits(hidden, self.module, torch.is_grad_enabled()) if self.lazy else self.module(hidden), "hidden.0": hidden}


class Other(ByteTokenizer):
    """Another tokenizer: one word more."""

    def __len__(self) -> int:
        return 259

    def get_vocab(self) -> dict[str, int]:
        return {**super().get_vocab(), "more": 258}


TOKENIZER = ByteTokenizer()
Make = Callable[..., Models]


def models(student: int = 264, teacher: int = 320, tokenizer: Any = TOKENIZER, **more: Any) -> Models:
    return Models({"student": Head(student, TOKENIZER, **more), "teacher": Head(teacher, tokenizer, **more)})


@pytest.mark.parametrize("student, teacher, num", [(264, 320, 258), (320, 264, 258), (258, 320, 258), (250, 320, 250), (320, 200, 200)])
def test_the_ids_kept_are_those_of_the_tokenizer_that_all_heads_have(student: int, teacher: int, num: int) -> None:
    assert SharedVocab().settle(models(student, teacher)).num == num


def test_a_given_number_stays_and_one_beyond_a_head_is_refused() -> None:
    assert SharedVocab(num=100).settle(models()).num == 100
    with pytest.raises(Refused) as caught:
        SharedVocab(num=300).settle(models())
    assert caught.value.slug == "vocab" and "258" in caught.value.expected


def test_different_tokenizers_are_refused_whatever_the_sizes() -> None:
    with pytest.raises(Refused) as caught:
        SharedVocab().settle(models(320, 320, Other()))
    assert caught.value.slug == "tokenizer" and "258 and 259 ids" in caught.value.got


def test_two_tokenizers_of_the_same_content_are_one() -> None:
    assert SharedVocab().settle(models(tokenizer=ByteTokenizer())).num == 258


@pytest.mark.parametrize("lazy", [True, False])
def test_logits_are_cut_before_the_softmax_and_all_else_stays(lazy: bool) -> None:
    made = models(lazy=lazy)
    batch = made.batch([Row("a", {}), Row("b", {})])
    listen = Aligned(made, (SharedVocab(num=258),))
    for role in made:
        own, cut = made.says(role, batch, ("logits", "hidden.0")), listen.says(role, batch, ("logits", "hidden.0"))
        assert torch.equal(dense(cut["logits"]), dense(own["logits"])[:, :258]) and torch.equal(cut["hidden.0"], own["hidden.0"])
        assert dense(cut["logits"]).softmax(-1).sum(-1).tolist() == pytest.approx([1, 1])


def test_what_is_cut_lazily_still_remembers_who_learns() -> None:
    made = models()
    batch = made.batch([Row("a", {})])
    listen = Aligned(made, (SharedVocab(num=258),))
    with made.turn("student"):
        assert dense(listen.says("student", batch, ("logits",))["logits"]).requires_grad
        assert not dense(listen.says("teacher", batch, ("logits",))["logits"]).requires_grad


@pytest.mark.parametrize("lazy", [True, False])
def test_heads_at_visual_tokens_are_cut_alike(lazy: bool) -> None:
    both = models(lazy=lazy)
    align = SharedVocab().settle(both)
    batch = both.batch([Row("a", {}), Row("b", {})])
    said = both.says("teacher", batch, ("logits", "hidden.0"))
    seen = batch.signals("teacher", {"patch_logits": said["logits"], **said.values})
    out = align("teacher", seen, batch)
    assert dense(out["patch_logits"]).shape == (2, 258) and torch.equal(dense(out["patch_logits"]), dense(out["logits"]))
    assert out["hidden.0"] is seen["hidden.0"]
