"""KL to the teacher on a subject's own words: against a loop over its tokens, and what is left out."""

from dataclasses import replace

import pytest
import torch

from limbeck.check.evaluate import exam, roles
from limbeck.evaluate.on_policy import OnPolicy, gaps_of
from limbeck.model.sampling import write
from limbeck.numerics import Streams

SMALL = OnPolicy(num=5, prompt_tokens=20, new_tokens=12)


def by_loop(ids: list[int], start: int) -> list[float]:
    """The divergence at each token from `start` on, from the logits of a plain call."""
    with torch.no_grad():
        log_q, log_p = (roles(0)[name].module(torch.tensor([ids])).logits[0].double().log_softmax(-1) for name in ("student", "teacher"))
    return [float((log_q[t].exp() * (log_q[t] - log_p[t])).sum()) for t in range(start - 1, len(ids) - 1)]


def test_the_gaps_of_answers_are_those_of_a_loop_however_many_are_read_together() -> None:
    answers = [(list(range(1, 5 + i % 3)), list(range(50, 53 + i % 4))) for i in range(11)]
    found = list(gaps_of(roles(0)["student"], roles(0)["teacher"], answers))
    assert len(found) == 11
    for each, (prompt, answer) in zip(found, answers, strict=True):
        assert each.tolist() == pytest.approx(by_loop(prompt + answer, len(prompt)), rel=1e-4)


def test_it_is_the_mean_over_the_tokens_that_the_subject_draws_itself() -> None:
    given = exam()
    student, values = roles(0)["student"], []
    order = torch.randperm(len(given.rows), generator=Streams(0)("on_policy")).tolist()[:5]
    for i in order:
        prompt = student.view([given.rows[i]]).inputs["ids"].tolist()[:20]
        (answer,) = write(student, [prompt], 12, 1.0, [Streams(0).number("on_policy", given.rows[i].key)])
        values += by_loop([*prompt, *answer], 20)
    found = SMALL(given)
    assert found["student"]["on_policy_kl"] == pytest.approx(sum(values) / len(values), rel=1e-4)
    assert found["teacher"]["on_policy_kl"] == pytest.approx(0, abs=1e-6) and found["student"]["on_policy_kl"] > 0.01


def test_rows_shorter_than_a_prompt_are_left_out_and_so_is_an_exam_without_a_teacher() -> None:
    assert OnPolicy(prompt_tokens=500, num=4)(exam()) == {}
    assert SMALL(exam(subjects=("student",), teacher=False)) == {}
    few = replace(exam(), rows=exam().rows[:1])
    assert SMALL(few)["student"]["on_policy_kl_error"] is None
