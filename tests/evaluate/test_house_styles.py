"""Two teachers of unlike house styles: a student is more like the one that taught it, and one that neither taught prefers neither."""

import json
from typing import Any

import pytest

from limbeck.claims import changes
from limbeck.recipe import find, load
from limbeck.start import run
from toy import at_home

__all__ = ["at_home"]
MEASURES = ("rouge_l", "ngram_jaccard", "first_token", "js_divergence")


@pytest.mark.slow
def test_a_student_is_more_like_its_teacher_than_like_another_one_and_an_undistilled_one_prefers_neither() -> None:
    claim = load("quantify").claim
    assert claim is not None
    for name, plain in claim.prepare.items():
        run(plain, name=f"claim-quantify-{name}", base=find("quantify").parent)
    for seed in (0, 1, 2):
        found: dict[str, dict[str, dict[str, Any]]] = {}
        for arm in claim.arms:
            done = run("quantify", *changes(claim, arm, 3e-3, seed), name=f"{arm}-{seed}")
            found[arm] = {x["name"]: x["student"] for x in done.summary["similarity"]["preference"]}
        for measure in MEASURES:
            first, second, neither = (found[arm][measure] for arm in ("first", "second", "neither"))
            assert first["low"] > 0 > second["high"], f"seed {seed}: {measure} {json.dumps(found)}"
            if measure != "js_divergence":  # an untaught model gives the words of both some probability, and not the same
                assert neither["low"] <= 0 <= neither["high"], f"seed {seed}: {measure} {json.dumps(found)}"
