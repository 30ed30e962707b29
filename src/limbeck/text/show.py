"""The one way foreign text and numbers are shown: rows, names and model output in a terminal, a log or a report."""

import math
import re
import unicodedata
from typing import Any

from rich.markup import escape

NOT_MEASURED = "?"
HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Unicode categories that a reader cannot see, or that move what is seen: controls, formats (bidi), surrogates, line separators."""
KEPT = {0x200C, 0x200D, *range(0x600, 0x606), 0x6DD, 0x70F, 0x890, 0x891, 0x8E2, 0x110BD, 0x110CD}
"""Formats without which Persian, Indic scripts and emoji fall apart, and Arabic signs that are visible themselves."""
NO_STYLE = "[none][/none]"
EMOJI_CODE = re.compile(r":(?=[^\s:\[\]\\]+:)")


def visible(text: str, limit: int = 2_000, lines: int = 1) -> str:
    """Text in which nothing is hidden: controls as `␛`, bidi overrides, zero widths and lone surrogates as `\\u202e`.

    At most `limit` characters on at most `lines` lines; what is left out leaves a `…`. On a single line a line break shows
    as `␊`; with more lines, breaks and tabs stay. For logs and plain streams.
    """
    cut, text = False, text[: 2 * limit + 2]  # more than can be shown, even if half of it is \r
    if lines > 1:
        rows = text.replace("\r\n", "\n").split("\n", lines)
        cut, text = len(rows) > lines, "\n".join(rows[:lines])
    shown: list[str] = []
    room = limit
    for char in text:
        piece = char if lines > 1 and char in "\n\t" else seen(char)
        if len(piece) > room:
            cut = True
            break
        shown.append(piece)
        room -= len(piece)
    if cut:
        while shown and room < 1:
            room += len(shown.pop())
        shown.append("…")
    return "".join(shown)


def seen(char: str) -> str:
    """One character, or its visible stand-in."""
    code = ord(char)
    if code < 32 or code == 127:
        return chr(0x2400 + code) if code < 32 else "␡"
    if unicodedata.category(char) in HIDDEN and code not in KEPT:
        return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
    return char


def for_terminal(text: str, limit: int = 200, lines: int = 1) -> str:
    """Visible text as rich markup that shows exactly that text: no tag, link or `:emoji:` code in it takes effect.

    Its length is that of the markup: let rich measure it.
    """
    shown = visible(text, limit, lines)
    head = shown.rstrip("\\")
    tail = (len(shown) - len(head)) * "\\\\"  # doubled, and a tag behind: or it would disarm the caller's next tag
    return EMOJI_CODE.sub(":" + NO_STYLE, escape(head)) + (tail + NO_STYLE if tail else "")


def for_report(text: str, limit: int = 2_000, lines: int = 1_000) -> str:
    """Visible text for a template, whose autoescape writes it as HTML; line breaks and tabs stay, since HTML does not obey them."""
    return visible(text, limit, lines)


def finite(value: Any) -> float | None:
    """A number as a float; None for anything that is no number, or not finite: it was not measured."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300 and math.isfinite(value):
        return float(value)
    return None


def number(value: Any, digits: int = 3) -> str:
    """`21,400`, `4.12`, `0.031`: a whole number in full, any other to `digits` significant digits; `?` where nothing was measured."""
    x = finite(value)
    if x is None:
        return NOT_MEASURED
    if isinstance(value, int):
        return f"{value:,}"
    mantissa, exponent = f"{x:.{digits - 1}e}".split("e")
    if x and not -4 <= int(exponent) < 15:
        return f"{plain(mantissa)}e{int(exponent)}"
    return plain(f"{float(f'{mantissa}e{exponent}'):,.{max(digits - 1 - int(exponent), 0)}f}")


def plain(text: str) -> str:
    """A decimal without the zeros that say nothing."""
    return text.rstrip("0").rstrip(".") if "." in text else text


def fixed(value: Any, decimals: int) -> str:
    """A number with so many decimals and comma thousands: 93.0; negative decimals round to tens, hundreds; never `-0`."""
    x = finite(value)
    if x is None:
        return NOT_MEASURED
    return f"{round(x, decimals) + 0.0:,.{max(decimals, 0)}f}"


def plus_minus(value: Any, error: Any, digits: int = 1) -> str:
    """`93.1 ± 0.3`: the error to `digits` significant digits, the value to the same decimals; without an error, the value alone."""
    x, e = finite(value), finite(error)
    if x is None or not e or e < 0:
        return number(value)
    decimals = digits - 1 - int(f"{e:.{digits - 1}e}".split("e")[1])
    return f"{fixed(x, decimals)} ± {fixed(e, decimals)}"


def percent(share: Any, decimals: int = 0) -> str:
    """`93 %` of 0.93. Only an exact 0 or 1 shows as `0 %` or `100 %`: decimals are added (at most three) where rounding would hide a rest."""
    x = finite(share)
    if x is None:
        return NOT_MEASURED
    if x in (0.0, 1.0):
        return f"{x * 100:.0f} %"
    places = next((p for p in range(decimals, decimals + 3) if round(x * 100, p) not in (0.0, 100.0)), decimals + 3)
    return f"{fixed(x * 100, places)} %"


def times(ratio: Any) -> str:
    """`1.6x`, `0.62x`, `12x`: how many times as much."""
    x = finite(ratio)
    if x is None:
        return NOT_MEASURED
    return f"{fixed(x, 2 if x < 0.995 else 1 if x < 9.95 else 0)}x"


def duration(seconds: Any) -> str:
    """`4 h 48 min`, `12 min`, `41 s`, `0.41 s`."""
    x = finite(seconds)
    if x is None:
        return NOT_MEASURED
    if x < 59.5:
        return f"{number(x, 2) if x < 1 else round(x)} s"
    hours, minutes = divmod(round(x / 60), 60)
    if not hours:
        return f"{minutes} min"
    return f"{hours:,} h {minutes:02d} min" if minutes else f"{hours:,} h"


def size(num_bytes: Any) -> str:
    """`3.42 GB`, `134 MB`, `880 kB`, `12 B`: GB is 1e9 bytes."""
    x = finite(num_bytes)
    if x is None:
        return NOT_MEASURED
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(x) >= 0.9995 * scale:
            return f"{number(x / scale)} {unit}"
    return f"{number(x)} B"


def magnitude(count: Any) -> str:
    """`1.71 B`, `135 M`, `12.3 k`: how many, shortly (parameters, tokens)."""
    x = finite(count)
    if x is None:
        return NOT_MEASURED
    for unit, scale in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(x) >= 0.9995 * scale:
            return f"{number(x / scale)} {unit}"
    return number(x)
