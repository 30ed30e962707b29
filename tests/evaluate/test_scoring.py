"""One pass over held-out rows, and errors over documents."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from limbeck.align.shared_vocab import SharedVocab
from limbeck.check.models import family_of
from limbeck.errors import Refused
from limbeck.evaluate._scoring import CHUNK, bin_of, by_document, clustered, documents, score
from limbeck.evaluate.base import Table
from limbeck.model.base import Role
from limbeck.model.plain import Plain
from limbeck.numerics import log_probs, top_k
from limbeck.signals import Logits, Row, TopK, View

LN2 = math.log(2)


def live(teacher: Role) -> Callable[..., Any]:
    return lambda rows, view: teacher.says(teacher.view(rows), ("logits",), {})["logits"]


def as_logits(module: nn.Module | None = None) -> Plain:
    """A role whose features are its logits."""
    return Plain(module or nn.Identity())


def images(*logits: tuple[float, ...], labels: tuple[int, ...] = ()) -> list[Row]:
    rows = [{"features": torch.tensor(x)} for x in logits]
    return [Row(str(i), x | ({"label": labels[i]} if labels else {})) for i, x in enumerate(rows)]


@pytest.mark.parametrize("layout", ["auto", "packed", "padded"])
@pytest.mark.parametrize("rows_at_once", [1, 3, 8])
def test_the_table_does_not_depend_on_how_rows_are_run(speaker, rows, layout, rows_at_once):
    plain = score(speaker(1), rows, live(speaker(0, 2)), rows_at_once=7)
    other = score(speaker(1, layout=layout), rows, live(speaker(0, 2, layout=layout)), rows_at_once=rows_at_once)
    for name, column in vars(plain).items():
        torch.testing.assert_close(getattr(other, name), column, rtol=1e-5, atol=1e-5)


def test_the_rows_of_targets_are_counted_on_from_one_forward_pass_to_the_next(speaker, rows):
    table = score(speaker(0), rows, None, rows_at_once=2)
    assert table.row.bincount().tolist() == [len(row.content["text"]) for row in rows]  # each byte, after the begin mark
    assert bytes(table.label[table.row == 2].tolist()).decode() == rows[2].content["text"]
    assert table.pos[table.row == 2].tolist() == list(range(1, len(rows[2].content["text"]) + 1))


def test_log_probabilities_are_those_of_the_models_own_loss(speaker, rows):
    role = speaker(3)
    table = score(role, rows, None)
    for i, row in enumerate(rows):
        ids = torch.tensor([role.tokenizer.encode(row.content["text"])])
        loss = role.module(input_ids=ids, labels=ids).loss  # transformers' own shift and mean
        torch.testing.assert_close(-table.label_logprob[table.row == i].mean(), loss.detach(), rtol=1e-5, atol=1e-5)


def test_the_divergence_is_that_from_the_teacher_worked_out_by_hand():
    # p = (1/2, 1/4, 1/4), q = (1/4, 1/4, 1/2): KL(p || q) = 1/2 ln 2 - 1/4 ln 2; KL(q || p) is another for the second pair
    rows = images((-2 * LN2, -2 * LN2, -LN2), (0.0, -1e9, -1e9), (-LN2, -LN2, -1e9), labels=(2, 0, 1))
    teacher = torch.tensor([[-LN2, -2 * LN2, -2 * LN2], [0.0, -1e9, -1e9], [0.0, -1e9, -1e9]])
    table = score(as_logits(), rows, lambda rows, view: teacher, rows_at_once=3)
    torch.testing.assert_close(table.kl, torch.tensor([0.25 * LN2, 0.0, LN2]), rtol=1e-6, atol=1e-6)
    assert table.teacher_best.tolist() == [0, 0, 0] and table.best[:2].tolist() == [2, 0]
    torch.testing.assert_close(table.teacher_best_prob, torch.tensor([0.5, 1.0, 1.0]))
    torch.testing.assert_close(table.label_logprob, torch.tensor([-LN2, 0.0, -LN2]))


def test_a_teacher_known_by_its_best_ids_is_compared_on_them_and_a_rest():
    # p = (1/2 | rest 1/2), q = (1/4 | rest 3/4): 1/2 ln 2 + 1/2 ln(2/3)
    rows = images((math.log(1 / 4), math.log(1 / 4), math.log(1 / 2)), labels=(0,))
    teacher = TopK(torch.tensor([[0]]), torch.tensor([[-LN2]]), torch.tensor([-LN2]))
    table = score(as_logits(), rows, lambda rows, view: teacher)
    torch.testing.assert_close(table.kl, torch.tensor([0.5 * LN2 + 0.5 * math.log(2 / 3)]), rtol=1e-5, atol=1e-6)
    assert table.teacher_best.tolist() == [0] and table.teacher_best_prob.tolist() == [0.5]


def test_the_teacher_against_itself_is_exact(speaker, rows):
    teacher = speaker(0, 2)
    table = score(teacher, rows, live(teacher))
    assert float(table.kl.max()) <= 1e-6 and torch.equal(table.best, table.teacher_best)


@pytest.mark.parametrize("keep", ["hidden", "top_k"])
def test_the_teacher_against_what_was_kept_of_it_a_row_at_a_time_is_exact(speaker, rows, keep):
    teacher = speaker(0, 2)

    def kept(some, view):
        with torch.no_grad():
            said = [teacher.says(teacher.view([row]), ("logits",), {})["logits"] for row in some]
        hidden = Logits(torch.cat([x.hidden for x in said]), teacher.head, False)
        return hidden if keep == "hidden" else TopK(*top_k(log_probs(hidden.dense()), 8))

    table = score(teacher, rows, kept)
    assert float(table.kl.max()) <= 1e-6 and torch.equal(table.best, table.teacher_best)


def test_fewer_best_ids_never_make_the_divergence_larger(speaker, rows):
    teacher, student = speaker(0, 2), speaker(1)
    whole = score(student, rows, live(teacher)).kl

    def truncated(some, view):
        return TopK(*top_k(log_probs(live(teacher)(some, view).dense()), 4))

    assert (score(student, rows, truncated).kl <= whole + 1e-5).all()


def test_no_more_logits_exist_than_a_slice(speaker):
    role, seen = speaker(0, max_position_embeddings=1024), []
    role.module.get_submodule(role.anatomy.path("head")).register_forward_hook(lambda module, args, out: seen.append(len(out)))
    score(role, [Row("long", {"text": "abcd" * 200})], None)
    assert seen == [CHUNK, CHUNK, CHUNK, 800 - 3 * CHUNK]


@pytest.mark.parametrize("half", ["teacher", "student"])
def test_half_precision_is_compared_in_float32(half):
    # a softmax in bfloat16 would round 0.5039 and 0.4961 to 8 bits of mantissa
    apart, even = torch.tensor([0.0, 2**-6]), torch.tensor([0.0, 0.0])
    dtypes = {"teacher": torch.float32, "student": torch.float32, half: torch.bfloat16}
    rows = [Row("0", {"features": even.to(dtypes["student"]), "label": 0})]
    table = score(as_logits(), rows, lambda rows, view: apart[None].to(dtypes["teacher"]))
    p = apart.double().softmax(0)
    assert table.kl.dtype == table.label_logprob.dtype == torch.float32
    torch.testing.assert_close(table.kl.double(), ((p * (p / 0.5).log()).sum())[None], rtol=1e-2, atol=1e-8)


def test_a_role_is_left_as_it_was_and_measured_without_dropout(speaker, rows):
    quiet, noisy = speaker(1), speaker(1, attention_dropout=0.9)
    noisy.train()
    noisy.module.lm_head.eval()
    before = [module.training for module in noisy.modules()]
    table = score(noisy, rows, None)
    assert [module.training for module in noisy.modules()] == before and len(set(before)) == 2
    torch.testing.assert_close(table.label_logprob, score(quiet, rows, None).label_logprob)
    assert all(p.grad is None and p.requires_grad for p in noisy.parameters()) and not table.label_logprob.requires_grad


def test_only_answers_are_targets(speaker):
    rows = [Row("a", {"prompt": "what?", "answer": "this", "open": True}), Row("b", {"prompt": "and?"}), Row("c", {"prompt": "", "answer": "so"})]
    table = score(speaker(0), rows, None)
    assert [table.label[table.row == i].tolist() for i in range(3)] == [list(b"this"), [], [*b"so", 257]]


def test_images_need_no_labels():
    table = score(as_logits(), images((0.0, 1.0), (2.0, 0.0)), lambda rows, view: view.inputs["features"])
    assert table.label is None and table.pos is None and table.kl.tolist() == [0.0, 0.0] and table.best.tolist() == [1, 0]


@pytest.mark.parametrize("texts", [(), ("",), ("", "")])
def test_rows_with_nothing_to_predict_are_refused(speaker, texts):
    with pytest.raises(Refused) as refused:
        score(speaker(0), [Row(str(i), {"text": text}) for i, text in enumerate(texts)], None)
    assert refused.value.slug == "data"


def test_a_row_without_targets_among_others_is_no_harm(speaker, rows):
    with_empty = score(speaker(1), [Row("empty", {"text": ""}), *rows, Row("empty too", {"text": ""})], live(speaker(0)), rows_at_once=1)
    torch.testing.assert_close(with_empty.kl, score(speaker(1), rows, live(speaker(0))).kl, rtol=1e-5, atol=1e-5)
    assert int(with_empty.row.min()) == 1


def test_a_padded_vocabulary_is_refused_until_it_is_cut(speaker, rows):
    teacher, student = speaker(0, vocab=264), speaker(1)
    with pytest.raises(Refused) as refused:
        score(student, rows, live(teacher))
    assert refused.value.slug == "vocabulary" and "264" in str(refused.value)
    table = score(student, rows, live(teacher), align=SharedVocab(num=258))
    cut = [live(teacher)([row], None).dense()[:, :258] for row in rows]
    p = torch.cat(cut).log_softmax(-1)
    torch.testing.assert_close(table.teacher_best_prob, p.exp().max(-1).values, rtol=1e-5, atol=1e-6)


def test_ids_that_a_student_does_not_have_are_refused():
    teacher = TopK(torch.tensor([[2]]), torch.tensor([[-LN2]]), torch.tensor([-LN2]))
    with pytest.raises(Refused, match="vocabulary"):
        score(as_logits(), images((0.0, 0.0), labels=(0,)), lambda rows, view: teacher)


def test_a_teacher_with_targets_of_its_own_is_refused(speaker, rows):
    with pytest.raises(Refused) as refused:
        score(speaker(1), rows, lambda some, view: live(speaker(0))(some, view)[1:])
    assert refused.value.slug == "tokenizer"


def test_a_role_without_logits_is_refused():
    with pytest.raises(Refused) as refused:
        score(Plain(nn.Identity(), says="features"), images((0.0,)), None)
    assert refused.value.slug == "logits"


def table_of(rows_of_targets: list[int]) -> Table:
    row = torch.tensor(rows_of_targets)
    return Table(row, row, row.double())


def test_errors_over_documents_are_those_worked_out_by_hand():
    # documents: a (rows 0, 1): sum 1 + 2 + 3 = 6 of 3 targets; b (row 2): sum 2 of 1. R = 8/4 = 2.
    # residuals 6 - 2*3 = 0 and 2 - 2*1 = 0: then moved by 1 up and down
    rows = [Row("0", {}, source="a"), Row("1", {}, source="a"), Row("2", {}, source="b")]
    values = torch.tensor([1.0, 2.0, 4.0, 1.0])
    mean, error = by_document(values, table_of([0, 0, 1, 2]), rows)
    assert mean == 2.0
    assert error == pytest.approx(math.sqrt(2 / 1 * (1 + 1)) / 4)


def test_with_one_target_a_document_the_error_is_the_ordinary_one():
    values = torch.tensor([1.0, 4.0, 2.0, 8.0, 5.0])
    mean, error = clustered(values, torch.ones(5), torch.arange(5))
    assert mean == pytest.approx(4.0) and error == pytest.approx(float(values.std()) / math.sqrt(5))


def test_targets_that_are_copies_of_one_another_add_no_certainty():
    values = torch.tensor([1.0, 4.0, 2.0, 8.0, 5.0])
    once = clustered(values, torch.ones(5), torch.arange(5))
    assert clustered(values.repeat(9), torch.ones(45), torch.arange(5).repeat(9)) == pytest.approx(once)


def test_the_error_agrees_with_a_bootstrap_over_documents():
    generator = torch.Generator().manual_seed(0)
    num = torch.randint(1, 30, (200,), generator=generator)
    level = torch.randn(200, generator=generator).repeat_interleave(num)
    values, document = level + torch.randn(len(level), generator=generator), torch.arange(200).repeat_interleave(num)
    total, size = torch.zeros(200).index_add(0, document, values), num.float()
    draws = torch.randint(200, (4000, 200), generator=generator)
    spread = float((total[draws].sum(1) / size[draws].sum(1)).std())
    error = clustered(values, torch.ones(len(values)), document)[1]
    assert error == pytest.approx(spread, rel=0.05)  # the bootstrap's own error is 1.1 %
    assert error > 2 * float(values.std()) / math.sqrt(len(values))  # and that of independent targets would be far too small


def test_of_one_document_there_is_no_error():
    rows = [Row("0", {}, source="a"), Row("1", {}, source="a")]
    assert by_document(torch.tensor([1.0, 2.0]), table_of([0, 1]), rows) == (1.5, None)


def test_documents_without_any_of_it_do_not_count():
    with_empty = clustered(torch.tensor([1.0, 0.0, 0.0]), torch.tensor([1.0, 1.0, 0.0]), torch.tensor([0, 1, 2]))
    assert with_empty == clustered(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0]), torch.tensor([0, 1]))


def test_a_row_without_document_is_its_own():
    rows = [Row("0", {}), Row("1", {}), Row("2", {}, group="pair"), Row("3", {}, group="pair"), Row("4", {}, source="s"), Row("5", {}, source="s")]
    assert documents(rows).tolist() == [0, 1, 2, 2, 3, 3]


def test_an_edge_belongs_to_the_bin_above_and_one_to_the_last():
    assert bin_of(torch.tensor([0.0, 0.0999, 0.1, 0.55, 0.9, 1.0, 1.0000001])).tolist() == [0, 0, 1, 5, 9, 9, 9]


def test_the_teacher_is_given_the_subjects_view(speaker, rows):
    seen: list[tuple[int, View]] = []
    teacher = speaker(0)
    score(speaker(1), rows, lambda some, view: seen.append((len(some), view)) or live(teacher)(some, view), rows_at_once=4)
    assert [num for num, _ in seen] == [4, 3] and [view.num_rows for _, view in seen] == [4, 3]


def test_a_masked_model_is_not_scored_on_tokens_that_it_has_seen_and_offers_no_text() -> None:
    """Nothing is hidden of held-out rows: what it says of a token that stands before it is no prediction, and no perplexity."""
    role, causal = family_of("bert", dtype=torch.float32), family_of("llama", dtype=torch.float32)
    rows = [Row("a", {"text": "less dense"}), Row("b", {"text": "ice"})]
    table, other = score(role, rows, None), score(causal, rows, None)
    assert table.label is None and table.label_logprob is None and table.pos is not None and len(table.row) == 15  # with a mark each
    assert other.label_logprob is not None and "text" in causal.offers and "text" not in role.offers
