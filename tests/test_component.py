"""Components: declared once, found by name, refused with place and hint, and spelled one way for cache keys."""

import json
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pytest
from pydantic import Field, ValidationError

from limbeck.component import LOADED, SWITCHED_OFF, Component, Document, canonical, canonical_json, find, members, schema, short, validate
from limbeck.errors import Failed, Refused
from limbeck.objective.base import Objective
from limbeck.objective.forward_kl import ForwardKL
from limbeck.objective.skew_kl import SkewKL
from limbeck.recipe import Recipe, load
from limbeck.schedule.base import Schedule
from limbeck.schedule.linear import Linear
from limbeck.text import document
from limbeck.train.stage import Stage

RECIPE = """\
about: a test
teacher: package:some_model
train:
  - name: main
    steps: 3
    objective:
      - forward_kl
      - kind: skew_kl
        wieght: 2
"""


def refusal(text: str) -> Refused:
    """What is said about a recipe of this text."""
    plain, lines = document.load(text, "x.yaml")
    with pytest.raises(Refused) as caught:
        validate(Recipe, plain, "x.yaml", lines)
    return caught.value


@pytest.fixture
def own_kinds() -> Iterator[None]:
    """Forgets classes that a test declares."""
    before, off = dict(LOADED), set(SWITCHED_OFF)
    yield
    LOADED.clear()
    LOADED.update(before)
    SWITCHED_OFF.clear()
    SWITCHED_OFF.update(off)


def test_an_error_is_four_lines_and_keeps_its_fields_in_json_and_through_pickle() -> None:
    error = Refused("key", "x.yaml:3", "a", "b", "c")
    assert str(error).splitlines() == ["error[key]  x.yaml:3", "  expected  a", "  got       b", "  do        c"]
    assert error.as_json() == {"error": {"slug": "key", "where": "x.yaml:3", "expected": "a", "got": "b", "do": "c"}}
    make, given = Failed("nan", "x", "a", "b", "c", code=5).__reduce__()
    assert make(*given).code == 5 and (Refused("x", "", "", "", "").code, Failed("x", "", "", "", "").code) == (2, 4)


def test_an_error_with_another_errors_code_is_a_mistake_of_the_library() -> None:
    with pytest.raises(AssertionError, match="exits with one of"):
        Refused("x", "", "", "", "", code=4)


def test_a_final_class_cannot_be_subclassed() -> None:
    with pytest.raises(TypeError, match="SkewKL is final; wrap it"):
        type("Skewer", (SkewKL,), {"__module__": __name__})


def test_a_kind_can_be_taken_once(own_kinds: None) -> None:
    def declare(name: str) -> type:
        return type(
            name,
            (Schedule,),
            {
                "__module__": "mylab.a",
                "__qualname__": name,
                "__annotations__": {"kind": Literal["linear"]},
                "kind": "linear",
                "value": lambda self, step: 0.0,
            },
        )

    assert find(Schedule, "linear") is Linear  # type: ignore[type-abstract]
    with pytest.raises(TypeError, match="kind 'linear' of schedule is taken by limbeck.schedule.linear"):
        declare("Straight")


@pytest.mark.parametrize("kind", ["SkewKL", "skew-kl", "", "a:b:c", "9lives", None])
def test_a_kind_is_written_in_snake_case(kind: Any, own_kinds: None) -> None:
    with pytest.raises(TypeError, match="snake case"):
        type("Odd", (Schedule,), {"__module__": __name__, "__annotations__": {"kind": Any}, "kind": kind, "value": lambda self, step: 0.0})


def test_a_misspelt_kind_is_answered_with_the_nearest_one_and_its_line() -> None:
    error = refusal(RECIPE.replace("- forward_kl", "- forwrd_kl").replace("wieght", "weight"))
    assert (error.slug, error.where) == ("kind", "x.yaml:7  train.0.objective.0")
    assert (error.expected, error.got, error.do) == ("a kind of objective", "forwrd_kl", "write forward_kl")


def test_a_kind_unlike_any_other_is_answered_with_the_list() -> None:
    error = refusal(RECIPE.replace("- forward_kl", "- {kind: zzz}").replace("wieght", "weight"))
    assert "one of" in error.expected and "skew_kl" in error.expected and error.do == "limbeck list objective"


@pytest.mark.parametrize("got", ["[1, 2]", "3", "{weight: 2}", "~"])
def test_what_names_no_kind_is_refused(got: str) -> None:
    error = refusal(RECIPE.replace("- forward_kl", f"- {got}").replace("wieght", "weight"))
    assert error.slug == "kind" and error.where == "x.yaml:7  train.0.objective.0"


def test_a_misspelt_key_is_answered_with_the_nearest_one_its_path_and_its_line() -> None:
    error = refusal(RECIPE)
    assert (error.slug, error.where, error.got, error.do) == ("key", "x.yaml:9  train.0.objective.1.wieght", "wieght: 2", "write weight")
    assert error.expected.startswith("a field of skew_kl: ") and "alpha" in error.expected


def test_a_misspelt_key_of_a_turn_written_in_its_stage_has_the_path_that_was_written() -> None:
    error = refusal(RECIPE.replace("wieght", "weight").replace("steps: 3", "mirco: 3"))
    assert (error.where, error.do) == ("x.yaml:5  train.0.mirco", "write micro")
    assert "steps" in error.expected and "batch" in error.expected


@pytest.mark.parametrize("key", ["max-steps", "int", "tuple[int, ...]"])
def test_a_key_that_looks_like_a_branch_of_a_union_keeps_its_place(key: str) -> None:
    error = refusal(RECIPE.replace("wieght", "weight").replace("about: a test", f'"{key}": 1'))
    assert (error.slug, error.where, error.got) == ("key", f"x.yaml:1  {key}", f"{key}: 1")


def test_a_role_named_with_a_hyphen_stands_in_the_path() -> None:
    error = refusal(RECIPE.replace("wieght", "weight").replace("about: a test", "role: {co-teacher: {strat: x}}"))
    assert (error.where, error.do) == ("x.yaml:1  role.co-teacher.strat", "write start")


def test_a_value_out_of_bounds_is_named_with_its_path() -> None:
    error = refusal(RECIPE.replace("wieght: 2", "weight: -2"))
    assert (error.slug, error.where, error.got) == ("value", "x.yaml:9  train.0.objective.1.weight", "weight: -2")
    assert error.expected == "greater than or equal to 0"


@pytest.mark.parametrize("number", [".inf", ".nan", "1e999"])
def test_a_number_that_is_not_finite_is_refused_before_it_reaches_a_cache_key(number: str) -> None:
    assert "finite" in refusal(RECIPE.replace("wieght: 2", f"weight: {number}")).expected


def test_a_missing_value_is_named() -> None:
    error = refusal("teacher: live\n" + RECIPE.split("\n", 2)[2].replace("wieght", "weight"))
    assert (error.where, error.expected, error.got) == ("x.yaml:1  teacher.model", "a value for model", "nothing")


def test_components_are_frozen_and_take_no_unknown_field() -> None:
    objective = SkewKL()
    with pytest.raises(ValidationError, match="frozen"):
        objective.alpha = 0.5
    with pytest.raises(ValidationError, match="beta"):
        SkewKL(beta=1)  # type: ignore[call-arg]


def test_python_and_yaml_build_the_same_object() -> None:
    plain, _ = document.load("{kind: skew_kl, alpha: {kind: linear, start: 0.1, end: 0.9, steps: 4}}")
    assert find(Objective, "skew_kl").model_validate(plain) == SkewKL(alpha=Linear(start=0.1, end=0.9, steps=4))  # type: ignore[type-abstract]


def test_a_schedule_becomes_its_number_and_is_validated_before_and_after() -> None:
    moving = SkewKL(alpha=Linear(start=0.0, end=1.0, steps=4), weight=Linear(start=1.0, end=3.0, steps=2))
    assert (moving.at(1).alpha, moving.at(1).weight) == (0.25, 2.0)
    assert ForwardKL().at(3) == ForwardKL()
    with pytest.raises(ValidationError, match="less than or equal to 1"):
        SkewKL(alpha=Linear(start=0.0, end=2.0, steps=4))
    with pytest.raises(ValidationError, match="greater than or equal to 0"):
        moving.model_copy(update={"weight": Linear(start=1.0, end=-1.0, steps=2)}).at(2)  # not validated when it was made


def test_find_refuses_a_member_of_another_room() -> None:
    with pytest.raises(Exception, match="one of|cosine"):
        find(Schedule, "forward_kl")  # type: ignore[type-abstract]


@pytest.mark.parametrize("kind", ["base", "_private", "../recipe", "os", "objective.base", ""])
def test_a_kind_is_never_taken_for_a_module(kind: str) -> None:
    with pytest.raises(Exception, match="one of"):
        find(Objective, kind)  # type: ignore[type-abstract]


def test_members_are_described_without_importing_them() -> None:
    code = (
        "import sys; from limbeck.component import members; found = members('objective'); "
        "assert found['skew_kl'] == 'KL divergence from the teacher to a mixture of teacher and student.', found; "
        "assert 'base' not in found and not {'torch', 'limbeck.objective'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_member_has_a_class_of_the_same_name_and_a_sentence() -> None:
    for kind, sentence in members("objective").items():
        found = find(Objective, kind)  # type: ignore[type-abstract]
        assert found.__name__.lower() == kind.replace("_", "") and sentence.endswith("."), kind


# plugins


def distribution(folder: Path, name: str, module: str, source: str, point: str) -> None:
    """What pip leaves of a package: its module, and the file that says its entry points."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[limbeck]\n{point}\n")
    (folder / f"{module}.py").write_text(textwrap.dedent(source))


RANKED = """
    from typing import Literal
    from limbeck.numerics import kl
    from limbeck.objective.base import AbstractDivergence

    class RankedKL(AbstractDivergence):
        kind: Literal["mylab:ranked_kl"] = "mylab:ranked_kl"

        def divergence(self, log_p, log_q):
            return kl(log_p, log_q)
"""


@pytest.mark.parametrize("name", ["mylab", "MyLab"])
def test_a_kind_of_another_package_is_loaded_when_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_kinds: None) -> None:
    distribution(tmp_path, name, "mylab_losses", RANKED, "objective.ranked_kl = mylab_losses:RankedKL")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mylab_losses", raising=False)
    recipe = load({"train": [{"objective": [{"kind": "mylab:ranked_kl", "temperature": 2}], "steps": 1}]})
    objective = recipe.train[0].turn[0].objective[0]
    assert type(objective).__name__ == "RankedKL" and objective.temperature == 2  # type: ignore[attr-defined]
    with pytest.raises(Exception, match="one of"):
        find(Schedule, "mylab:ranked_kl")  # type: ignore[type-abstract]


def test_a_package_that_cannot_be_imported_is_switched_off_with_one_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_kinds: None) -> None:
    distribution(tmp_path, "broken", "broken_losses", "raise RuntimeError('no licence')", "objective.ranked_kl = broken_losses:RankedKL")
    monkeypatch.syspath_prepend(tmp_path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            with pytest.raises(Refused) as refused:
                load({"train": [{"objective": ["broken:ranked_kl"], "steps": 1}]})
    assert [str(w.message) for w in caught] == ["broken:ranked_kl is switched off: broken_losses:RankedKL cannot be imported (no licence)"]
    assert refused.value.slug == "kind" and refused.value.got == "broken:ranked_kl"


def test_a_package_cannot_speak_for_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_kinds: None) -> None:
    distribution(tmp_path, "otherlab", "other_losses", "raise RuntimeError('never imported')", "objective.ranked_kl = other_losses:RankedKL")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(Refused), warnings.catch_warnings():
        warnings.simplefilter("error")
        load({"train": [{"objective": ["mylab:ranked_kl"], "steps": 1}]})


# canonical form


class Part(Document):
    label: Annotated[str, Field(json_schema_extra={"cosmetic": True})] = "x"
    size: int = 1
    added: Annotated[int, Field(json_schema_extra={"since": 2})] = 7
    more: dict[str, Any] = Field(default_factory=dict)


class Revised(Schedule):
    revision: ClassVar[int] = 3

    def value(self, step: int) -> float:
        return 0.0


def test_cosmetic_fields_and_new_fields_at_their_default_stay_out_of_cache_keys() -> None:
    assert canonical(Part(label="other")) == {"size": 1, "more": {}}
    assert canonical(Part(added=8)) == {"size": 1, "added": 8, "more": {}}


def test_the_order_of_keys_does_not_change_the_canonical_form_and_the_order_of_lists_does() -> None:
    assert canonical_json(Part(more={"a": 1, "b": (2, None)})) == canonical_json(Part(more={"b": [2, None], "a": 1}))
    assert canonical_json([1, 2]) != canonical_json([2, 1])
    assert canonical_json({"é": True}) == '{"é":true}'


def test_the_revision_of_every_component_inside_is_part_of_the_canonical_form() -> None:
    assert canonical(Revised())["revision"] == 3
    assert canonical(SkewKL(alpha=Linear()))["alpha"] == {"revision": 1, "kind": "linear", "start": 0.0, "end": 1.0, "steps": 100}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_json_cannot_write_has_no_canonical_form(value: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        canonical_json({"a": value})


def test_what_is_no_plain_data_has_no_canonical_form() -> None:
    with pytest.raises(TypeError, match="set cannot be part of a recipe"):
        canonical({"a": {1, 2}})


def test_a_value_is_shown_on_one_short_line_of_plain_characters() -> None:
    assert short("a\n  b") == "a b" and short({"k": "\x1b[31m"}) == '{"k": "\\u001b[31m"}'
    assert len(short("x" * 1_000_000)) == 60 and short("x" * 1_000_000).endswith("...")


# schema


@pytest.fixture(scope="module")
def recipe_schema() -> dict[str, Any]:
    return schema(Recipe)


def references(item: Any) -> Iterator[str]:
    """Every reference in a schema, outside of defaults and examples."""
    if isinstance(item, dict):
        yield from (value for key, value in item.items() if key == "$ref")
        for key, value in item.items():
            if key != "default":
                yield from references(value)
    elif isinstance(item, list):
        for one in item:
            yield from references(one)


def test_every_reference_of_the_schema_leads_somewhere_and_each_kind_stands_once(recipe_schema: dict[str, Any]) -> None:
    defs = recipe_schema["$defs"]
    assert {ref.removeprefix("#/$defs/") for ref in references(recipe_schema)} <= set(defs)
    for room in ("objective", "schedule", "block", "data", "align", "teacher", "student", "forward", "merge", "evaluate", "export"):
        kinds = [kind for kind, sentence in members(room).items() if sentence]
        assert defs[room]["anyOf"][0] == {"enum": kinds}
        assert {ref for ref in references(defs[room])} == {f"#/$defs/{room}.{kind}" for kind in kinds}
        assert all(defs[f"{room}.{kind}"]["properties"]["kind"]["const"] == kind and "kind" in defs[f"{room}.{kind}"]["required"] for kind in kinds)
    assert json.dumps(recipe_schema).count('"const": "skew_kl"') == 1
    assert "limbeck:room" not in json.dumps(recipe_schema)


def test_the_schema_writes_defaults_bounds_and_descriptions(recipe_schema: dict[str, Any]) -> None:
    fields = recipe_schema["$defs"]["objective.skew_kl"]["properties"]
    assert fields["alpha"]["default"] == 0.1 and fields["alpha"]["anyOf"][0] == {"type": "number", "minimum": 0, "maximum": 1}
    assert fields["alpha"]["anyOf"][1] == {"$ref": "#/$defs/schedule"} and fields["alpha"]["description"] == "Share of the teacher in the mixture."
    assert recipe_schema["$defs"]["Turn"]["properties"]["forward"]["default"] == {"kind": "paired"}


def test_the_schema_allows_a_single_turn_in_place(recipe_schema: dict[str, Any]) -> None:
    stage = recipe_schema["$defs"]["Stage"]
    assert {"steps", "turn", "objective", "micro"} <= set(stage["properties"]) and "turn" not in stage.get("required", ())


def test_the_schema_accepts_the_quick_start_and_refuses_a_misspelling(recipe_schema: dict[str, Any]) -> None:
    validator = pytest.importorskip("jsonschema").Draft202012Validator
    validator.check_schema(recipe_schema)
    plain, _ = document.load(Path(load.__code__.co_filename).with_name("recipes").joinpath("quickstart.yaml").read_text(encoding="utf-8"))
    assert [error.message for error in validator(recipe_schema).iter_errors(plain)] == []
    plain["train"][0]["objective"] = [{"kind": "skew_kl", "aplha": 0.1}]
    assert [error.json_path for error in validator(recipe_schema).iter_errors(plain)] == ["$.train[0].objective[0]"]


def test_the_schema_does_not_run_round_in_a_component_that_holds_its_own_room(own_kinds: None, monkeypatch: pytest.MonkeyPatch) -> None:
    made = schema(Stage)
    parts = [ref for ref in references(made["$defs"]["data.mix"]) if ref.startswith("#/$defs/")]
    assert parts, "mix holds data steps: the test is about that"
    assert "MixPart" in made["$defs"] and "#/$defs/data" in set(references(made["$defs"]["MixPart"]))


def test_a_component_without_a_kind_is_abstract() -> None:
    assert "kind" not in Component.model_fields and not any(cls is Objective for cls in LOADED.values())
