"""A search in a recipe: it chooses within limits, its parts keep what they learned, and it is made once."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

import limbeck
from limbeck.block.narrow_mlp import NarrowMlp
from limbeck.block.no_mixer import NoMixer
from limbeck.block.no_mlp import NoMlp
from limbeck.block.self_value import SelfValue
from limbeck.check.models import fresh, rows
from limbeck.check.surgery import score_of
from limbeck.errors import Refused
from limbeck.model.text import Text
from limbeck.planning.steps import BACKWARD
from limbeck.search.document import Search
from limbeck.signals import Row
from toy import toy

TEXT = "A student that is smaller than its teacher. " * 40


def found(search: Search, seed: int = 0) -> tuple[Text, Any]:
    whole = fresh()
    some: list[Row] = list(rows().train)
    return whole, search.run(whole, rows(), some[:4], score_of(whole), seed, lambda done, total, text: None)


def test_what_is_chosen_meets_its_share_and_has_the_weights_that_its_parts_learned() -> None:
    whole, outcome = found(Search(mixers=(NoMixer(),), mlps=(NarrowMlp(inner=0.25),), steps=2, batch=4, shares={"parameters": 0.8}))
    student = outcome.surgery(fresh())
    num = sum(p.numel() for p in student.module.parameters())
    assert num <= 0.8 * sum(p.numel() for p in whole.module.parameters()) and num == outcome.about["costs"]["parameters"]["chosen"]
    begun = {name: p.clone() for name, p in student.module.named_parameters()}
    student.module.load_state_dict(outcome.state)
    learned = [name for name, p in student.module.named_parameters() if not torch.equal(p, begun[name])]
    assert learned and all(".mlp." in name or ".self_attn." in name for name in learned)
    assert abs(outcome.about["score"] - score_of(whole)(student)) < 1e-6  # measured put together, with what its parts learned


def test_the_same_search_finds_the_same_to_the_last_bit() -> None:
    how = Search(mlps=(NarrowMlp(inner=0.5),), steps=2, batch=4, shares={"parameters": 0.9})
    (_, one), (_, two) = found(how), found(how)
    assert one.surgery == two.surgery and all(torch.equal(x, two.state[name]) for name, x in one.state.items())


def test_another_seed_draws_other_variants_and_the_surgery_that_is_written_has_it() -> None:
    how = {"mixers": ({"kind": "gated_delta_net"},), "limits": {"parameters": 1e9}}
    one, two = (found(Search.model_validate({**how, "seed": seed}))[1] for seed in (0, 1))
    assert (one.surgery.seed, two.surgery.seed) == (0, 1)
    scores = [[row["gated_delta_net"] for row in outcome.about["measured"] if "gated_delta_net" in row] for outcome in (one, two)]
    assert len(scores[0]) == 4 and all(a != b for a, b in zip(*scores, strict=True))


def test_a_limit_that_no_choice_meets_is_named() -> None:
    with pytest.raises(Refused, match="parameters at most 10") as error:
        found(Search(mlps=(NarrowMlp(inner=0.5),), limits={"parameters": 10.0}))
    assert "parameters at least" in error.value.got


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"limits": {"parameters": 10}}, "at least one variant"),
        ({"mlps": ["narrow_mlp"]}, "at least one"),
        ({"mlps": ["narrow_mlp"], "shares": {"throughput": 0.5}}, "in tokens a second"),
        ({"mlps": ["narrow_mlp"], "limits": {"secnds": 1.0}}, "not secnds"),
    ],
    ids=["no variants", "no limit", "share of throughput", "misspelt"],
)
def test_what_cannot_be_searched_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Search.model_validate(fields)


def test_a_run_searches_once_and_trains_what_was_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMBECK_HOME", str(tmp_path / "home"))
    (tmp_path / "text.txt").write_text(TEXT)
    model = f"config:{Path(limbeck.__file__).parent / 'recipes/models/tiny_llama.json'}"
    recipe = {
        "data": [{"kind": "text", "path": str(tmp_path / "text.txt"), "split": 0.0}, {"kind": "pack", "length": 32, "shortest": 8}],
        "teacher": model,
        "search": {"mlps": [{"kind": "narrow_mlp", "inner": 0.5}], "shares": {"parameters": 0.85}},
        "train": [{"objective": ["forward_kl"], "steps": 2, "batch": 2}],
        "threads": 1,
    }
    done = limbeck.run(recipe, name="searched", runs=tmp_path)
    about = json.loads((done.path / "search" / "about.json").read_text())
    assert about["costs"]["parameters"]["chosen"] <= 0.85 * about["costs"]["parameters"]["whole"]
    assert len(about["chosen"]) == 8  # mixers and MLPs of four blocks
    (done.path / "summary.json").unlink()  # as if it had been stopped at the end
    monkeypatch.setattr(Search, "run", None)  # a second search would fail
    assert limbeck.resume(done.path).finished


def test_where_nothing_has_to_change_the_student_begins_as_the_whole_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMBECK_HOME", str(tmp_path / "home"))
    how = {"search": {"mlps": ["narrow_mlp"], "shares": {"parameters": 1.0}}, "student": None, "export": ["safetensors"]}
    done = limbeck.run(toy(tmp_path, **how), name="whole", runs=tmp_path)
    assert set(json.loads((done.path / "search" / "about.json").read_text())["chosen"]) == {"attention", "mlp"}
    assert type(done.load()).__name__ == "LlamaForCausalLM"


def test_a_search_that_is_stopped_keeps_nothing() -> None:
    whole, asked = fresh(), iter([False, False, True])
    how = Search(mlps=(NarrowMlp(inner=0.5),), steps=1, batch=4, shares={"parameters": 0.9})
    assert how.run(whole, rows(), rows().train[:4], score_of(whole), 0, lambda done, total, text: None, lambda: next(asked)) is None


def test_a_plan_refuses_what_the_search_could_not_find(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMBECK_HOME", str(tmp_path / "home"))
    recipe = toy(tmp_path, search={"mlps": ["narrow_mlp"], "limits": {"parameters": 10.0}}, student=None)
    with pytest.raises(Refused, match="parameters at most 10"):
        limbeck.plan(recipe, probe=False)
    told = limbeck.plan({**recipe, "search": {"mlps": ["narrow_mlp"], "shares": {"parameters": 0.9}}}, probe=False)
    assert "search: 4 parts learn for 0 steps, then 6 models are measured" in told.notes


def test_a_plan_prices_a_search_by_what_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMBECK_HOME", str(tmp_path / "home"))

    def line(**changes: Any) -> Any:
        how = {"mixers": ["self_value"], "mlps": ["no_mlp", "narrow_mlp"], "shares": {"parameters": 0.9}, **changes}
        recipe = toy(tmp_path, {"batch": 2}, search=how, student=None, baseline=[])
        found = limbeck.plan(recipe, probe=False)
        (one,) = [line for line in found.steps if line.step == "search"]
        assert found.seconds == pytest.approx(sum(line.seconds for line in found.steps)) and one.what in str(found)
        teacher = next(line for line in found.steps if line.step == "teacher")
        return one, teacher.seconds / (4 * 2 * 40)  # the teacher is the whole model, and is heard at 4 steps of 2 rows of 40

    apart, a_position = line(steps=3, batch=8)
    # 3 steps of 8 rows of 40; then the whole, 3 variants of 4 blocks and what is chosen, each on 16 rows, and the teacher on them
    learned, measured = 3 * 8 * 40, (1 + 3 * 4 + 1) * 16 * 40
    assert apart.what == f"3 x 4 variants, {learned + measured:,} tokens"
    assert apart.seconds == pytest.approx((learned * (1 + 3 * BACKWARD) + measured + 16 * 40) * a_position)
    # pairs: 2 mixers times 3 MLPs, but for what is there
    pairs, _ = line(steps=0, apart=False)
    assert pairs.what == f"3 x 4 variants, {(1 + 5 * 4 + 1) * 16 * 40:,} tokens" and pairs.memory_bytes < apart.memory_bytes
    assert line(steps=30, batch=8)[0].seconds > apart.seconds


def test_a_run_calls_the_whole_model_and_its_variants_as_often_as_is_priced(monkeypatch: pytest.MonkeyPatch) -> None:
    passes = {"forth": 0, "learning": 0}
    body = Text.body

    def counted(self: Text, **inputs: Any) -> Any:
        passes["learning" if torch.is_grad_enabled() else "forth"] += 1
        return body(self, **inputs)

    how = Search(mixers=(SelfValue(),), mlps=(NoMlp(), NarrowMlp(inner=0.5)), steps=3, batch=4, shares={"parameters": 0.9})
    whole = fresh()
    monkeypatch.setattr(Text, "body", counted)
    how.run(whole, rows(), [], score_of(whole), 0, lambda done, total, text: None)
    # at each step the whole model once, and each variant forth and back; then the whole, 3 variants of 4 blocks and what is chosen, and the teacher
    priced = {"forth": 3 + (1 + 3 * 4 + 1) + 1, "learning": 3 * 3}
    # besides, of a few rows: one dry run of a step, and the whole model once more before the first question
    assert passes == {**priced, "forth": priced["forth"] + (1 + 3) + 1}
