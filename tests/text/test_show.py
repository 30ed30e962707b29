"""Foreign text is shown as it is, and can do nothing; numbers read the same everywhere."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.text import Text

from limbeck.text.show import (
    duration,
    finite,
    fixed,
    for_report,
    for_terminal,
    magnitude,
    number,
    percent,
    plus_minus,
    size,
    times,
    visible,
)

BIDI = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def rendered(markup: str) -> Text:
    return Text.from_markup(markup)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "␛[31mred␛[0m"),
        ("\x9b2Jgone", "\\u009b2Jgone"),  # CSI in one character
        ("a\x00b", "a␀b"),
        ("\x7f\x08", "␡␈"),
        ("user\u202etxt.exe", "user\\u202etxt.exe"),
        ("\u2066a\u2069\u200e\u061c", "\\u2066a\\u2069\\u200e\\u061c"),
        ("zero\u200bwidth\ufeff\u00ad", "zero\\u200bwidth\\ufeff\\u00ad"),
        ("\U000e0041", "\\U000e0041"),  # invisible tag letters
        ("\ud800", "\\ud800"),  # a lone surrogate would break the stream
        ("a\u2028b", "a\\u2028b"),
        ("one\ntwo\r\n\t", "one␊two␍␊␉"),
        ("Zoë 日本 👩\u200d🔬 می\u200cخواهم", "Zoë 日本 👩\u200d🔬 می\u200cخواهم"),
    ],
)
def test_what_cannot_be_seen_is_made_visible(text: str, shown: str):
    assert visible(text) == shown
    assert rendered(for_terminal(text)).plain == shown


TAGS = ["[/INST]", "[bold]x[/bold]", "[link=file:///]x", "[@click=quit]x[/]", "\\[red]", "\\\\[red]", "[red", "[]"]
CODES = ["a:smile:b", ":a:b:c:", "12:30:45", ":smile:[red]:smile:"]


@pytest.mark.parametrize("text", TAGS + CODES)
def test_no_markup_of_foreign_text_takes_effect(text: str):
    shown = rendered(for_terminal(text))
    assert shown.plain == text
    assert all(str(span.style) == "none" for span in shown.spans)


@pytest.mark.parametrize("text", ["a\\", "a\\\\", "a\\\\\\"])
def test_a_backslash_at_the_end_does_not_disarm_the_tag_behind_it(text: str):
    shown = rendered(f"[bold]{for_terminal(text)}[/bold]!")
    assert shown.plain == text + "!"
    assert [(span.start, span.end) for span in shown.spans if span.style == "bold"] == [(0, len(text))]
    assert rendered(for_terminal(text)).plain == text


def test_lines_stay_lines_only_where_asked():
    assert visible("a\r\nb\nc", lines=5) == "a\nb\nc"
    assert visible("a\nb\nc", lines=2) == "a\nb…"
    assert visible("a\nb", lines=2) == "a\nb"
    assert for_report("<b>\n\tx\x1b") == "<b>\n\tx␛"


def test_a_line_of_a_megabyte_is_cut():
    for show in (visible, for_terminal, for_report):
        assert len(show("x" * 1_000_000, limit=80)) == 80
        assert show("x" * 1_000_000, limit=80).endswith("x…")
    assert visible("x" * 80, limit=80) == "x" * 80
    assert visible("\u202e" * 1_000_000, limit=20) == "\\u202e" * 3 + "…"


@given(st.text(), st.integers(1, 40), st.integers(1, 3))
def test_any_text_is_shown_within_its_limits_and_means_nothing_to_a_terminal(text: str, limit: int, lines: int):
    shown = visible(text, limit, lines)
    assert len(shown) <= limit and shown.count("\n") < lines
    assert not any(ord(c) < 32 or 0x7F <= ord(c) < 0xA0 or c in BIDI for c in shown.replace("\n", "").replace("\t", ""))
    shown.encode()
    assert visible(shown, limit, lines) == shown
    assert rendered(for_terminal(text, limit, lines)).plain == shown


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (204_800, "204,800"),
        (21_437.0, "21,400"),
        (4.1234, "4.12"),
        (0.0310, "0.031"),
        (0.0, "0"),
        (100.0, "100"),
        (99.96, "100"),
        (9.996, "10"),
        (0.00031, "0.00031"),
        (0.0000312, "3.12e-5"),
        (3.2e-7, "3.2e-7"),
        (-2.5, "-2.5"),
        (None, "?"),
        (math.nan, "?"),
        (math.inf, "?"),
        ("<b>", "?"),
        (True, "?"),
        (1e16, "1e16"),
    ],
)
def test_a_number_has_three_digits_and_comma_thousands(value: object, text: str):
    assert number(value) == text


def test_an_error_decides_how_much_of_a_value_is_shown():
    assert plus_minus(93.14, 0.31) == "93.1 ± 0.3"
    assert plus_minus(0.03104, 0.00098) == "0.031 ± 0.001"
    assert plus_minus(93.0, 0.26) == "93.0 ± 0.3"
    assert plus_minus(1234.0, 56.0) == "1,230 ± 60"
    assert plus_minus(0.0312, 0.0011, digits=2) == "0.0312 ± 0.0011"
    assert plus_minus(4.12, None) == "4.12" == plus_minus(4.12, 0.0)
    assert plus_minus(None, 0.1) == "?"


def test_a_share_never_rounds_to_all_or_nothing():
    assert [percent(x) for x in (0.931, 1.0, 0.0, 0.996, 0.9996, 0.004, 1.2)] == ["93 %", "100 %", "0 %", "99.6 %", "99.96 %", "0.4 %", "120 %"]
    assert percent(0.94, 1) == "94.0 %"
    assert percent(float("nan")) == "?"


def test_durations_sizes_and_ratios_read_as_people_say_them():
    seconds = (17_280, 10_920, 57_600, 720, 41, 59.6, 3_599.0, 0.412, 0, None)
    assert [duration(x) for x in seconds] == ["4 h 48 min", "3 h 02 min", "16 h", "12 min", "41 s", "1 min", "1 h", "0.41 s", "0 s", "?"]
    assert [size(x) for x in (3.42e9, 134e6, 880e3, 12, 999.9e6, None)] == ["3.42 GB", "134 MB", "880 kB", "12 B", "1 GB", "?"]
    assert [times(x) for x in (1.61, 0.6234, 12.4, 1.0, 0.999, None)] == ["1.6x", "0.62x", "12x", "1.0x", "1.0x", "?"]
    assert [magnitude(x) for x in (1_710_000_000, 134_515_008, 12_300, 7)] == ["1.71 B", "135 M", "12.3 k", "7"]
    assert fixed(-0.0004, 1) == "0.0"
    assert finite(10**400) is None and finite(3) == 3.0
