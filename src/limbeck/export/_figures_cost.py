"""Plots of cost: speed, memory, the trade of one for the other, and what happened while training."""

from collections.abc import Mapping, Sequence
from typing import Any

from limbeck.export import _findings as findings
from limbeck.export._report_data import Curves, thin
from limbeck.export._svg import MARKS, WIDTH, Canvas, Figure, Scale, Series, fit, from_to, width_of
from limbeck.export._table import header
from limbeck.export._verdict import arm, entries, word
from limbeck.text.show import finite, number, percent, size, times, visible

MOST_CURVES, MOST_RUNS = 12, 24


def decoding(summary: Mapping[str, Any]) -> Figure | None:
    """Milliseconds a token against the context, with the range of repeats."""
    found: dict[str, list[tuple[float, list[float]]]] = {"teacher": [], "student": []}
    for entry in entries(summary, "decode_by_context"):
        for name, points in found.items():
            times_ms = entry.get(f"{name}_ms")
            values = [x for x in map(finite, times_ms if isinstance(times_ms, Sequence) else ()) if x is not None and x > 0]
            if values and (finite(entry.get("context")) or 0) > 0:
                points.append((float(entry["context"]), values if len(values) == 3 else [values[0]] * 3))
    found = {name: sorted(points) for name, points in found.items() if points}
    if "student" not in found or len(found["student"]) < 2:
        return None
    series = [Series(name, name, [(c, v[0]) for c, v in points], [(v[1], v[2]) for _, v in points], tip=" ms") for name, points in found.items()]
    contexts = sorted({c for points in found.values() for c, _ in points})
    canvas = Canvas("decoding", "Decoding time against context length", from_to(series))
    x = Scale(contexts[0], contexts[-1], canvas.left, canvas.right, log=True)
    y = Scale(0, max(max(v) for points in found.values() for _, v in points), canvas.bottom, canvas.top)
    canvas.axes(x, y, f"{word(summary, 'unit', 'token')}s already in the context", contexts)
    canvas.series(series, x, y)
    medians = {name: {c: v[0] for c, v in points} for name, points in found.items()}
    both = [(c, medians["teacher"][c] / medians["student"][c]) for c in contexts if c in medians.get("teacher", {}) and c in medians["student"]]
    title = findings.speed(both) if both else "Decoding time by context"
    if len(both) > 2:
        middle, ratio = both[len(both) // 2]
        top, bottom = sorted(y(medians[name][middle]) for name in medians)
        if bottom - top > 34:
            canvas.line([(x(middle), top + 7), (x(middle), bottom - 7)], "ax")
            canvas.text(x(middle) + 5, (top + bottom) / 2 + 4, times(ratio).replace("x", "×"))
    rows = [[number(int(c)), *(number(medians[n].get(c)) for n in medians)] for c in contexts]
    note = "ms per generated token, batch 1 · median and 10–90 % of the repeats"
    return Figure(title, note, canvas.html(), ["context", *(f"{n}, ms" for n in medians)], rows)


def trade(summary: Mapping[str, Any]) -> Figure | None:
    """Agreement against speed over all comparable runs; none unless there is another run."""
    found = [(word(x, "name"), finite(x.get("speed")), finite(x.get("top1"))) for x in entries(summary, "runs")[:MOST_RUNS]]
    others = [(name, pace, share) for name, pace, share in found if name and pace and share is not None and name != word(summary, "run")]
    speeds = [finite(arm(summary, x, "decode_tokens_per_second")) for x in ("student", "teacher")]
    top1, base = (finite(arm(summary, x, "top1")) for x in ("student", "baseline"))
    this = ("this run", speeds[0] / speeds[1], top1) if speeds[0] and speeds[1] and top1 is not None else None
    if not others or not this:
        return None
    every = sorted([*others, this], key=lambda x: x[1])
    about = "; ".join(f"{name} {percent(share)} at {times(pace)}" for name, pace, share in every) + "."
    canvas = Canvas("trade", "Agreement against speed of comparable runs", about, right=296)
    low = min(*(s for _, _, s in every), base if base is not None else 1.0)
    x = Scale(min(1.0, every[0][1]), max(1.0, every[-1][1]), canvas.left, canvas.right)
    y = Scale(max(int(low * 10 - 0.1) * 10, 0), 100, canvas.bottom, canvas.top + 14)
    canvas.axes(x, y, "decoding speed, times the teacher’s", x_text=lambda v: f"{number(v)}×")
    points = [(1.0, 1.0, "teacher", "teacher"), *((pace, share, name, "student" if name == "this run" else "start") for name, pace, share in every)]
    if base is not None:
        points.append((this[1], base, header(summary).get("baseline", "text only"), "baseline"))
    taken = [(x(pace) - 6, y(100 * share) - 6, x(pace) + 6, y(100 * share) + 6) for pace, share, *_ in points]
    for pace, share, name, who in sorted(points, key=lambda p: p[3] != "student"):
        at, up = x(pace), y(100 * share)
        canvas.mark(who, at, up, f"{name}: {percent(share, 1)} at {times(pace)}", 4.4 if who == "student" else 3.4)
        text = fit(f"{name} {percent(share)}" if who == "student" else name, 100)
        place_label(canvas, taken, at, up, text, {"student": "st", "baseline": "bt", "teacher": "tt"}.get(who, "n"))
    rows = [[name, times(pace).replace("x", "×"), percent(share, 1)] for name, pace, share in every]
    note = "top-1 agreement, % · runs with the same data and held-out text"
    return Figure(findings.runs(this, others), note, canvas.html(), ["run", "speed", "agreement"], rows)


def place_label(canvas: Canvas, taken: list[tuple[float, float, float, float]], at: float, up: float, text: str, ink: str) -> None:
    """Writes a label beside its point where it covers nothing; leaves it out (it is in the table) where all sides are taken."""
    wide = width_of(text)
    beside, middle = at + 8, at - wide / 2
    for left, base in ((beside, up - 5), (at - 8 - wide, up + 4), (beside, up + 14), (middle, up - 9), (middle, up + 20), (beside, up + 4)):
        box = (left, base - 10, left + wide, base + 3)
        inside = box[0] >= canvas.left and box[2] <= WIDTH and box[1] >= 0 and box[3] <= canvas.bottom
        if inside and not any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken):
            canvas.text(left, base, text, ink)
            taken.append(box)
            return


def memory(summary: Mapping[str, Any]) -> Figure | None:
    """Peak memory of teacher and student, split where the split is known."""
    totals = {x: value for x in ("teacher", "student") if (value := finite(arm(summary, x, "memory_bytes")))}
    if len(totals) < 2:
        return None
    about = "; ".join(f"{x} {size(value)}" for x, value in totals.items()) + "."
    canvas = Canvas("memory", "Memory when serving", about, height=136, left=58, right=312, bottom=92)
    unit, scale = ("GB", 1e9) if max(totals.values()) >= 1e9 else ("MB", 1e6)
    x = Scale(0, max(totals.values()) / scale, canvas.left, canvas.right)
    rows = []
    for name, y in (("teacher", 29.0), ("student", 65.0)):
        canvas.text(50, y + 13, name, "tt" if name == "teacher" else "st", "end")
        split = arm(summary, name, "memory")
        known = {visible(k, 20): v for k, value in split.items() if (v := finite(value))} if isinstance(split, Mapping) else {}
        known = known if known and sum(known.values()) <= 1.001 * totals[name] else {}
        at, edge = 0.0, 0.0
        for i, (part, value) in enumerate({**known, "": totals[name] - sum(known.values())}.items()):
            left, right = x(at / scale), x((at + value) / scale)
            at += value
            if value > 0.001 * totals[name]:
                shade = f"{MARKS[name]} m{min(i, 2) + 1}"
                canvas.add("rect", tip=f"{part or 'in all'} {size(value)}", cls=shade, x=left, y=y, width=max(right - left - 1, 0.5), height=18.0)
                rows.append([name, part or ("rest" if known else "in all"), size(value)])
            label = min(left, WIDTH - width_of(part))
            if part and name == "teacher" and label >= edge:
                canvas.text(label, 23, part, "n")
                edge = label + width_of(part) + 6
        canvas.text(x(totals[name] / scale) + 7, y + 13, number(totals[name] / scale), "tt" if name == "teacher" else "st")
    context = finite(summary.get("memory_context"))
    canvas.axes(x, None, ("gigabytes" if unit == "GB" else "megabytes") + (f" at {number(int(context))} tokens of context" if context else ""))
    note = "measured peak" + (", split by the planner" if len(rows) > 2 else "")
    return Figure(findings.memory(totals["teacher"], totals["student"]), note, canvas.html(), ["", "part", "memory"], rows)


def pull(summary: Mapping[str, Any]) -> Figure | None:
    """Share of each term in the norm of the gradient; none for a single term."""
    found: dict[str, list[tuple[float, float]]] = {}
    for entry in entries(summary, "gradient_shares"):
        step = finite(entry.get("step"))
        for name, value in entry.items():
            share = finite(value)
            if name != "step" and step is not None and share is not None:
                found.setdefault(name, []).append((step, share))
    terms = {name: sorted(points) for name, points in list(found.items())[: len(MARKS)] if len(points) > 1}
    if len(terms) < 2:
        return None
    floor = min(findings.IDLE / 2, *(max(share, 1e-4) for points in terms.values() for _, share in points)) * 100
    arms = ("student", "teacher", "baseline", "start")
    series = [
        Series(f"{fit(name, 92)} {number(100 * points[-1][1], 2)}", who, thin([(s, max(100 * v, floor)) for s, v in points]), dots=False, tip=" %")
        for (name, points), who in zip(terms.items(), arms, strict=False)
    ]
    canvas = Canvas("pull", "Share of the gradient by term", from_to(series), height=154, right=230, bottom=110)
    steps = [step for points in terms.values() for step, _ in points]
    x, y = Scale(min(steps), max(steps), canvas.left, canvas.right), Scale(floor, 100, canvas.bottom, canvas.top, log=True)
    canvas.axes(x, y, "optimiser steps")
    canvas.line([(canvas.left, y(100 * findings.IDLE)), (canvas.right, y(100 * findings.IDLE))], "ln d")
    canvas.series(series, x, y)
    table = {name: dict(points) for name, points in terms.items()}
    rows = [[number(int(s)), *(percent(table[n].get(s), 1) for n in terms)] for s in thin(sorted(set(steps)), 40)]
    note = f"share of the gradient's norm, %, log scale · dotted: idle below {percent(findings.IDLE)}"
    return Figure(findings.pull(terms), note, canvas.html(), ["step", *terms], rows)


def training(summary: Mapping[str, Any], found: Curves) -> list[Figure]:
    """A small plot for each metric of the training loop; both arms share it."""
    names = header(summary)
    out = []
    for metric in list(dict.fromkeys(name for name, _ in found if not name.startswith("held_out")))[:MOST_CURVES]:
        lines = {who: thin(found[metric, who]) for who in ("baseline", "student") if len(found.get((metric, who), [])) > 1}
        if not lines:
            continue
        series = [Series(f"{names.get(who, 'text only')}\n{number(points[-1][1])}", who, points, dots=False) for who, points in lines.items()]
        values = [value for points in lines.values() for _, value in points]
        low, high = min(values), max(values)
        log = low > 0 and high > 20 * low
        canvas = Canvas(f"training-{len(out)}", f"{visible(metric, 60)} against optimiser steps", from_to(series), height=154, bottom=110)
        x = Scale(min(p[0][0] for p in lines.values()), max(p[-1][0] for p in lines.values()), canvas.left, canvas.right)
        room = 0.0 if log else 0.05 * (high - low) or abs(high) or 1.0
        y = Scale(low - room, high + room, canvas.bottom, canvas.top, log)
        canvas.axes(x, y, "optimiser steps")
        canvas.series(series, x, y)
        table = {who: dict(points) for who, points in lines.items()}
        steps = thin(sorted({s for points in lines.values() for s, _ in points}), 20)
        rows = [[number(int(s)), *(number(table[n].get(s)) for n in reversed(lines))] for s in steps]
        head = ["step", *(names.get(n, n) for n in reversed(lines))]
        out.append(Figure(visible(metric, 60), "log scale" if log else "", canvas.html(), head, rows))
    return out
