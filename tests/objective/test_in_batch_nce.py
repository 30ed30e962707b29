"""Every other document of the window as a negative, for bi-encoders."""

import math

import pytest
import torch

from limbeck.check.models import ALONE, Trial
from limbeck.check.window import SAME
from limbeck.objective.in_batch_nce import InBatchNCE
from limbeck.signals import Signals


def said(seed: int = 0) -> Signals:
    """Three queries, of which the second has two relevant documents and the third none; the first's document stands in the second list too."""
    draw = torch.Generator().manual_seed(seed)
    group = torch.tensor([0, 0, 1, 1, 1, 1, 2])
    query = torch.nn.functional.normalize(torch.randn(3, 8, generator=draw, dtype=torch.float64), dim=-1)[group]
    document = torch.nn.functional.normalize(torch.randn(7, 8, generator=draw, dtype=torch.float64), dim=-1)
    document[5] = document[0]
    values = {"query_embedding": query, "embedding": document, "relevance": torch.tensor([1, 0, 1, 1, 0, 0, 0])}
    return Signals(values, {"row": torch.arange(7)}, ("",) * 7, group, torch.ones(7))


def by_loops(one: Signals, factor: float) -> list[float]:
    """The formula, a query at a time, over distinct texts by their number."""
    text, out = [0, 1, 2, 3, 4, 0, 6], []  # row 5 is the text of row 0
    for g in range(3):
        rows = [i for i in range(7) if int(one.group[i]) == g]
        relevant = [i for i in rows if int(one["relevance"][i]) > 0]
        own = {text[i] for i in relevant}
        each = []
        for i in relevant:
            score = [factor * float(one["query_embedding"][i] @ one["embedding"][j]) for j in range(7)]
            rest = sum(math.exp(score[j]) for j in range(7) if text[j] not in own)
            each.append(-math.log(math.exp(score[i]) / (math.exp(score[i]) + rest)))
        out.append(sum(each) / len(each) if each else 0.0)
    return out


@pytest.mark.parametrize("factor", [1.0, 20.0])
def test_it_is_the_formula_query_by_query(factor: float) -> None:
    found = InBatchNCE(factor=factor).values(said())  # type: ignore[call-arg]
    torch.testing.assert_close(found.double(), torch.tensor(by_loops(said(), factor), dtype=torch.float64), rtol=1e-5, atol=1e-7)


def test_a_text_that_is_relevant_for_a_query_is_no_negative_in_another_list() -> None:
    negatives = InBatchNCE().negatives(said())  # type: ignore[call-arg]
    assert negatives.tolist() == [
        [False, True, True, True, True, False, True],  # query 0: row 5 is its own document again
        [True, True, False, False, True, True, True],  # query 1, either relevant document
        [True, True, False, False, True, True, True],
    ]


@pytest.mark.parametrize("micro", [2, 3, ALONE])
def test_cut_into_micro_batches_the_window_has_the_gradient_it_has_in_one_piece(micro: int) -> None:
    one = Trial(objective=(InBatchNCE(),))  # type: ignore[call-arg]
    (expected, losses), (found, same) = one.whole, one.gradients(micro=micro)
    assert (found - expected).norm() <= SAME[0] * expected.norm() + SAME[1]
    assert [x.count for x in losses] == [x.count for x in same] and float(losses[0].total) == pytest.approx(float(same[0].total), rel=1e-6)
