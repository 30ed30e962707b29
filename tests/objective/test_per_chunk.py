"""Divergences between two tokenizers: over what both spell alike, folded or not."""

from typing import Any

import pytest
import torch

import two_tokenizers
from limbeck.align.base import Aligned
from limbeck.align.byte_chunks import ByteChunks
from limbeck.component import find, members
from limbeck.model.base import Models
from limbeck.numerics import kl, log_probs
from limbeck.objective.base import AbstractDivergence, Objective
from limbeck.objective.forward_kl import ForwardKL
from limbeck.signals import Head, Logits, Row, Signals, dense

DIVERGENCES = [kind for kind in members("objective") if issubclass(find(Objective, kind), AbstractDivergence)]
ROWS = [Row("a", {"prompt": "he", "answer": "hello"}), Row("b", {"prompt": "a", "answer": "xhe"})]


def heard(both: Models, lazy: bool = True) -> dict[str, Signals]:
    """What both say of chunks, in a turn that trains the student."""
    batch = ByteChunks().index(both.batch(ROWS), both)
    said = {role: Aligned(both, (ByteChunks(),)).says(role, batch, ("chunk_logits",)) for role in both}
    if lazy:
        return said
    return {role: type(s)({"chunk_logits": dense(s["chunk_logits"])}, s.rows, s.tags, s.group, s.weights) for role, s in said.items()}


def solved(objective: Any, lazy: bool) -> tuple[float, list[torch.Tensor], int]:
    """Value, gradient and count."""
    both = two_tokenizers.models()
    with both.turn("student"):
        loss = objective(heard(both, lazy))
        loss.total.backward()
    return loss.total.item(), [p.grad for p in both["student"].parameters() if p.grad is not None], loss.count


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_every_divergence_is_the_same_from_rows_of_a_head_and_from_dense_logits(kind: str) -> None:
    objective = find(Objective, kind)(per="chunk", chunk=3, **({} if kind == "total_variation" else {"temperature": 2.0}))  # type: ignore[call-arg]
    folded, plain = solved(objective, True), solved(objective, False)
    assert folded[0] == pytest.approx(plain[0], rel=1e-9) and folded[2] == plain[2] == 7
    for a, b in zip(folded[1], plain[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


def test_it_is_the_divergence_of_the_shared_entries_as_if_there_were_no_others() -> None:
    both = two_tokenizers.models()
    batch = ByteChunks().index(both.batch(ROWS), both)
    first = {"student": [0, 2, 4, 5, 6, 7, 9], "teacher": [0, 1, 2, 3, 4, 5, 6]}
    rows = {role: dense(both.says(role, batch, ("logits",))["logits"])[first[role]] for role in both}
    letters = [both["teacher"].tokenizer.get_vocab()[chr(b) if 0x21 <= b < 0x7F else "Ġ"] for b in range(0x20, 0x7F)]
    assert letters == [j for i, j in zip(*(batch.view(role).shared.tolist() for role in both), strict=True) if 0x20 <= i < 0x7F]  # type: ignore[union-attr]
    q, p = (rows[role].index_select(-1, batch.view(role).shared) for role in ("student", "teacher"))  # type: ignore[arg-type]
    expected = kl(log_probs(p), log_probs(q)).sum().item()
    assert ForwardKL(per="chunk")(heard(both)).total.item() == pytest.approx(expected, rel=1e-9)  # type: ignore[call-arg]


@pytest.mark.parametrize("known", [True, False])
def test_some_entries_of_lazy_logits_are_those_of_the_dense_ones_in_their_order(known: bool) -> None:
    weight, bias = torch.randn(6, 3, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    hidden, ids = torch.randn(4, 3, dtype=torch.float64), torch.tensor([5, 0, 3])
    whole = hidden @ weight.mT + bias
    some = Logits(hidden, Head(weight, bias) if known else lambda h: h @ weight.mT + bias, False, ids)
    torch.testing.assert_close(some.dense(), whole[:, ids])
    torch.testing.assert_close(some[1:3].dense(), whole[1:3, ids])


def test_weights_of_rows_reach_the_folded_sum_of_chunks() -> None:
    both = two_tokenizers.models()
    said = {role: type(s)(s.values, s.rows, s.tags, s.group, torch.tensor([2.0, 0.5])) for role, s in heard(both).items()}
    each = ForwardKL(per="chunk").values(*(said[role] for role in ("student", "teacher")))  # type: ignore[call-arg]
    expected = (each * torch.tensor([2.0] * 4 + [0.5] * 3)).sum().item()
    assert ForwardKL(per="chunk")(said).total.item() == pytest.approx(expected, rel=1e-9)  # type: ignore[call-arg]
