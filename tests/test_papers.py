"""Shipped recipes of papers: the numbers that make them that paper."""

import pytest

from limbeck.recipe import graph, load


@pytest.mark.parametrize("share, chosen, rejected", [(0.0, 1.0, 1.0), (0.25, 0.75, 1.25), (0.5, 0.5, 1.5), (1.0, 0.5, 1.5)])
def test_distillm2_moves_weight_from_the_teachers_answers_to_the_students_in_the_first_half_of_a_round(
    share: float, chosen: float, rejected: float
) -> None:
    stage = load("distillm2").train[0]
    first, second = (objective.at(round(share * stage.steps)) for objective in stage.turn[0].objective)  # type: ignore[operator]
    assert (first.kind, first.tag, first.alpha, first.per, first.adaptive) == ("skew_kl", "chosen", 0.1, "row", True)
    assert (second.kind, second.tag, second.alpha, second.per, second.adaptive) == ("skew_reverse_kl", "rejected", 0.1, "row", True)
    assert second.stop
    assert first.weight == pytest.approx(chosen) and second.weight == pytest.approx(rejected)


def test_distillm2_writes_anew_in_every_round() -> None:
    nodes = graph(load("distillm2"))
    assert [node.name for node in nodes] == ["round.0", "round.1", "round"] and all(node.what.data[-1].kind == "rollouts" for node in nodes)


def test_taid_ends_at_the_teacher_when_its_stage_does() -> None:
    recipe = load("taid")
    (objective,) = recipe.train[0].turn[0].objective
    assert objective.share.steps == recipe.train[0].steps and objective.at(0).share == 0.4
    assert objective.share.value(recipe.train[0].steps) == 1.0


def test_branch_merge_fuses_maths_into_science_and_that_into_code() -> None:
    merges = {merge.name: merge for merge in load("branch_merge").merge}
    assert merges["reasoning"].of == ("science", "math") and merges["merged"].of == ("code", "reasoning")
    assert {merges[name].kind for name in ("reasoning", "merged")} == {"arcee_fusion"}
