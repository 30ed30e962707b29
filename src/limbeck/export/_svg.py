"""Drawing for the report: SVG at the width of a phone, with axes that end where the data ends and lines named at their ends."""

import math
import unicodedata
from collections.abc import Callable, Sequence
from typing import NamedTuple
from xml.etree import ElementTree

from markupsafe import Markup

from limbeck.text.show import number, plain

WIDTH = 360
LINE = 13.0
"""Height of a line of labels, in the SVG's pixels."""
MARKS = {"student": "s", "baseline": "b", "teacher": "t", "start": "o"}
"""Class of an arm's marks and lines; a third, fourth, ... thing that is no arm takes them in this order."""
INKS = {"student": "st", "baseline": "bt", "teacher": "tt", "start": "n"}


class Scale(NamedTuple):
    """Data to pixels, linear or logarithmic."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = (math.log(x) for x in (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        return self.start + (self.end - self.start) * ((value - low) / (high - low) if high != low else 0.5)

    def ticks(self, count: int = 4) -> list[float]:
        """Round numbers within the scale, at most about `count` + 1 of them."""
        if self.log and self.high / self.low > 3:
            for steps in ((1, 3), (1,), (1, 2, 5)):
                powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
                found = [x for p in powers for m in steps if self.low <= (x := float(f"{m}e{p}")) <= self.high * (1 + 1e-9)]
                if 2 <= len(found) <= count + 3:
                    return found
            every = -(-len(found) // (count + 1))
            return found[::every] if len(found) >= 2 else [self.low, self.high]
        if self.high <= self.low:
            return [self.low]
        raw = (self.high - self.low) / count
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * (1 - 1e-9))
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [round(k * step, 12) for k in range(first, last + 1)]


class Series(NamedTuple):
    """A line: what its end is called, whose it is, its points, and perhaps a range at each point."""

    name: str
    arm: str
    points: Sequence[tuple[float, float]]
    ranges: Sequence[tuple[float, float]] = ()
    dots: bool = True
    """Whether each point is marked; if not, only the last."""
    tip: str = ""
    """Unit of the values, for the tips."""


class Figure(NamedTuple):
    """A plot with its finding, what its axes are, and its numbers as a table."""

    title: str
    note: str
    svg: Markup
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


class Label(NamedTuple):
    """Lines of text to the right of a plot, as near to a height as other labels allow."""

    y: float
    lines: tuple[str, ...]
    ink: str


def axis_text(value: float) -> str:
    """A tick's number: short, with a true minus."""
    text = number(round(value) if value == round(value) else value)
    if abs(value) >= 1e6:
        text = f"{number(value / 1e6)} M"
    elif 0 < abs(value) < 1e-3:
        mantissa, exponent = f"{value:.1e}".split("e")
        text = f"{plain(mantissa)}e{int(exponent)}"
    return text.replace("-", "−")


def width_of(text: str) -> float:
    """About how wide a label is, in pixels, in one of the wider system fonts."""
    narrow, broad = " .,:;'|!()[]ijltfr", "mwMW%…"
    return sum(
        12.0 if unicodedata.east_asian_width(c) in "WF" else 0.0 if unicodedata.combining(c) else 4.2 if c in narrow else 11.0 if c in broad else 7.2
        for c in text
    )


def fit(text: str, room: float) -> str:
    """A label cut to the room there is."""
    while text and width_of(text) > room:
        text = text.rstrip("…")[:-1] + "…" if len(text.rstrip("…")) > 1 else ""
    return text


def from_to(every: Sequence[Series]) -> str:
    """Each line in words, for those who cannot see it."""
    return "; ".join(f"{x.name.split(chr(10))[0]} from {number(x.points[0][1])} to {number(x.points[-1][1])}{x.tip}" for x in every) + "."


def spread(wanted: Sequence[tuple[float, float]], low: float, high: float) -> list[float]:
    """Centres for labels given by wanted centre and height: near those, in their order, without overlap, within `low` to `high` if they fit."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i][0])
    tops, edge = [0.0] * len(wanted), low
    for i in order:
        tops[i] = max(wanted[i][0] - wanted[i][1] / 2, edge)
        edge = tops[i] + wanted[i][1]
    edge = max(high, low + sum(height for _, height in wanted))
    for i in reversed(order):
        tops[i] = min(tops[i], edge - wanted[i][1])
        edge = tops[i]
    return [top + wanted[i][1] / 2 for i, top in enumerate(tops)]


class Canvas:
    """An SVG that grows: elements with escaped text, `title` and `desc` first."""

    def __init__(
        self, key: str, title: str, about: str, height: float = 240, left: float = 44, right: float = 284, top: float = 12, bottom: float = 196
    ):
        """Args:
        key: a name that no other figure of the page has.
        title: what is drawn against what.
        about: what somebody who cannot see it should know.
        height, left, right, top, bottom: of the whole and of the plot in it, in pixels.
        """
        self.left, self.right, self.top, self.bottom = left, right, top, bottom
        box = {"viewBox": f"0 0 {WIDTH} {plain(f'{height:.1f}')}", "role": "img", "aria-labelledby": f"{key}-title {key}-desc"}
        self.root = ElementTree.Element("svg", box)
        self.add("title", title, id=f"{key}-title")
        self.add("desc", about, id=f"{key}-desc")

    def add(self, tag: str, text: str = "", tip: str = "", **attributes: str | float) -> None:
        """One element; floats are pixels."""
        named = {"class" if k == "cls" else k.replace("_", "-"): v if isinstance(v, str) else plain(f"{v:.1f}") for k, v in attributes.items()}
        element = ElementTree.SubElement(self.root, tag, {k: v for k, v in named.items() if v})
        element.text = text or None
        if tip:
            ElementTree.SubElement(element, "title").text = tip

    def text(self, x: float, y: float, text: str, cls: str = "", anchor: str = "") -> None:
        """A label whose baseline starts, ends or is centred at x, y."""
        self.add("text", text, x=x, y=y, cls=cls, text_anchor=anchor)

    def line(self, points: Sequence[tuple[float, float]], cls: str) -> None:
        """A line through pixels."""
        self.add("path", cls=cls, d="M" + "L".join(f"{plain(f'{x:.1f}')} {plain(f'{y:.1f}')}" for x, y in points))

    def mark(self, arm: str, x: float, y: float, tip: str = "", size: float = 3.0) -> None:
        """The sign of an arm: a square for the baseline, a ring for the start, else a disc."""
        cls = MARKS.get(arm, "o")
        if cls == "b":
            self.add("rect", tip=tip, cls=cls, x=x - 0.9 * size, y=y - 0.9 * size, width=1.8 * size, height=1.8 * size)
        else:
            self.add("circle", tip=tip, cls=cls, cx=x, cy=y, r=size)

    def axes(self, x: Scale, y: Scale | None, label: str, x_ticks: Sequence[float] = (), x_text: Callable[[float], str] = axis_text) -> None:
        """A line of figures below, ending where the data ends, and faint lines across."""
        for value, up in [(value, y(value)) for value in y.ticks()] if y is not None else ():
            self.line([(self.left, up), (self.right, up)], "gr")
            self.text(self.left - 6, up + 4, axis_text(value), anchor="end")
        base = self.bottom + 7
        self.line([(x.start, base), (x.end, base)], "ax")
        edge = -math.inf
        for value in x_ticks or x.ticks():
            text, at = x_text(value), x(value)
            self.line([(at, base), (at, base + 4)], "ax")
            if at - width_of(text) / 2 > edge + 4:
                self.text(at, base + 16, text, anchor="middle")
                edge = at + width_of(text) / 2
        self.text((x.start + x.end) / 2, base + 31, label, "l", "middle")

    def series(self, every: Sequence[Series], x: Scale, y: Scale, extra: Sequence[Label] = ()) -> None:
        """Lines with their marks, each named where it ends."""
        labels = list(extra)
        for one in every:
            pixels = [(x(a), y(b)) for a, b in one.points]
            self.line(pixels, f"ln {MARKS.get(one.arm, 'o')}")
            for (at, _), (low, high) in zip(pixels, one.ranges, strict=False):
                self.line([(at, y(low)), (at, y(high))], f"eb {MARKS.get(one.arm, 'o')}")
            labels.append(Label(pixels[-1][1], tuple(one.name.split("\n")), INKS.get(one.arm, "n")))
        for one in every:
            for a, b in one.points if one.dots else one.points[-1:] if one.arm != "teacher" else ():
                self.mark(one.arm, x(a), y(b), f"{one.name.split(chr(10))[0]}: {number(b)}{one.tip}", 3.0 if one.dots else 3.6)
        self.labels(labels)

    def labels(self, labels: Sequence[Label]) -> None:
        """Text right of the plot, moved apart where it would overlap."""
        centres = spread([(label.y, LINE * len(label.lines)) for label in labels], self.top - 6, self.bottom + 4)
        for label, centre in zip(labels, centres, strict=True):
            for i, text in enumerate(label.lines):
                y = centre + LINE * (i - (len(label.lines) - 1) / 2) + 4
                self.text(self.right + 9, y, fit(text, WIDTH - self.right - 9), label.ink)

    def html(self) -> Markup:
        """The drawing, safe to be put into a page: its texts were escaped when it was written."""
        return Markup(ElementTree.tostring(self.root, encoding="unicode"))
