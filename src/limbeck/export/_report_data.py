"""What the report reads: foreign data made fit to be shown, metrics as curves, samples cut at their marks."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from limbeck.text.show import finite, for_report, number, visible
from limbeck.text.words import normalised

MOST_POINTS, MOST_ENTRIES, MOST_MARKS = 120, 300, 200
PICTURE = re.compile(r"data:image/png;base64,[A-Za-z0-9+/]+={0,2}")
"""The only address that an image of the page may have: itself."""
MOST_PICTURE = 40_000
SOUND = re.compile(r"data:audio/wav;base64,[A-Za-z0-9+/]+={0,2}")
"""The only address that a sound of the page may have: itself."""
MOST_SOUND, MOST_SOUNDS = 86_000, 10
Curves = dict[tuple[str, str], list[tuple[float, float]]]


def clean(value: Any, depth: int = 8) -> Any:
    """Plain data in which every text is visible and short, every number finite or None, and no list is long."""
    if isinstance(value, str):
        return for_report(value, 500)
    if value is None or isinstance(value, (bool, int, float)):
        return value if isinstance(value, bool) or finite(value) is not None else None
    if isinstance(value, Mapping):
        return {visible(str(k), 80): clean(v, depth - 1) for k, v in list(value.items())[:MOST_ENTRIES]} if depth else {}
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
        return [clean(x, depth - 1) for x in thin(value, MOST_ENTRIES)] if depth else []
    return for_report(str(value), 500)


def curves(metrics: Iterable[Mapping[str, Any]]) -> Curves:
    """(name, arm) -> points in the order of steps: the mean of a record, or its value; of a step met twice, the later record.

    A later stage that counts its steps from the start again is laid behind the stages before it; a record that names no stage
    belongs to the latest.
    """
    offset: dict[tuple[str, str], float] = {}
    latest: dict[str, float] = {}
    last: dict[str, float] = {}
    found: dict[tuple[str, str], dict[float, float]] = {}
    for record in metrics:
        name, of, stage = record.get("name"), record.get("arm", "student"), record.get("stage")
        step, total, count = (finite(record.get(key)) for key in ("step", "sum", "count"))
        value = total / count if total is not None and count else finite(record.get("value"))
        if step is None or value is None or not isinstance(name, str) or not isinstance(of, str):
            continue
        if stage is not None:
            latest[of] = offset.setdefault((of, str(stage)), last[of] if step <= last.get(of, -1.0) else 0.0)
        at = step + latest.get(of, 0.0)
        last[of] = max(last.get(of, at), at)
        found.setdefault((name, of), {})[at] = value
    return {key: sorted(points.items()) for key, points in found.items()}


def thin(points: Sequence[Any], most: int = MOST_POINTS) -> list[Any]:
    """Evenly chosen points, first and last among them."""
    if len(points) <= most:
        return list(points)
    return [points[round(i * (len(points) - 1) / (most - 1))] for i in range(most)]


def flatten(value: Any, path: str = "", most: int = 100) -> list[tuple[str, str]]:
    """Nested data as (path, text) lines: at most `most` of them, and one that tells how many are left out."""
    lines: list[tuple[str, str]] = []
    stack = [(path, value)]
    while stack:
        at, item = stack.pop()
        if isinstance(item, (Mapping, list)):
            pairs = item.items() if isinstance(item, Mapping) else enumerate(item)
            stack.extend(reversed([(f"{at}.{key}" if at else str(key), x) for key, x in pairs]))
        else:
            shown = "?" if item is None else number(item, 6) if finite(item) is not None else visible(str(item), 100)
            lines.append((visible(at, 100), shown))
    left = len(lines) - most
    return lines if left <= 0 else [*lines[:most], ("…", f"{left:,} more")]


def by_arm(summary: Mapping[str, Any], names: Mapping[str, str]) -> list[list[str]]:
    """Every figure of the arms, a row a figure and a column an arm."""
    columns = {x: dict(flatten(summary.get(x) if isinstance(summary.get(x), Mapping) else {}, most=100)) for x in names}
    keys = dict.fromkeys(key for column in columns.values() for key in column)
    return [[key, *(column.get(key, "") for column in columns.values())] for key in keys]


def marked(text: Any, marks: Any, limit: int) -> list[tuple[bool, str]]:
    """A text in pieces, (whether it is marked, what it says); marks are [start, end) in characters, nonsense among them is left out."""
    text = text if isinstance(text, str) else ""
    shown, rest = text[:limit], text[limit:]
    spans = []
    for mark in marks[: 5 * MOST_MARKS] if isinstance(marks, Sequence) else ():
        if isinstance(mark, Sequence) and len(mark) == 2 and all(isinstance(x, int) for x in mark) and 0 <= mark[0] < mark[1] <= len(shown):
            spans.append((mark[0], mark[1]))
    pieces, at = [], 0
    for start, end in sorted(spans)[:MOST_MARKS]:
        if start >= at:
            pieces += [(False, shown[at:start]), (True, shown[start:end])]
            at = end
    pieces.append((False, shown[at:] + ("…" if rest else "")))
    out = []
    for is_marked, piece in pieces:
        if piece and limit > 0:
            out.append((is_marked, for_report(piece, limit + 1)))
            limit -= len(out[-1][1])
    return out


def picture(entry: Mapping[str, Any]) -> dict[str, Any] | None:
    """A held-out picture with its class, or a question and its answer, and what both say; None for what is no small picture in place."""
    image = entry.get("image")
    if not isinstance(image, str) or len(image) > MOST_PICTURE or not PICTURE.fullmatch(image):
        return None
    most = 40 if "prompt" not in entry else 240  # with a question, answers are sentences
    said = {name: for_report(x, most) if isinstance(x := entry.get(name), str) else "" for name in ("prompt", "label", "teacher", "student")}
    return {"image": image, "made": entry.get("made") is True, **said}


def sound(entry: Mapping[str, Any]) -> dict[str, Any] | None:
    """A held-out sound with its class, or what is said in it and what both write of it; None for what is no short sound in place."""
    found = entry.get("sound")
    if not isinstance(found, str) or len(found) > MOST_SOUND or not SOUND.fullmatch(found):
        return None
    most = 400 if {"teacher", "student"} & entry.keys() else 40
    said = {name: for_report(x, most) if isinstance(x := entry.get(name), str) else "" for name in ("label", "teacher", "student")}
    return {"sound": found, "wrong": [name for name, x in said.items() if normalised(x) != normalised(said["label"])], **said}


def sample(entry: Mapping[str, Any], limit: int) -> dict[str, Any]:
    """A held-out input with both answers, each of at most about `limit` characters, ready for the template."""
    texts = [x for x in (entry.get("teacher"), entry.get("student")) if isinstance(x, str)]
    code = any(line.startswith(("    ", "\t", "```")) for text in texts for line in text[:limit].split("\n"))
    notes = {}
    for who in ("teacher", "student"):
        seconds = finite(entry.get(f"{who}_seconds"))
        notes[who] = f" · {number(seconds, 2)} s" if seconds is not None else ""
    agreement = finite(entry.get("agreement"))
    if agreement is not None:
        notes["student"] += f" · {100 * agreement:.0f} % agreement"
    prompt = entry.get("prompt")
    marks = {"teacher": (), "student": entry.get("marks")}
    pieces = {who: marked(entry[who], of, limit) for who, of in marks.items() if isinstance(entry.get(who), str)}
    asked = for_report(prompt, limit) if isinstance(prompt, str) else ""
    return {"prompt": asked, "code": code, "notes": notes, "pieces": pieces, "compared": agreement is not None}
