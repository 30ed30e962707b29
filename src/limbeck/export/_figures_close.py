"""Plots of closeness: agreement at a glance, KL while training, calibration, and where the student differs."""

from collections.abc import Mapping
from typing import Any

from limbeck.export import _findings as findings
from limbeck.export._report_data import Curves, thin
from limbeck.export._svg import WIDTH, Canvas, Figure, Label, Scale, Series, fit, from_to, spread, width_of
from limbeck.export._table import header
from limbeck.export._verdict import alone, arm, entries, word
from limbeck.text.show import finite, fixed, number, percent

MOST_KINDS, MOST_ROWS = 12, 60


def strip(summary: Mapping[str, Any]) -> Figure | None:
    """Agreement of all arms on one line from 0 to 100 %."""
    found = {x: value for x in ("start", "baseline", "student") if (value := finite(arm(summary, x, "top1"))) is not None}
    if "student" not in found:
        return None
    names, unit = header(summary), word(summary, "unit", "token")
    about = ", ".join(f"{names[x]} {percent(value)}" for x, value in found.items())
    canvas = Canvas("strip", "Top-1 agreement with the teacher", f"{about}, teacher 100 %.", height=92)
    x = Scale(0, 1, 12, 344)
    canvas.line([(x(0), 52), (x(1), 52)], "ax")
    for share in (0, 0.25, 0.5, 0.75):
        canvas.line([(x(share), 52), (x(share), 56)], "ax")
        canvas.text(x(share), 70, f"{share * 100:.0f}", anchor="middle")
    canvas.line([(x(1), 28), (x(1), 56)], "tl")
    canvas.text(WIDTH - 8, 70, "teacher", "tt", "end")
    label = f"same {'next token' if unit == 'token' else 'choice'} as the teacher, % of held-out {unit}s"
    canvas.text((x(0) + x(1)) / 2, 88, label, "l", "middle")
    if "baseline" in found:
        low, high = sorted((x(found["baseline"]), x(found["student"])))
        canvas.line([(low, 36), (high, 36)], "d b")
        if high - low > 50:
            canvas.text((low + high) / 2, 49, f"{100 * (found['student'] - found['baseline']):+.0f}".replace("-", "−"), anchor="middle")
    digits = 0 if len({percent(value) for value in found.values()}) == len(found) else 1
    texts = {name: f"{names[name]} {percent(value, digits).removesuffix(' %')}" for name, value in found.items()}
    widths = {name: width_of(text) * (1.2 if name == "student" else 1) + 10 for name, text in texts.items()}
    middles = spread([(x(value), widths[name]) for name, value in found.items()], 0, WIDTH)
    for (name, value), middle in zip(found.items(), middles, strict=True):
        canvas.text(middle, 20, texts[name], {"student": "st big", "baseline": "bt"}.get(name, "n"), "middle")
        if abs(middle - x(value)) > 0.6 * widths[name]:
            canvas.line([(middle, 24), (x(value), 31)], "d")
        canvas.mark(name, x(value), 36, f"{names[name]} {percent(value, 1)}", {"student": 6.0, "baseline": 5.5}.get(name, 4.0))
    return Figure("", "", canvas.html(), (), ())


def learning(summary: Mapping[str, Any], found: Curves) -> Figure | None:
    """KL of the rows that were looked at against steps, from what the same rows said before training; none with fewer than three points."""
    names, unit = header(summary), word(summary, "unit", "token")
    start, looked = (finite(arm(summary, "watched", x)) for x in ("kl", "rows"))
    lines: dict[str, list[tuple[float, float]]] = {}
    for name in ("baseline", "student"):
        points = [point for point in found.get(("held_out_kl", name), []) if point[1] > 0]
        if points and start and points[0][0] > 0:
            points.insert(0, (0.0, start))
        if len(points) > 2:
            lines[name] = points
    if "student" not in lines:
        return None
    series = [Series(f"{names.get(x, 'text only')}\n{number(points[-1][1])}", x, thin(points), dots=False) for x, points in lines.items()]
    values = [value for points in lines.values() for _, value in points]
    log = max(values) > 3 * min(values)
    end = max(points[-1][0] for points in lines.values())
    canvas = Canvas("learning", "KL to the teacher against optimiser steps", from_to(series), top=26)
    x = Scale(0, end, canvas.left, canvas.right)
    y = Scale(min(values) / 1.1 if log else 0.0, max(values), canvas.bottom, canvas.top, log)
    tokens, steps = finite(summary.get("tokens")), finite(summary.get("steps"))
    each = f" of {number(round(tokens / steps))} {unit}s" if tokens and steps else ""
    canvas.axes(x, y, "optimiser steps" + (each if width_of(each) < 150 else ""))
    canvas.series(series, x, y)
    if lines["student"][0][0] == 0:
        canvas.text(canvas.left + 8, 15, f"before training {number(lines['student'][0][1])}", "n")
    without = f"{what} alone" if (what := alone(summary)) else "training without the teacher"
    title = findings.while_training(lines["student"], lines.get("baseline", []), without)
    tables = {name: dict(points) for name, points in lines.items()}
    steps_shown = thin(sorted({step for points in lines.values() for step, _ in points}), 40)
    rows = [[number(int(step)), *(number(tables[n][step]) if step in tables[n] else "" for n in reversed(lines))] for step in steps_shown]
    where = f"the same {number(int(looked))} held-out rows each time" if looked else "held-out"
    note = f"KL(teacher ‖ student), nats per {unit}{', log scale' if log else ''} · {where}"
    return Figure(title, note, canvas.html(), ["step", *(names.get(n, n) for n in reversed(lines))], rows)


def calibration(summary: Mapping[str, Any]) -> Figure | None:
    """How often the first choice is right, minus what was stated."""
    bins = [x for x in entries(summary, "calibration") if finite(x.get("stated")) is not None]
    names = {x: name for x, name in header(summary).items() if x != "start"}
    lines = {n: [(x["stated"], 100 * x[n]) for x in bins if finite(x.get(n)) is not None] for n in names}
    lines = {n: points for n, points in lines.items() if len(points) > 1}
    if "student" not in lines:
        return None
    errors = {n: finite(arm(summary, n, "calibration_error")) for n in names}
    series = [
        Series(names[n] + ("" if (e := errors[n]) is None else f" {number(100 * e, 2)}"), n, sorted(points), dots=n != "teacher", tip=" points")
        for n, points in lines.items()
    ]
    canvas = Canvas("calibration", "Calibration: right minus stated, against the stated probability", from_to(series), right=268)
    values = [value for points in lines.values() for _, value in points]
    room = 0.06 * (max(*values, 0.0) - min(*values, 0.0)) or 1.0
    x, y = Scale(0, 1, canvas.left, canvas.right), Scale(min(*values, 0.0) - room, max(*values, 0.0) + room, canvas.bottom, canvas.top)
    canvas.axes(x, y, "stated probability of the first choice")
    canvas.line([(x(0), y(0)), (x(1), y(0))], "ln d")
    canvas.series(series, x, y, [Label(y(0) - 7, ("as stated",), "n")])
    mean = " · at the line's end: mean error, points" if any(e is not None for e in errors.values()) else ""
    note = f"how often the first choice is right, minus what was stated, in points; below 0: overconfident{mean}"
    rows = [[number(b["stated"]), *(fixed(100 * b[n], 1) if finite(b.get(n)) is not None else "?" for n in lines)] for b in bins]
    return Figure(findings.calibration(errors["teacher"], errors["student"], bins), note, canvas.html(), ["stated", *(names[n] for n in lines)], rows)


def certainty(summary: Mapping[str, Any]) -> Figure | None:
    """Agreement against the probability that the teacher gives to its choice, with the share of predictions."""
    bins = [x for x in entries(summary, "by_certainty") if all(finite(x.get(k)) is not None for k in ("low", "high", "student"))]
    if len(bins) < 2:
        return None
    bins.sort(key=lambda x: x["low"])
    names, unit = header(summary), word(summary, "unit", "token")
    series = []
    for name in ("baseline", "student"):
        points = [((b["low"] + b["high"]) / 2, 100 * b[name]) for b in bins if finite(b.get(name)) is not None]
        if len(points) > 1:
            series.append(Series(names.get(name, "text only"), name, points, tip=" %"))
    canvas = Canvas("certainty", "Top-1 agreement against the teacher's certainty", from_to(series))
    x, y = Scale(0, 1, canvas.left, canvas.right), Scale(0, 100, canvas.bottom, canvas.top)
    extra = []
    for b in bins:
        share = finite(b.get("share"))
        if share:
            at, wide, tall = x(b["low"]) + 1, max(x(b["high"]) - x(b["low"]) - 2, 0.5), y(0) - y(100 * share)
            canvas.add("rect", tip=f"{percent(share)} of {unit}s", cls="h", x=at, y=y(0) - tall, width=wide, height=tall)
            extra = [Label(y(0) - tall + 8, (f"{percent(share)} of", f"{unit}s"), "n")]
    canvas.axes(x, y, "probability the teacher gives to its first choice")
    canvas.series(series, x, y, extra)
    head = ["certainty", *(s.name for s in reversed(series)), "share"]
    cells = [[percent(b[s.arm], 1) if finite(b.get(s.arm)) is not None else "?" for s in reversed(series)] for b in bins]
    rows = [[f"{number(b['low'])} to {number(b['high'])}", *c, percent(b.get("share"))] for b, c in zip(bins, cells, strict=True)]
    shares = " · grey bars: share of the predictions, %" if extra else ""
    return Figure(findings.certainty(bins), f"top-1 agreement, %{shares}", canvas.html(), head, rows)


def kinds(summary: Mapping[str, Any]) -> Figure | None:
    """Agreement by kind of text with 95 % intervals, the worst last."""
    every = [x for x in entries(summary, "slices") if finite(x.get("student")) is not None and word(x, "name")]
    if len(every) < 2:
        return None
    every.sort(key=lambda x: -x["student"])
    drawn = every[-MOST_KINDS:]
    alone = header(summary).get("baseline", "text only")
    ends = [x["student"] - 1.96 * (finite(x.get("error")) or 0.0) for x in drawn] + [b for x in drawn if (b := finite(x.get("baseline"))) is not None]
    low = max(min(int(10 * min(ends)) * 10, 90), 0)
    bottom = 6.0 + 27 * len(drawn)
    about = f"From {percent(every[0]['student'])} on {word(every[0], 'name')} down to {percent(every[-1]['student'])} on {word(every[-1], 'name')}."
    canvas = Canvas("kinds", "Top-1 agreement by kind of text", about, height=bottom + 44, left=142, right=316, bottom=bottom)
    x = Scale(low, 100, canvas.left, canvas.right)
    for i, kind in enumerate(drawn):
        y, last, value, error = 19.5 + 27 * i, i == len(drawn) - 1, 100 * kind["student"], 196 * (finite(kind.get("error")) or 0.0)
        canvas.line([(canvas.left, y), (canvas.right, y)], "gr")
        canvas.text(canvas.left - 9, y + 4, fit(word(kind, "name"), canvas.left - 9), "st" if last else "", "end")
        if error:
            canvas.line([(x(max(value - error, low)), y), (x(min(value + error, 100)), y)], "eb s")
        if (base := finite(kind.get("baseline"))) is not None:
            canvas.mark("baseline", x(100 * base), y, f"{alone} {percent(base, 1)}", 3.4)
        canvas.mark("student", x(value), y, f"student {percent(kind['student'], 1)}", 3.6)
        canvas.text(canvas.right + 8, y + 4, fixed(value, 1), "st")
    canvas.axes(x, None, "top-1 agreement, %")
    note = "● student with 95 % interval" + (f" · □ {alone}" if any(finite(k.get("baseline")) is not None for k in drawn) else "")
    note += f" · the {MOST_KINDS} lowest of {len(every)}" if len(every) > MOST_KINDS else ""
    rows = [[word(k, "name"), percent(k["student"], 1), *(percent(k.get(n), 1) for n in ("error", "baseline", "share"))] for k in every[-MOST_ROWS:]]
    title = findings.kinds(summary, every, finite(arm(summary, "student", "top1")))
    return Figure(title, note, canvas.html(), ["text", "student", "±", alone, "share"], rows)
