"""Plot of models that write several tokens in a pass: how much of it is right."""

from collections.abc import Mapping
from typing import Any

from limbeck.export._figures_cost import place_label
from limbeck.export._svg import Canvas, Figure, Scale, Series, from_to
from limbeck.export._table import header
from limbeck.export._verdict import ARMS, arm, entries
from limbeck.text.show import finite, number, percent


def parallel(summary: Mapping[str, Any]) -> Figure | None:
    """Agreement with held-out text against tokens a pass, a point for each threshold of acceptance; none without a curve of the student."""
    names, found, rows = header(summary), {}, []
    for entry in entries(summary, "parallel_decoding"):
        for who in ARMS:
            rate, right = (finite(arm(entry, who, name)) for name in ("tokens_per_forward", "agreement"))
            if rate and right is not None and who in names:
                found.setdefault(who, []).append((rate, 100 * right))
                rows.append([names[who], number(finite(entry.get("threshold"))), number(rate), percent(right, 1)])
    if len(found.get("student", ())) < 2:
        return None
    series = [Series(names[who], who, sorted(points), tip=" %") for who, points in found.items()]
    every = [point for one in series for point in one.points]
    canvas = Canvas("parallel", "Agreement with held-out text against tokens a pass", from_to(series), right=296)
    x = Scale(min(1.0, *(rate for rate, _ in every)), max(1.1, *(rate for rate, _ in every)), canvas.left, canvas.right)
    y = Scale(0, max(10.0, *(right for _, right in every)), canvas.bottom, canvas.top + 14)
    canvas.axes(x, y, "tokens a pass", x_text=number)
    taken: list[tuple[float, float, float, float]] = []
    for one in series:
        canvas.line([(x(rate), y(right)) for rate, right in one.points], "ln")
        for rate, right in one.points:
            canvas.mark(one.arm, x(rate), y(right), f"{one.name}: {number(right)} % at {number(rate)} tokens a pass")
            taken.append((x(rate) - 6, y(right) - 6, x(rate) + 6, y(right) + 6))
        rate, right = one.points[-1]
        place_label(canvas, taken, x(rate), y(right), one.name, {"student": "st", "baseline": "bt", "teacher": "tt"}.get(one.arm, "n"))
    note = "tokens that stand in the held-out text in the same place, % · a point for each threshold of acceptance"
    return Figure("What is written at once, and what of it is right", note, canvas.html(), ["", "threshold", "tokens a pass", "right"], rows)
