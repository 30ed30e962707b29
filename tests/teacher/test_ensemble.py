"""A mixture of teachers: numbers by hand, laziness, gradients, and what is refused."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from limbeck.check.models import family_of, pair, rows
from limbeck.component import validate
from limbeck.errors import Refused
from limbeck.examine import continued
from limbeck.model.base import Models, Role
from limbeck.model.mixture import Mixture
from limbeck.numerics import RULED_OUT, log_probs, mixture
from limbeck.objective.forward_kl import ForwardKL
from limbeck.planning import plan
from limbeck.signals import Batch, Logits, View, dense
from limbeck.start import run
from limbeck.teacher.ensemble import Ensemble
from limbeck.text.bytes_tokenizer import ByteTokenizer
from toy import TINY, at_home, toy  # noqa: F401

P, Q = (0.5, 0.25, 0.25), (0.125, 0.125, 0.75)
MODEL = f"config:{TINY}"


class Two(Role):
    """Says the same distribution at every target."""

    offers = frozenset({"logits", "label"})

    def __init__(self, p: tuple[float, ...], add: float = 0.0):
        super().__init__(torch.nn.Linear(len(p), len(p), bias=False).double())
        self.module.weight.data = torch.tensor(p, dtype=torch.float64).log().diag() + add  # any constant: logits are no log-probabilities
        self.asked: list[Any] = []
        self.rows_at_once = 0

    def says(self, view, names, inject):
        self.asked.append(names)

        def head(hidden: Tensor) -> Tensor:
            self.rows_at_once = max(self.rows_at_once, len(hidden))
            return self.module(hidden)

        eye = torch.ones(len(view.inputs["label"]), self.module.in_features, dtype=torch.float64)
        said = {"logits": Logits(eye, head, torch.is_grad_enabled()), "label": view.inputs["label"]}
        return {name: said[name] for name in names}


def seen(num: int = 1) -> View:
    return View({"label": torch.zeros(num, dtype=torch.long)})


def said(mean: str, weights: tuple[float, ...] = (1, 3)) -> Tensor:
    role = Mixture([Two(P, 5.0), Two(Q)], weights, mean)  # type: ignore[arg-type]
    return dense(role.says(seen(), ("logits",), {})["logits"])[0]


def test_the_arithmetic_mean_is_that_of_the_probabilities():
    # 1/4 of (1/2, 1/4, 1/4) and 3/4 of (1/8, 1/8, 3/4)
    torch.testing.assert_close(said("arithmetic").exp(), torch.tensor([7 / 32, 5 / 32, 20 / 32], dtype=torch.float64))


def test_the_geometric_mean_is_that_of_the_logarithms_normalised():
    # roots of 1/16, 1/32 and 3/16, by their sum
    roots = torch.tensor([0.25, 0.1767766953, 0.4330127019], dtype=torch.float64)
    torch.testing.assert_close(said("geometric", (2, 2)).exp(), roots / 0.8597893972)


@pytest.mark.parametrize("mean, expected", [("arithmetic", (0.25, 0.5, 0.25)), ("geometric", (0.0, 1.0, 0.0))])
def test_what_a_member_rules_out_stays_finite(mean, expected):
    logits = torch.tensor([[0.0, 0.0, -torch.inf], [-torch.inf, 1.0, 1.0]])
    mixed = mixture(list(log_probs(logits)), (0.5, 0.5), mean)
    assert mixed.isfinite().all() and (mixed >= RULED_OUT).all()
    torch.testing.assert_close(mixed.exp(), torch.tensor(expected))


def test_a_temperature_softens_the_mixture_and_not_each_member():
    softened = log_probs(said("arithmetic"), 2.0).exp()
    roots = torch.tensor([7.0, 5.0, 20.0], dtype=torch.float64).sqrt()
    torch.testing.assert_close(softened, roots / roots.sum())
    each = (torch.tensor([P, Q], dtype=torch.float64) ** 0.5).log().log_softmax(-1).exp()
    assert ((0.25 * each[0] + 0.75 * each[1]) - softened).abs().max() > 1e-3, "the two are not the same thing"


def dense_mixture(members: list[Role], weights: tuple[float, ...], mean: str, view: Any) -> Tensor:
    """Written down plainly, on all targets at once."""
    logs = [torch.log_softmax(dense(m.says(view, ("logits",), {})["logits"]), -1) for m in members]
    if mean == "arithmetic":
        return sum(w * x.exp() for w, x in zip(weights, logs, strict=True)).log()  # type: ignore[union-attr]
    return torch.log_softmax(sum(w * x for w, x in zip(weights, logs, strict=True)), -1)  # type: ignore[arg-type]


@pytest.mark.parametrize("mean", ["arithmetic", "geometric"])
def test_what_is_said_lazily_is_the_mean_written_down_plainly_with_its_gradients(mean):
    members: list[Role] = [family_of("llama", 1), family_of("qwen3", 2, width=24)]
    role, weights = Mixture(members, (1, 3), mean), (0.25, 0.75)
    view = role.view(rows().train)
    lazy = role.requires_grad_(True).says(view, ("logits", "label"), {})
    plain = dense_mixture(members, weights, mean, view)
    torch.testing.assert_close(lazy["logits"].dense(), plain, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(lazy["logits"][3:7].dense(), plain[3:7], rtol=1e-9, atol=1e-11)
    assert torch.equal(lazy["label"], members[0].says(view, ("label",), {})["label"])
    upstream, parameters = torch.randn(plain.shape, dtype=plain.dtype, generator=torch.Generator().manual_seed(0)), list(role.parameters())
    ours, theirs = (torch.autograd.grad((x * upstream).sum(), parameters) for x in (lazy["logits"].dense(), plain))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


def test_the_student_learns_from_it_what_it_learns_from_the_plain_mean_a_chunk_at_a_time():
    members, student = [Two(P), Two(Q)], Two((0.2, 0.3, 0.5))
    models = Models({"student": student, "teacher": Mixture(members, (1, 3))})
    batch = Batch({"student": seen(9)}, ("",) * 9, torch.arange(9), tuple("abcdefghi"), torch.ones(9))
    with models.turn("student"):
        heard = {name: models.says(name, batch, ("logits",)) for name in models}
        assert not heard["teacher"]["logits"].learns
        total = ForwardKL(chunk=4)(heard).total  # type: ignore[call-arg]
        (gradient,) = torch.autograd.grad(total, [student.module.weight])
    p = torch.tensor([7 / 32, 5 / 32, 20 / 32], dtype=torch.float64)
    q = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    torch.testing.assert_close(total.detach(), 9 * (p * (p / q).log()).sum())
    torch.testing.assert_close(gradient, 9 * (q - p)[:, None].expand(3, 3))  # every input is 1
    assert [m.rows_at_once for m in members] == [4, 4], "logits of more targets than a chunk were made"


def test_members_are_run_for_what_is_asked_of_them_alone():
    members = [Two(P), Two(Q)]
    role = Mixture(members, (1, 1))
    role.says(seen(), ("label",), {})
    role.says(seen(), ("label", "logits"), {})
    assert [m.asked for m in members] == [[("label",), ("label", "logits")], [("logits",)]]


def test_padded_heads_are_cut_to_the_ids_that_all_have():
    members: list[Role] = [family_of("llama", 1), family_of("llama", 2, vocab=len(ByteTokenizer()) + 6)]
    role = Mixture(members, (1, 1))
    view = role.view(rows().train[:2])
    logits = dense(role.says(view, ("logits",), {})["logits"])
    assert role.vocab == logits.shape[-1] == len(ByteTokenizer())
    cut = [torch.log_softmax(dense(m.says(view, ("logits",), {})["logits"])[:, : role.vocab], -1) for m in members]
    torch.testing.assert_close(logits, ((cut[0].exp() + cut[1].exp()) / 2).log(), rtol=1e-9, atol=1e-11)


def opener(**other: Callable[[Role], None]) -> Callable[[str], Role]:
    def open(reference: str) -> Role:
        role = family_of("bert" if reference == "a:masked" else "llama", len(reference))
        other.get(reference.partition(":")[2], lambda role: None)(role)
        return role

    return open


def test_an_ensemble_may_hold_another_one():
    whole = Ensemble(teachers=({"kind": "ensemble", "teachers": ["a:b", "a:cc"], "weights": [1, 3]}, "a:ddd"), weights=(1, 1))
    assert whole.references == ("a:b", "a:cc", "a:ddd")
    role = whole.open(opener())
    view = role.view(rows().train[:2])
    plain = dense_mixture([family_of("llama", n) for n in (3, 4, 5)], (0.125, 0.375, 0.5), "arithmetic", view)
    torch.testing.assert_close(dense(role.says(view, ("logits",), {})["logits"]), plain, rtol=1e-9, atol=1e-11)
    assert len(role.speakers) == 3


def other_words(role: Role) -> None:
    class Other(ByteTokenizer):
        """Bytes, and another id for each."""

        def get_vocab(self) -> dict[str, int]:
            return {word: (i + 1) % 256 for word, i in super().get_vocab().items()}

    role.tokenizer = Other()


@pytest.mark.parametrize(
    "teachers, slug, words",
    [(("a:b", "a:cc"), "tokenizer", "one tokenizer for all teachers"), (("a:b", "a:masked"), "shift", "a causal model")],
)
def test_members_that_do_not_fit_together_are_refused(teachers, slug, words):
    with pytest.raises(Refused) as caught:
        Ensemble(teachers=teachers).open(opener(cc=other_words))
    assert caught.value.slug == slug and words in caught.value.expected and caught.value.where == "teacher.teachers.1"


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"teachers": ["a:b"]}, "at least 2"),
        ({"teachers": ["a:b", "a:c"], "weights": [1, 2, 3]}, "weights: 2, one for each teacher"),
        ({"teachers": ["a:b", "a:c"], "weights": [1, 0]}, "greater than 0"),
        ({"teachers": ["a:b", {"kind": "cached", "model": "a:c"}]}, "cached is asked ahead of training"),
        ({"teachers": ["a:b", {"kind": "ema", "model": "a:c"}]}, "ema is the student in another form"),
        ({"teachers": ["a:b", "c"]}, "a kind of teacher"),
    ],
)
def test_what_makes_no_ensemble_is_refused_in_words(fields, words):
    with pytest.raises(Refused) as caught:
        validate(Ensemble, {"kind": "ensemble", **fields})
    assert words in caught.value.expected


def test_a_student_cannot_start_from_several_models_nor_hear_their_layers(tmp_path):
    recipe = toy(tmp_path, teacher={"kind": "ensemble", "teachers": [MODEL, MODEL]})
    with pytest.raises(Refused) as caught:
        plan(recipe, probe=False)
    assert "since the teacher is several models" in caught.value.expected
    with pytest.raises(Refused) as caught:
        plan({**recipe, "student": {"start": MODEL}}, "train.0.objective=[hidden_mse]", probe=False)
    assert caught.value.slug == "need" and caught.value.code == 3


def test_it_writes_what_its_members_would_write():
    single = family_of("llama", 3)
    ids = single.view(rows().train[:1]).inputs["ids"][:5]
    assert torch.equal(continued(Mixture([single, single], (1, 1)), ids, 6), continued(single, ids, 6))
    assert not torch.equal(continued(pair()["teacher"], ids, 6), continued(single, ids, 6)), "all of them write the same anyhow"


def test_a_run_with_two_of_one_model_is_a_run_with_that_model_and_reports_both(tmp_path):
    evaluate = ["agreement", {"kind": "speed", "repeats": 2, "new_tokens": 4, "prompt_tokens": 8, "contexts": [16]}]
    student = {"start": MODEL, "surgery": [{"kind": "drop_blocks", "keep": [0, 3]}]}
    recipe = toy(tmp_path, teacher={"kind": "ensemble", "teachers": [MODEL, MODEL], "weights": [1, 3]}, student=student, evaluate=evaluate)
    both, one = run(recipe, "train.0.steps=2"), run({**recipe, "teacher": MODEL}, "train.0.steps=2")
    assert both.finished and both.summary["teacher"]["kl"] == 0 and both.summary["teacher"]["top1"] == 1
    assert both.summary["student"]["kl"] == pytest.approx(one.summary["student"]["kl"], rel=1e-4)
    assert [p["role"] for p in both.summary["provenance"]].count("teacher") == 2
    assert both.summary["teacher"]["parameters"] == 2 * one.summary["teacher"]["parameters"]
    assert "decode_tokens_per_second" not in both.summary["teacher"] and both.summary["student"]["decode_tokens_per_second"] > 0
