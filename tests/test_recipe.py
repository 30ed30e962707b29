"""Recipes: read from a file, a name or plain data, changed by path, ordered as a graph, and the same after a round trip."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from limbeck.component import canonical_json
from limbeck.errors import Refused
from limbeck.objective.cross_entropy import CrossEntropy
from limbeck.recipe import SHIPPED, Recipe, change, graph, load, text_only
from limbeck.text import document


def stage(name: str = "", **more: Any) -> dict[str, Any]:
    return {"objective": ["forward_kl"], "steps": 1, **({"name": name} if name else {}), **more}


def recipe(*stages: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"train": list(stages) or [stage()], **more}


def refused(source: Any, *changes: str, toy: bool = False) -> Refused:
    with pytest.raises(Refused) as caught:
        load(source, changes, toy)
    return caught.value


def order(source: dict[str, Any]) -> list[tuple[str, tuple[str, ...]]]:
    return [(node.name, node.after) for node in graph(load(source))]


# the graph


def test_stages_follow_each_other_and_the_first_starts_from_the_student() -> None:
    assert order(recipe(stage(), stage("second"), stage())) == [("stage-0", ("student",)), ("second", ("stage-0",)), ("stage-2", ("second",))]


def test_a_stage_may_start_from_any_other_and_comes_after_it() -> None:
    found = order(recipe(stage("last", start="first"), stage("first", start="student"), stage("side", start="student")))
    assert found == [("first", ("student",)), ("last", ("first",)), ("side", ("student",))]


def test_a_stage_after_a_branch_follows_the_one_written_before_it() -> None:
    assert order(recipe(stage("a"), stage("b", start="student"), stage("c")))[2] == ("c", ("b",))


def test_a_repeated_stage_is_a_chain_of_its_own_that_ends_in_its_name() -> None:
    found = order(recipe(stage("warm"), stage("turn", repeat=3), stage("end")))
    assert found == [("warm", ("student",)), ("turn.0", ("warm",)), ("turn.1", ("turn.0",)), ("turn", ("turn.1",)), ("end", ("turn",))]
    assert order(recipe(stage("a", start="b", repeat=2), stage("b", start="student"))) == [("b", ("student",)), ("a.0", ("b",)), ("a", ("a.0",))]


def test_a_merge_comes_after_what_it_merges_and_a_stage_may_start_from_it() -> None:
    found = order(
        recipe(stage("a"), stage("b", start="student"), stage("c", start="soup"), merge=[{"kind": "average", "name": "soup", "of": ["a", "b"]}])
    )
    assert found == [("a", ("student",)), ("b", ("student",)), ("soup", ("a", "b")), ("c", ("soup",))]


@pytest.mark.parametrize(
    "source, message",
    [
        (recipe(stage("a", start="b"), stage("b", start="a")), "a cycle: a -> b -> a"),
        (recipe(stage("a", start="a")), "a cycle: a -> a"),
        (recipe(stage("a", start="soup"), merge=[{"kind": "average", "name": "soup", "of": ["a"]}]), "a cycle: a -> soup -> a"),
        (recipe(stage("a"), stage("a")), "train.1: the name a is taken"),
        (recipe(stage("student")), "train.0: the name student is taken"),
        (recipe(stage("stage-1"), stage()), "train.1: the name stage-1 is taken"),
        (recipe(stage("a"), merge=[{"kind": "average", "name": "a", "of": ["a"]}]), "merge.0: the name a is taken"),
        (recipe(stage("first"), stage(start="frist")), "train.1: nothing is called frist; first is known"),
        (recipe(stage("a"), merge=[{"kind": "average", "name": "m", "of": ["a", "bee"]}]), "merge.0: nothing is called bee"),
        (recipe(stage("first"), result="fisrt"), "result: nothing is called fisrt; first is known"),
    ],
)
def test_cycles_and_names_that_are_unknown_or_taken_are_refused_with_their_place(source: dict[str, Any], message: str) -> None:
    error = refused(source)
    assert error.slug == "value" and message in error.expected


@pytest.mark.parametrize("more", [{"repeat": 0}, {"repeat": 10**9}, {"steps": 0}, {"batch": 0}, {"micro": 0}, {"every": 0}, {"objective": []}])
def test_numbers_that_make_no_sense_are_refused(more: dict[str, Any]) -> None:
    assert refused(recipe(stage(**more))).code == 2


def test_a_recipe_without_stages_is_refused() -> None:
    assert "train" in refused({"train": []}).where and refused({}).got == "nothing"


# reading


def test_a_single_turn_may_be_written_in_its_stage_or_as_a_list_of_one() -> None:
    turn = {"objective": ["forward_kl"], "micro": 2, "freeze": ["*.norm.weight"]}
    assert load(recipe({"steps": 3, **turn})) == load(recipe({"steps": 3, "turn": [turn]}))


def test_data_beside_a_turn_is_that_of_the_stage() -> None:
    pack = {"kind": "pack", "length": 8}
    (stage,) = load(recipe({"steps": 3, "objective": ["forward_kl"], "data": [pack]})).train
    assert stage.data is not None and len(stage.data) == 1 and stage.turn[0].data == ()


@pytest.mark.parametrize("name", ["../x", "a/b", "/etc", "..", "", "a b", "x\n"])
def test_a_name_that_could_lead_out_of_the_run_is_refused(name: str) -> None:
    stage = {"objective": ["forward_kl"], "steps": 1, "name": name}
    if name:
        assert "name" in refused({"train": [stage]}).where
    merge = [{"kind": "average", "of": ["a"], "name": name}]
    assert "name" in refused({"train": [{**stage, "name": "a"}], "merge": merge}).where


@pytest.mark.parametrize(
    "more, word",
    [
        ({"student": {"start": "student"}}, "itself"),
        ({"role": {"student": {"start": "teacher"}}}, "key of its own"),
        ({"export": ["safetensors", {"kind": "safetensors", "dtype": "bfloat16"}]}, "one exporter"),
    ],
)
def test_what_would_be_ignored_or_overwritten_is_refused(more: dict, word: str) -> None:
    assert word in str(refused({"train": [{"objective": ["forward_kl"], "steps": 1}], **more}))


@pytest.mark.parametrize("weights", [(1.0,), (1.0, -1.0), (1.0, 1.0, 1.0)])
def test_weights_of_a_merge_are_one_for_each_and_not_zero_in_all(weights: tuple[float, ...]) -> None:
    stages = [{"objective": ["forward_kl"], "steps": 1, "name": name, "start": "student"} for name in "ab"]
    assert "weights" in str(refused({"train": stages, "merge": [{"kind": "average", "of": ["a", "b"], "weights": weights}]}))


def test_a_reference_as_teacher_is_run_live_and_a_kind_stays_a_kind() -> None:
    assert load(recipe(teacher="package:some_model")) == load(recipe(teacher={"kind": "live", "model": "package:some_model"}))
    assert "a value for model" in refused(recipe(teacher="live")).expected
    assert load(recipe(teacher={"kind": "cached", "model": "path:x"})).teacher.kind == "cached"  # type: ignore[union-attr]


def test_a_path_as_teacher_is_a_folder() -> None:
    assert load(recipe(teacher="./models/big")).teacher.references == ("path:./models/big",)  # type: ignore[union-attr]
    assert load(recipe(teacher="/models/big")).teacher.references == ("path:/models/big",)  # type: ignore[union-attr]
    with pytest.raises(Refused, match="a kind of teacher"):
        load(recipe(teacher="livve"))


def test_a_path_with_a_dot_on_the_command_line_starts_where_it_is_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "there")
    words = ["teacher=./big", "data=[{kind: text, path: ../books/*.txt}, {kind: text, path: books/*.txt}]", "student.start=path:./small"]
    made = load(recipe(), words)
    assert [step.path for step in made.data] == [f"{tmp_path}/books/*.txt", "books/*.txt"]  # type: ignore[attr-defined]
    assert made.student.start == f"path:{tmp_path}/there/small" and made.teacher.references == (f"path:{tmp_path}/there/big",)  # type: ignore[union-attr]
    inside = recipe(data=[{"kind": "text", "path": "./books/*.txt"}])
    assert load(inside).data[0].path == "./books/*.txt"  # type: ignore[attr-defined]  # in a file it starts at the file


def test_one_part_may_stand_for_a_list_of_one() -> None:
    one = load(recipe(export="safetensors", evaluate="perplexity", baseline="text_only", data={"kind": "pack", "length": 8}))
    assert one == load(recipe(export=["safetensors"], evaluate=["perplexity"], baseline=["text_only"], data=[{"kind": "pack", "length": 8}]))


def test_a_file_a_path_and_plain_data_give_the_same_recipe(tmp_path: Path) -> None:
    plain = recipe(stage("a", optimiser={"lr": 1e-4}), about="x: y")
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(plain))
    assert load(str(tmp_path / "r.yaml")) == load(tmp_path / "r.yaml") == load(plain) == load(load(plain))


def test_errors_of_a_file_name_it_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("about: x\ntrain:\n  - objective: [forward_kl]\n    stesp: 3\n")
    error = refused(tmp_path / "r.yaml")
    assert (error.where, error.do) == ("r.yaml:4  train.0.stesp", "write steps")


@pytest.mark.parametrize("content, got", [(b"- a\n- b\n", "list"), (b"just words", "str"), (b"", "NoneType"), (b"\xff\xfe", "byte 0 is none")])
def test_what_is_no_mapping_or_no_text_is_refused(content: bytes, got: str, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_bytes(content)
    assert refused(tmp_path / "r.yaml").got == got


@pytest.mark.parametrize("name", ["quikstart", "no/such/file.yaml", "", "a\0b", "x" * 5000, "..", "/"])
def test_a_name_that_is_no_recipe_is_refused_with_the_nearest(name: str) -> None:
    error = refused(name)
    assert error.slug == "recipe" and ("quickstart" in error.do)


def test_every_shipped_recipe_is_read_also_as_a_toy_and_survives_a_round_trip() -> None:
    for path in SHIPPED.glob("*.yaml"):
        for toy in (False, True):
            made = load(path.stem, toy=toy)
            again = load(document.load(yaml.safe_dump(made.model_dump(mode="json")))[0])
            assert again == made and canonical_json(again) == canonical_json(made), path.name


def test_a_recipe_with_every_kind_of_part_survives_a_round_trip() -> None:
    made = load(
        recipe(
            stage(
                "a",
                objective=[{"kind": "skew_kl", "alpha": {"kind": "linear", "end": 0.5}}, {"kind": "hidden_mse", "layers": "all"}, "relations"],
                align=[{"kind": "layer_map", "map": "explicit", "pairs": [[1, 2]]}, "shared_vocab"],
                forward="layerwise",
                optimiser={"lr": 1e-5, "groups": [{"match": ["*"], "rate": 2}]},
                select={"metric": "kl"},
                surgery=[{"kind": "drop_blocks", "keep": [0, 1]}],
            ),
            {
                "name": "b",
                "steps": "auto",
                "teacher": {"kind": "live", "model": "path:x"},
                "turn": [{"objective": ["forward_kl"]}, {"objective": ["cross_entropy"], "every": 2}],
            },
            role={"co-teacher": {"start": "student"}},
            merge=[{"kind": "average", "name": "m", "of": ["a", "b"]}],
            seed=3,
            minutes=0.5,
        )
    )
    again = load(document.load(yaml.safe_dump(made.model_dump(mode="json")))[0])
    assert again == made and again.train[0].turn[0].objective[0].alpha.end == 0.5  # type: ignore[attr-defined]


# changes


def test_changes_go_by_dotted_path_through_the_loader_of_values() -> None:
    source = recipe(stage("a", optimiser={"lr": 1e-3}))
    made = load(
        source, ["seed=7", "train.0.optimiser.lr=1e-4", "train.0.batch=16", "train.-1.steps=5", "about=yes", "teacher=path:a=b", "device=cpu"]
    )
    assert (made.seed, made.train[0].turn[0].optimiser.lr, made.train[0].turn[0].batch, made.train[0].steps) == (7, 1e-4, 16, 5)
    assert (made.about, made.device, made.teacher.references) == ("yes", "cpu", ("path:a=b",))  # type: ignore[union-attr]


def test_null_removes_and_a_list_can_be_written_whole() -> None:
    made = load(recipe(minutes=3, seed=4), ["minutes=null", "seed=", "train.0.objective=[cross_entropy, {kind: jsd, share: 0.2}]"])
    assert made.minutes is None and made.seed == 0
    assert [o.kind for o in made.train[0].turn[0].objective] == ["cross_entropy", "jsd"]  # type: ignore[attr-defined]


def test_changes_leave_what_was_handed_in_as_it_was() -> None:
    source = recipe(stage("a"), toy={"train.0.steps": 2})
    before = copy.deepcopy(source)
    assert load(source, ["train.0.steps=9", "role.critic.start=student"]).train[0].steps == 9 and load(source, toy=True).train[0].steps == 2
    assert source == before


@pytest.mark.parametrize(
    "word",
    [
        "seed",
        "train.9.steps=1",
        "train.x.steps=1",
        "train.--1.steps=1",
        "train.0.objective.-9=jsd",
        "train.²=1",
        "train.1=x",
        "train.0.steps.a.b=1",
        "train.-2=x",
        "train.99999999999999999999=1",
    ],
)
def test_a_change_that_has_no_place_is_refused(word: str) -> None:
    error = refused(recipe(), word)
    assert error.slug == "key" and error.where.startswith("command line  ")


@pytest.mark.parametrize("word, do", [("trian.0.steps=1", "write train"), ("=1", ""), ("sed=1", "write seed"), ("train.0.bacth=1", "write batch")])
def test_a_misspelt_change_is_answered_like_a_misspelt_key(word: str, do: str) -> None:
    assert refused(recipe(), word).do.startswith(do)


def test_a_bad_value_of_a_change_is_not_blamed_on_a_line_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("train:\n  - objective: [forward_kl]\n    steps: 3\n")
    error = refused(tmp_path / "r.yaml", "train.0.batch=-1")
    assert error.got == "batch: -1" and error.where in ("r.yaml  train.0.batch", "command line  train.0.batch")
    assert refused(tmp_path / "r.yaml", "train.0.steps=[").where == "command line:1"


def test_a_toy_is_the_same_recipe_with_its_changes_and_changes_of_the_command_line_come_last() -> None:
    source = recipe(stage("a", steps=100), toy={"train.0.steps": 2, "minutes": None, "train.0.batch": 1}, minutes=5)
    assert load(source).train[0].steps == 100 and load(source).minutes == 5
    toy = load(source, toy=True)
    assert (toy.train[0].steps, toy.minutes, toy.train[0].turn[0].batch) == (2, None, 1)
    assert load(source, ["train.0.steps=7"], toy=True).train[0].steps == 7


def test_what_is_wrong_of_a_whole_recipe_is_told_with_what_stands_in_its_place() -> None:
    error = refused(recipe(stage("a"), merge=[{"kind": "average", "name": "m", "of": ["a", "bee"]}]))
    assert error.got.startswith("merge.0: {") and "bee" in error.got and error.do == "change merge.0"
    error = refused(recipe(stage("first"), result="fisrt"))
    assert (error.got, error.do) == ("result: fisrt", "change result")


def test_a_toy_says_that_it_is_one_and_is_the_same_run_whatever_it_says() -> None:
    source = recipe(stage("a", steps=100), toy={"train.0.steps": 2}, about="A large model, halved.")
    toy = load(source, toy=True)
    assert toy.about == "As a toy, with other models and sizes, in seconds: A large model, halved." and load(source).about == "A large model, halved."
    assert "about" in type(toy).cosmetic


def test_a_toy_with_a_change_that_has_no_place_is_refused_as_the_toys() -> None:
    assert refused(recipe(toy={"train.3.steps": 2}), toy=True).where == "toy  train.3.steps"
    assert load(recipe(toy={"train.3.steps": 2})).train[0].steps == 1


def test_change_makes_mappings_on_its_way_and_no_lists() -> None:
    plain: dict[str, Any] = {}
    change(plain, "a.b.0", 1)
    assert plain == {"a": {"b": {"0": 1}}}


# the baseline


def test_text_only_differs_in_the_objective_alone() -> None:
    made = load(
        recipe(
            stage(
                "a",
                objective=["forward_kl", "hidden_mse"],
                align=["layer_map"],
                forward="layerwise",
                through=["teacher"],
                batch=3,
                micro=2,
                optimiser={"lr": 1e-4},
                freeze=["*norm*"],
                only=["*"],
            ),
            stage("b", teacher={"kind": "live", "model": "path:y"}),
            teacher="path:x",
            baseline=["text_only"],
            data=[{"kind": "pack", "length": 8}],
            student={"start": "path:s"},
        )
    )
    alone = text_only(made)
    assert alone.teacher is None and alone.baseline == () and all(s.teacher is None for s in alone.train)
    assert [t.objective for s in alone.train for t in s.turn] == [(CrossEntropy(),)] * 2
    assert all(t.align == () and t.through == () and t.forward.kind == "paired" for s in alone.train for t in s.turn)  # type: ignore[attr-defined]
    assert (alone.data, alone.student, alone.seed) == (made.data, made.student, made.seed)
    for before, after in zip(made.train, alone.train, strict=True):
        assert all(getattr(before, name) == getattr(after, name) for name in ("steps", "name", "start", "surgery", "checkpoint"))
        for own, its in zip(before.turn, after.turn, strict=True):
            assert all(
                getattr(own, name) == getattr(its, name) for name in ("trains", "only", "freeze", "every", "data", "optimiser", "batch", "micro")
            )
    assert load(alone) == alone


def test_text_only_teaches_whom_the_turn_trains() -> None:
    made = load(
        recipe(stage(trains="critic", objective=[{"kind": "forward_kl", "seats": {"student": "critic"}}]), role={"critic": {"start": "student"}})
    )
    assert text_only(made).train[0].turn[0].objective[0].role("student") == "critic"


def test_fields_that_change_nothing_are_fields() -> None:
    assert set(Recipe.model_fields) >= Recipe.cosmetic
