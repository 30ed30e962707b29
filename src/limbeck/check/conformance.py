"""Everything against every invariance, as one table: what must not change a gradient, and whether it does."""

from collections.abc import Mapping, Sequence
from typing import Any

from limbeck.check import check_path, kinds, render
from limbeck.check.report import Report
from limbeck.errors import Refused
from limbeck.terminal import columns

INVARIANCES: dict[str, tuple[str, ...]] = {
    "padding": ("padding",),
    "packing": ("packing",),
    "accumulation": ("accumulation",),
    "chunk size": ("chunks",),
    "cached": ("cached_teacher", "equals_live"),
    "merged": ("merges",),
    "resume": ("resumes", "windows_resume"),
    "ranks": ("ranks",),
}
"""Column -> the contracts that stand for it. `2 processes` is the column after these: real processes under DDP."""
TRAINED = ("objective", "forward", "align")
"""Rooms whose members run in two processes."""


def conformance(only: str | None = None, seed: int = 0) -> dict[str, Any]:
    """`reports` of every component, what two `processes` found, and whether all `passed`."""
    reports = check_path("all", only=only, seed=seed)
    apart = {} if only else processes(seed)
    passed = all(report.passed for report in reports) and not any(apart.values())
    return {"passed": passed, "reports": reports, "processes": apart}


def processes(seed: int) -> dict[str, str | None]:
    """What two processes under DDP say of all that is trained with."""
    from limbeck.check.processes import together

    try:
        return together([f"{room}.{kind}" for room in TRAINED for kind in kinds(room)], seed)
    except (RuntimeError, OSError) as error:
        raise Refused("ranks", "check --all", "two processes that meet on this machine", str(error), "see whether torch has gloo", code=3) from None


def table(reports: Sequence[Report], apart: Mapping[str, str | None]) -> list[list[str]]:
    """A line a component that claims any invariance: ✓ kept, ✗ broken, · not claimed."""
    out = [["component", *INVARIANCES, "2 processes", "contracts"]]
    for report in reports:
        status = {row.contract: row.status for row in report.rows}
        cells = [mark([status[name] for name in names if name in status]) for names in INVARIANCES.values()]
        said = apart.get(report.again)
        cells.append("·" if said is None else "✗" if said else "✓")
        if set(cells) != {"·"}:
            out.append([report.again, *cells, f"{report.num('passed')} of {len(report.rows)}"])
    return out


def mark(statuses: Sequence[str]) -> str:
    return "✗" if "failed" in statuses else "✓" if "passed" in statuses else "·"


def rendered(found: Mapping[str, Any]) -> str:
    """The table, what broke with the command that repeats it, and the sums."""
    reports, apart = found["reports"], found["processes"]
    lines = columns(table(reports, apart))
    lines += [render(report) for report in reports if not report.passed]
    lines += [f"✗ {name} in two processes: {said}" for name, said in apart.items() if said]
    num = {status: sum(report.num(status) for report in reports) for status in ("passed", "failed", "not claimed")}
    return "\n".join([*lines, f"{len(reports)} components · " + " · ".join(f"{n:,} {status}" for status, n in num.items())])
