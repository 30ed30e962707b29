"""Every objective with every teacher and alignment: nothing is wrong, and what is wrong would be found."""

from typing import Any, Literal

import pytest

from limbeck.check import kinds, locate
from limbeck.check.matrix import cell, cells, rendered
from limbeck.check.reads import variants
from limbeck.objective.base import AbstractDivergence
from limbeck.objective.bernoulli_kl import BernoulliKL
from limbeck.objective.confident_entropy import ConfidentEntropy
from limbeck.objective.forward_kl import ForwardKL
from limbeck.objective.hidden_mse import HiddenMSE
from limbeck.objective.reverse_kl import ReverseKL
from limbeck.teacher.base import Teacher
from limbeck.teacher.cached import Cached
from limbeck.teacher.ensemble import Ensemble
from limbeck.teacher.live import Live

KL: Any = ForwardKL()


class Speaks(Teacher):
    """A teacher that speaks now."""

    @property
    def references(self) -> tuple[str, ...]:
        return ("config:tiny",)


@pytest.mark.parametrize("kind", kinds("teacher"))
def test_every_cell_is_exact_or_says_that_it_is_not_or_is_refused(kind: str) -> None:
    found = list(cells(teachers=variants(locate(f"teacher.{kind}").example())))
    assert [c for c in found if c.verdict == "wrong"] == []
    assert any(c.verdict in ("exact", "approximate") for c in found), "nothing learns from this teacher"
    assert all(c.message.count(";") >= 2 for c in found if c.verdict == "refused"), "a refusal says what was expected, what came, and what to do"
    assert all(c.message and c.error for c in found if c.verdict == "approximate")


def test_the_live_teacher_and_exact_answers_are_exact() -> None:
    found = list(cells(objectives=[KL], teachers=[Live.example(), Cached.example()]))
    assert {c.verdict for c in found if c.align not in ("by_position", "layer_map", "visible_chunks")} == {"exact"}  # these compare something else
    assert "forward_kl per=chunk" in {c.objective for c in found if c.align == "byte_chunks"}


@pytest.mark.parametrize("mean", ["arithmetic", "geometric"])
def test_log_odds_are_not_heard_of_a_mixture_which_knows_them_but_for_a_constant(mean: Literal["arithmetic", "geometric"]) -> None:
    refused = cell(BernoulliKL(), Ensemble(teachers=("config:tiny", "config:tiny"), mean=mean), None)  # type: ignore[call-arg, arg-type]
    assert refused.verdict == "refused" and "log-odds of teacher" in refused.message and "forward_kl" in refused.message
    assert cell(BernoulliKL(), Live.example(), None).verdict == "exact"  # type: ignore[call-arg]


def test_where_nothing_can_be_told_of_one_seed_another_is_tried_and_nothing_at_all_is_wrong() -> None:
    class Silent(AbstractDivergence):
        kind: Literal["tests:silent"] = "tests:silent"

        def divergence(self, log_p: Any, log_q: Any) -> Any:
            return 0 * log_q.sum(-1)

    found = cell(Silent(), Live.example(), None)  # type: ignore[call-arg]
    assert found.verdict == "wrong" and "zero or not finite" in found.message
    adapters: Any = locate("teacher.adapters_off").example()
    assert cell(ConfidentEntropy(), adapters, None, tries=1).verdict == "wrong"  # type: ignore[call-arg]  # the student is right nowhere
    assert cell(ConfidentEntropy(), adapters, None).verdict == "exact"  # type: ignore[call-arg]


def test_a_truncated_teacher_is_approximate_for_forward_kl_and_refused_for_reverse_kl() -> None:
    top: Any = Cached(model="config:tiny", keep="top_k", k=8)  # type: ignore[call-arg]
    found = cell(KL, top, None)
    assert found.verdict == "approximate" and 0.01 < (found.error or 0) and "top_logits" in found.message
    refused = cell(ReverseKL(), top, None)  # type: ignore[call-arg]
    assert refused.verdict == "refused" and "logits of teacher" in refused.message and refused.error is None


def test_a_teacher_that_says_something_else_and_does_not_say_so_is_wrong() -> None:
    class Tilted(Speaks):
        kind: Literal["tests:tilted"] = "tests:tilted"

        def beside(self, role: Any, models: Any) -> Any:
            from limbeck.model.base import clone

            made = clone(role)
            for parameter in made.module.parameters():
                parameter.data *= 1.001
            return made

    found = cell(KL, Tilted(), None)
    assert found.verdict == "wrong" and found.error and "nothing says so" in found.message


def test_an_error_that_is_no_refusal_is_wrong() -> None:
    class Broken(Speaks):
        kind: Literal["tests:broken"] = "tests:broken"

        def attach(self, batch: Any, models: Any, kept: Any) -> Any:
            raise KeyError("rows")

    found = cell(KL, Broken(), None)
    assert found.verdict == "wrong" and "KeyError" in found.message


def test_the_table_shows_each_verdict_and_writes_reasons_once() -> None:
    teachers: list[Any] = [Live.example(), Cached(model="config:tiny", keep="top_k")]  # type: ignore[call-arg]
    text = rendered(list(cells(objectives=[KL, HiddenMSE()], teachers=teachers)))  # type: ignore[call-arg]
    assert "exact" in text and "~ " in text and "- [1]" in text and text.count("\n[1] ") == 1
    assert text.splitlines()[-1].startswith("24 cells · ") and text.endswith("0 wrong")
