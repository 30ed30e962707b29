"""What a measured claim is: verdicts by hand, settings that were fixed before, and records that are not stale."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from limbeck.claims import RECORDS, changes, claim_of, compared, identity, main, measure, ranked, record_of, value_of
from limbeck.errors import Refused
from limbeck.recipe import SHIPPED, Claim, load
from limbeck.store import read_json
from toy import STEPS, at_home, toy, words

__all__ = ["at_home"]
MEASURED = sorted(path.stem for path in RECORDS.glob("*.json"))
CLAIMING = [path.stem for path in sorted(SHIPPED.glob("*.yaml")) if load(path).claim is not None]


def claim(**changed: Any) -> Claim:
    plain = {"expects": "a is better", "arm": "a", "than": ["b"], "arms": {"a": {}, "b": {}}, "grid": {"seed": [1, 2, 3]}}
    return Claim.model_validate({**plain, **changed})


@pytest.mark.parametrize(
    "ours, theirs, verdict",
    [
        ([1.0, 1.1, 0.9], [2.0, 2.2, 1.9], "holds"),  # 1.0, 1.1, 1.0 better: mean 1.03, standard error 0.03
        ([2.0, 2.2, 1.9], [1.0, 1.1, 0.9], "reversed"),
        ([1.0, 1.0, 1.0], [1.1, 1.0, 1.1], "not shown"),  # one seed is a tie
        ([1.0, 1.0, 1.0], [1.1, 0.9, 1.1], "not shown"),  # signs differ
        ([1.0, 1.0, 1.0], [1.01, 1.5, 1.02], "not shown"),  # 0.01, 0.5, 0.02: mean 0.177, two standard errors 0.324
    ],
)
def test_verdicts_by_hand(ours: list[float], theirs: list[float], verdict: str) -> None:
    found, differences = compared(claim(), {"a": ours, "b": theirs})
    assert found == verdict == differences["b"]["verdict"]
    assert compared(claim(greater=True), {"a": theirs, "b": ours})[0] == verdict


def test_it_holds_only_over_every_arm_that_it_names() -> None:
    of = claim(than=["b", "c"], arms={"a": {}, "b": {}, "c": {}})
    found, differences = compared(of, {"a": [1.0, 1.1, 0.9], "b": [2.0, 2.2, 1.9], "c": [1.0, 1.1, 0.9]})
    assert found == "not shown" and differences["b"]["mean"] == pytest.approx(1.0333, abs=1e-4)
    assert differences["b"]["standard_error"] == pytest.approx(0.0333, abs=1e-4)


def test_further_arms_that_should_be_better_count_as_much() -> None:
    of = claim(also={"c": ["d"]}, arms={"a": {}, "b": {}, "c": {}, "d": {}})
    good = {"a": [1.0, 1.1, 0.9], "b": [2.0, 2.2, 1.9], "c": [1.0, 1.1, 0.9], "d": [2.0, 2.2, 1.9]}
    found, differences = compared(of, good)
    assert found == "holds" and [(one["arm"], other) for other, one in differences.items()] == [("a", "b"), ("c", "d")]
    found, differences = compared(of, {**good, "c": [2.0, 2.2, 1.9], "d": [1.0, 1.1, 0.9]})
    assert found == "not shown" and differences["d"]["verdict"] == "reversed"
    for also, told in (({"c": ["e"]}, "arms: one called e"), ({"c": ["b"]}, "nothing else is compared with")):
        with pytest.raises(ValidationError, match=told):
            claim(also=also, arms={"a": {}, "b": {}, "c": {}})


def test_arms_that_are_not_there_and_two_grids_are_refused() -> None:
    with pytest.raises(ValidationError, match="arms: one called c"):
        claim(than=["c"])
    with pytest.raises(ValidationError, match="grid: one path"):
        claim(grid={"seed": [1], "train.0.steps": [2]})


def test_a_metric_is_a_path_in_the_summary() -> None:
    assert value_of({"student": {"kl": 0.5}}, "student.kl") == 0.5
    with pytest.raises(Refused, match="nothing called top1"):
        value_of({"student": {"kl": 0.5}}, "student.top1")


def test_a_claim_is_measured_over_arms_grid_and_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = toy(tmp_path, {"steps": 2}, evaluate=["agreement"])
    plain["claim"] = {
        "expects": "a larger rate moves further",
        "arm": "two",
        "than": ["one"],
        "arms": {"one": {"train.0.steps": 1}, "two": {}, "again": {"evaluate": ["agreement", "perplexity"]}},
        "prepare": {"first": toy(tmp_path, {"steps": 1})},
        "setting": {"evaluate": ["agreement"]},
        "grid": {"train.0.optimiser.lr": [1e-3, 1e-2, 1e-4]},
        "told": ["student.top1"],
    }
    path = tmp_path / "small.yaml"
    path.write_text(json.dumps(plain))
    words(tmp_path)
    before = STEPS[0]
    record = measure(str(path))
    assert STEPS[0] - before == 1 + 9 * 1 + 9 * 2  # what is prepared, and two arms: the third has nothing to train
    assert record["arms"]["again"] == record["arms"]["two"]
    assert set(record["arms"]) == {"one", "two", "again"}
    assert all(len(seeds) == 3 for arm in record["arms"].values() for seeds in arm.values())
    assert set(record["arms"]["one"]) == {"0.001", "0.01", "0.0001"}
    assert record["best"]["two"] == min(record["arms"]["two"], key=lambda rate: sum(record["arms"]["two"][rate]))
    assert record["found"] in ("holds", "not shown", "reversed") and record["identity"] == identity(str(path))
    best = [read_json(tmp_path / "runs" / f"claim-small-two-{record['best']['two']}-{seed}" / "summary.json") for seed in (0, 1, 2)]
    assert record["told"]["two"] == {"student.top1": [summary["student"]["top1"] for summary in best]} and set(record["told"]) == set(record["arms"])
    assert (tmp_path / "runs" / "claim-small-first" / "summary.json").is_file()
    every = [read_json(path) for path in sorted((tmp_path / "runs").glob("claim-small-*/summary.json"))]
    assert len(every) == 1 + 3 * 9 and record["minutes"] == round(sum(summary["wall_seconds"] for summary in every) / 60, 1)
    assert record["cpu_minutes"] == round(sum(summary["cpu_seconds"] for summary in every) / 60, 1)
    plain["claim"]["setting"] = {"evaluate": ["agreement"], "train.0.batch": 1}
    path.write_text(json.dumps(plain))
    assert identity(str(path)) != record["identity"]


def test_a_recipe_without_a_claim_is_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quickstart"]) == 2 and "a recipe with a claim" in capsys.readouterr().err


@pytest.mark.parametrize("name", CLAIMING)
def test_every_arm_of_a_claim_is_a_recipe(name: str) -> None:
    claim = claim_of(name)
    for arm in claim.arms:
        assert load(name, changes(claim, arm, next(iter(claim.grid.values()))[0], 0)).claim is None
    for plain in claim.prepare.values():
        load(plain)


@pytest.mark.parametrize("name", MEASURED)
def test_a_record_speaks_of_the_recipe_as_it_is(name: str) -> None:
    record = record_of(name)
    assert record is not None and record["identity"] == identity(name), f"{name} has changed since it was measured: make claims NAME={name}"


def test_arms_that_a_claim_ranks_are_told_by_their_mean_ranks_with_the_tests_of_both() -> None:
    found = ranked({"a": [0.9, 0.8, 0.9], "b": [0.5, 0.6, 0.4], "c": [0.7, 0.7, 0.6]}, True)
    assert found["mean"] == {"a": 1.0, "b": 3.0, "c": 2.0} and found["statistic"] == pytest.approx(6.0)  # k = 3, N = 3, one order: N (k - 1)
    assert found["p_value"] == pytest.approx(0.049787, abs=1e-6) and found["apart"] == [["a", "b"]] and json.dumps(found)
