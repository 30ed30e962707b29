"""What the command line shows: lines to stdout, progress to stderr, nothing told by colour alone."""

import os
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from limbeck.export._verdict import closeness, sources
from limbeck.export.report import header, table, unmeasured, verdict, weakest
from limbeck.text.show import duration, visible

PLAIN_SECONDS = 30.0
"""Without a terminal: a line of progress after so long."""


def console(stderr: bool = False) -> Console:
    """A console that obeys NO_COLOR, FORCE_COLOR and COLUMNS, and never takes foreign text for markup."""
    return Console(stderr=stderr, highlight=False, markup=False, soft_wrap=True)


def symbols() -> tuple[str, str, str]:
    """Done, failed, going on: in ASCII where the terminal has no UTF-8."""
    return ("✓", "✗", "▸") if "utf" in (sys.stderr.encoding or "").lower() else ("+", "x", ">")


class Progress:
    """Tells how a run goes: a line a step; between them a bar on a terminal, else a plain line now and then."""

    def __init__(self, quiet: bool = False):
        self.out, self.quiet = console(stderr=True), quiet
        self.live = self.out.is_terminal and not quiet
        self.began: dict[str, tuple[float, int]] = {}
        self.last = 0.0

    def line(self, text: str) -> None:
        if not self.quiet:
            self.out.print(text)

    def done(self, step: str, text: str, seconds: float) -> None:
        """A finished step."""
        if self.live:
            self.out.print("\r\x1b[2K", end="")
        self.line(f"{symbols()[0]} {step:<10} {visible(text, 400)}   {duration(seconds)}")
        self.began.pop(step, None)

    def bar(self, step: str, done: int, total: int, text: str) -> None:
        """How far a step is; time left from what has passed since it began here, after 3 units. A total of 0 is not known."""
        now = time.monotonic()
        began, first = self.began.setdefault(step, (now, done))
        left = f" · {duration((now - began) / (done - first) * (total - done))} left" if total and done - first >= 3 else ""
        said = f"{step:<10} {done:,}{f'/{total:,} ·' if total else ''} {visible(text, 200)}{left}"
        if self.live:
            width = 24 if total else 0
            full = round(width * done / (total or 1))
            self.out.print(f"\r\x1b[2K{symbols()[2]} {said[:11]}{'━' * full}{'─' * (width - full)} {said[11:]}"[: self.out.width + 5], end="")
        elif not self.quiet and now - self.last >= PLAIN_SECONDS:
            self.last = now
            self.out.print(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {said}")


def columns(rows: list[list[str]], right: set[int] | None = None) -> list[str]:
    """Rows as aligned columns, two spaces apart."""
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(max(map(len, rows), default=0))]
    out = []
    for row in rows:
        cells = [cell.rjust(w) if i in (right or ()) else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=False))]
        out.append("  ".join(cells).rstrip())
    return out


def summary_lines(summary: dict[str, Any], path: Path) -> list[str]:
    """The table, the verdict and what was not measured, as in the report."""
    heads = header(summary)
    rows = [["", *heads.values()]]
    figures = table(summary)
    for row in figures:
        student = " ".join(x for x in (row.student, row.error, row.times) if x)
        cells = {"teacher": row.teacher, "start": row.start, "baseline": row.baseline, "student": student}
        rows.append([row.name, *(cells[arm] for arm in heads)])
    missing = unmeasured(summary)
    weak = weakest(summary)
    error = f"± is the standard error over {sources(summary)}." if any(row.error for row in figures) else ""
    notes = [f"{weak}." if weak and not weak.endswith(".") else weak, *missing, error]
    writes = summary.get("writes", summary.get("unit", "token") == "token") and closeness(summary)
    talk = f" · talk to it: limbeck chat {path.name}" if writes else ""
    return [
        "",
        *(f"  {line}" for line in columns(rows, set(range(1, 9)))),
        "",
        *textwrap.wrap(verdict(summary), 96, initial_indent="  ", subsequent_indent="  "),
        *textwrap.wrap(" ".join(n for n in notes if n), 96, initial_indent="  ", subsequent_indent="  "),
        f"  report {os.path.relpath(path / 'report.html')}{talk}",
    ]
