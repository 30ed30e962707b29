"""The loader of recipes: what it reads as data, and all that it refuses."""

import math
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.errors import Refused
from limbeck.text.document import load, value


def refused(text: str) -> Refused:
    with pytest.raises(Refused) as caught:
        load(text, "x.yaml")
    return caught.value


@pytest.mark.parametrize(
    "text, read",
    [
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        ("-.5", -0.5),
        ("+1.", 1.0),
        ("3", 3),
        ("-3", -3),
        ("+3", 3),
        ("0o17", 15),
        ("0xfF", 255),
        ("017", 17),
        (".inf", math.inf),
        ("-.Inf", -math.inf),
        ("+.INF", math.inf),
        ("true", True),
        ("False", False),
        ("TRUE", True),
        ("null", None),
        ("~", None),
        ("", None),
        ("Null", None),
    ],
)
def test_plain_scalars_are_read_by_the_core_rules_of_yaml_1_2(text: str, read: Any) -> None:
    found = value(text)
    assert found == read and type(found) is type(read)


def test_not_a_number_is_a_number() -> None:
    assert math.isnan(value(".nan")) and math.isnan(value(".NaN"))


@pytest.mark.parametrize(
    "text",
    [
        "yes",
        "no",
        "on",
        "off",
        "Yes",
        "NO",
        "y",
        "n",
        "tRUE",
        "nan",
        "inf",
        "1_000",
        "0b11",
        "12:30:45",
        "2026-01-02",
        "=",
        ".",
        "1e",
        "e5",
        "0o8",
        "0x",
        "++1",
        "١٢",
    ],
)
def test_words_stay_words(text: str) -> None:
    assert load(f"a: {text}")[0] == {"a": text}


@pytest.mark.parametrize("text", ["'1'", '"true"', "'~'", '"1e-4"'])
def test_what_is_quoted_is_a_word(text: str) -> None:
    assert value(text) == text[1:-1]


def test_keys_are_words_whatever_they_look_like() -> None:
    assert load("yes: 1\n1: 2\nnull: 3\n1e-4: 4")[0] == {"yes": 1, "1": 2, "null": 3, "1e-4": 4}


@pytest.mark.parametrize(
    "text, line, got",
    [
        ("a: 1\nb: 2\na: 3", 3, "a again"),
        ("x: {b: 1, b: 2}", 1, "b again"),
        ("a: 1\n'a': 2", 2, "a again"),
        ("a: 1\nb: &x 2", 2, "anchor or alias x"),
        ("a: 1\nb: *x", 2, "anchor or alias x"),
        ("- &x [1]", 1, "anchor or alias x"),
        ("a: !!python/object:os.system x", 1, "tag"),
        ("a: !!str 1", 1, "tag"),
        ("a: ! b", 1, "tag"),
        ("- !mine [1]", 1, "tag"),
        ("a: !!binary aGk=", 1, "tag"),
        ("a: 1\n<<: {b: 2}", 2, "a merge key"),
        ("? [a, b]\n: 1", 1, "a list or mapping"),
        ("a: 1\n--- \nb: 2", 2, "another document"),
        ("a: [1", 1, ""),
        ("a: 'x", 1, ""),
        ("\tb: 1", 1, ""),
        ("a: b: c", 1, ""),
    ],
)
def test_what_goes_beyond_plain_yaml_is_refused_with_its_line(text: str, line: int, got: str) -> None:
    error = refused(text)
    assert error.slug == "yaml" and error.where == f"x.yaml:{line}" and got in error.got


@pytest.mark.parametrize("text", ["[" * 51, "[" * 400_000, "{a: " * 51, "- " * 51 + "x", "\n".join("  " * i + "a:" for i in range(60))])
def test_a_deep_document_is_refused_before_it_is_built(text: str) -> None:
    assert refused(text).expected == "at most 50 levels"


def test_fifty_levels_are_fine() -> None:
    found, depth = load("[" * 50 + "]" * 50)[0], 0
    while isinstance(found, list):
        found, depth = found[0] if found else None, depth + 1
    assert depth == 50


def test_a_document_above_a_megabyte_is_refused() -> None:
    assert "1 MB" in refused("a: " + "x" * 1_000_000).expected
    assert "1 MB" in refused("a: " + "é" * 500_000).expected  # bytes count, not characters
    assert len(load("'" + "x" * 999_998 + "'")[0]) == 999_998


@pytest.mark.parametrize(
    "text",
    [
        '"\\U00110000"',
        '"\\UFFFFFFFF"',
        '"\\ud800"',
        "%YAML " + "9" * 5000 + ".1\n--- a",
        "9" * 5000,
        "-" + "1" * 301,
        "0x" + "f" * 10_000,
        '{"\\udfff": 1}',
        "\x00",
        "\ud800",
        "a\x07b",
    ],
)
def test_what_python_could_not_write_again_is_refused(text: str) -> None:
    assert refused(text).slug == "yaml"


def test_every_path_has_its_line() -> None:
    _, lines = load("a: 1\nb:\n  - x\n  - c: 2\n    d:\n      - 3\n")
    assert lines == {(): 1, ("a",): 1, ("b",): 2, ("b", 0): 3, ("b", 1): 4, ("b", 1, "c"): 4, ("b", 1, "d"): 5, ("b", 1, "d", 0): 6}


def test_nothing_is_none_and_has_no_lines() -> None:
    assert load("") == (None, {}) and load("# a comment\n") == (None, {})


def test_windows_line_ends_and_a_byte_order_mark_do_no_harm() -> None:
    assert load("\ufeffa: 1\r\nb: [2]\r\n")[0] == {"a": 1, "b": [2]}


WORDS = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\x85\u2028\u2029"), max_size=12)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False) | WORDS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS.filter(lambda key: key != "<<"), inner, max_size=4),
    max_leaves=12,
)


class Quoted(yaml.SafeDumper):
    """Words in quotes: their look decides nothing."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


Quoted.add_representer(str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"'))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(PLAIN)
def test_plain_data_comes_back_as_it_was_written(data: Any) -> None:
    found = load(yaml.dump(data, Dumper=Quoted, allow_unicode=False, sort_keys=False))[0]
    assert found == data and repr(found) == repr(data)


PIECES = [*"&*!<>?:-[]{}#|%@`'\"\\ \n\t\x00\x85ab019.eExXuU~=,/", "\ud800", "\ufeff", "---", "<<:", "!!", "\\U00", "%YAML ", "99999"]
HOSTILE = st.lists(st.sampled_from(PIECES), max_size=40).map("".join)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(HOSTILE | st.text(max_size=40))
def test_hostile_text_is_data_or_refused_and_nothing_else(text: str) -> None:
    try:
        load(text)
    except Refused as error:
        assert error.slug == "yaml" and error.code == 2 and len(str(error).splitlines()) == 4
