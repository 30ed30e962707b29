"""Shipped recipes of papers: the numbers that make them that paper."""

import pytest

from limbeck.claims import claim_of
from limbeck.cli.showing import listed, shown
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


SHOWN = {
    "distillm2": ("DistiLLM-2", "holds: After equal steps", ("teacher:", "student:", "rollouts", "skew_kl", "skew_reverse_kl", "lr:")),
    "llamba": ("Llamba", "reversed: After equally", ("teacher:", "discrete_mamba2}}", "matrix_orientation", "hidden_l2", "forward_kl", "export:")),
}


@pytest.mark.parametrize("name", SHOWN)
def test_a_recipe_is_shown_as_its_method_in_twenty_lines_between_what_it_is_and_what_was_found(name: str) -> None:
    title, verdict, words = SHOWN[name]
    head, method, found = shown(name)["text"].split("\n\n")
    lines = method.split("\n")
    assert len(lines) <= 20 and head.startswith(f"{name} · {title}") and found.startswith(f"claim   {verdict}")
    order = [next(i for i, line in enumerate(lines) if word in line) for word in words]
    assert order == sorted(order) and not any(line.startswith(("about", "paper", "claim", "toy")) for line in lines)


def test_works_that_can_be_run_come_first_each_with_its_claim_and_what_came_of_it() -> None:
    rows = listed("paper")
    runnable = [row for row in rows if row["recipe"]]
    assert rows[: len(runnable)] == runnable and not any(row["claim"] or row["expects"] for row in rows[len(runnable) :])
    by = {row["recipe"]: row for row in runnable}
    assert {"taid", "distillm2", "alm", "uld", "gold", "step_by_step", "quantify", "branch_merge"} <= set(by)
    assert all(by[name]["expects"] == claim_of(name).expects for name in ("taid", "distillm2", "alm"))
    assert by["distillm2"]["claim"] == "holds" and (by["uld"]["claim"], by["gold"]["claim"]) == ("an arm of alm", "none")


def test_taid_ends_at_the_teacher_when_its_stage_does() -> None:
    recipe = load("taid")
    (objective,) = recipe.train[0].turn[0].objective
    assert objective.share.steps == recipe.train[0].steps and objective.at(0).share == 0.4
    assert objective.share.value(recipe.train[0].steps) == 1.0


def test_branch_merge_fuses_maths_into_science_and_that_into_code() -> None:
    merges = {merge.name: merge for merge in load("branch_merge").merge}
    assert merges["reasoning"].of == ("science", "math") and merges["merged"].of == ("code", "reasoning")
    assert {merges[name].kind for name in ("reasoning", "merged")} == {"arcee_fusion"}


def test_alm_moves_to_a_small_vocabulary_with_debiased_and_merged_chunks_and_balanced_losses() -> None:
    recipe = load("alm")
    turn = recipe.train[0].turn[0]
    (surgery,), (align,) = recipe.student.surgery, turn.align
    assert (surgery.kind, surgery.tokenizer, align.kind, align.debias, align.merge) == ("transplant_vocab", "python_4k", "byte_chunks", True, 0.1)
    assert [objective.kind for objective in turn.objective] == ["cross_entropy", "chunk_likelihood"]
    assert turn.objective[1].tau == 100.0 and turn.balance == "gradient_norm"


def test_uld_pairs_by_position_with_the_weights_of_its_authors_and_gold_by_bytes() -> None:
    uld, gold = (load(name).train[0].turn[0] for name in ("uld", "gold"))
    assert [a.kind for a in uld.align] == ["by_position"] and [a.kind for a in gold.align] == ["byte_chunks"]
    assert [(o.kind, o.weight) for o in uld.objective] == [("cross_entropy", 1.0), ("sorted_l1", 1.5)]
    assert [o.kind for o in gold.objective] == ["cross_entropy", "hybrid_l1"] and gold.objective[1].matched is None


def test_rank_distillm_contrasts_labels_first_and_then_learns_the_order_of_whole_lists() -> None:
    recipe = load("rank_distillm")
    (first, then) = recipe.train
    assert [o.kind for stage in (first, then) for o in stage.turn[0].objective] == ["info_nce", "rank_net"]
    lists, whole = recipe.data[-1], (then.data or ())[-1]
    assert (lists.negatives, lists.group, whole.negatives) == ("sampled", 8, "all") and lists.depth == whole.depth
    assert (recipe.data[0], lists.kind) == ((then.data or ())[0], whole.kind), "both stages hold out the same queries"


def test_rank_objectives_compares_arms_that_differ_in_their_objective_alone() -> None:
    claim = claim_of("rank_objectives")
    assert claim.ranks and all(set(arm) <= {"train.0.objective"} for arm in claim.arms.values()) and len(claim.arms) == 7
    assert {pair for pair in claim.pairs} == {("info_nce", "pointwise_bce"), ("margin_mse", "pointwise_hinge")}


def test_robust_distiller_starts_from_the_teachers_front_and_first_blocks_and_lets_the_student_alone_hear_noise() -> None:
    recipe = load("robust_distiller")
    assert [dict(surgery) for surgery in recipe.student.surgery] == [{"kind": "drop_blocks", "drop": None, "keep": (0, 1), "choose": None}]
    corrupt, objectives = dict(recipe.data[1]), [dict(objective) for objective in recipe.train[0].turn[0].objective]
    assert (corrupt["hears"], corrupt["noisy"], corrupt["echoing"], corrupt["low"], corrupt["high"]) == (("student",), 0.5, 0.5, 0, 20)
    assert corrupt["file_share"] == 0.7  # as published, of noises that are files
    assert (objectives[0]["layers"], objectives[0]["cosine"], objectives[1]["weight"]) == ((2, 4, 6), 1.0, 2.0)  # a third, two thirds, all of six
    head = [objectives[1][name] for name in ("size", "window", "hop", "repeat", "width", "depth", "power")]
    assert head == [512, 400, 160, 2, 256, 3, 1]
    how = recipe.train[0].turn[0].optimiser
    assert (how.lr, how.warm_up, how.clip) == (2e-4, 0.07, 15.0) and [(g.match, g.gradient) for g in how.groups] == [(("feature_extractor.*",), 0.1)]


def test_the_arms_of_robust_distiller_differ_in_what_is_heard_and_in_one_head() -> None:
    claim = claim_of("robust_distiller")
    quiet = {"data.1.noisy": 0.0, "data.1.echoing": 0.0}
    assert claim.arms["robust"] == {} and claim.arms["clean"] == quiet and claim.pairs == [("robust", "clean")]
    assert set(claim.arms["robust_without_enhancement"]) == {"train.0.objective"} and len(claim.arms) == 3
    assert {f"student.probe_accuracy{ratio}" for ratio in ("", "_5db", "_10db")} <= set(claim.told)
    assert claim.metric == "student.probe_accuracy_0db"
