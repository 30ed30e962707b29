"""The result of a check, and how a terminal shows it."""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from limbeck.text.show import visible

Status = Literal["passed", "failed", "not claimed"]
WIDTH = 100


class Outcome(NamedTuple):
    """One contract, held against one component."""

    contract: str
    status: Status
    message: str
    """What was wrong, or why it is not claimed."""
    seconds: float


@dataclass(frozen=True)
class Report:
    """All outcomes of one component."""

    name: str
    """Its kind."""
    room: str
    rows: tuple[Outcome, ...]
    num_contracts: int
    """Contracts of the room; fewer ran where some were picked."""
    again: str = ""
    """How it is named on the command line."""
    seed: int = 0

    def num(self, status: Status) -> int:
        """How many outcomes have a status."""
        return sum(row.status == status for row in self.rows)

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return not self.num("failed")

    @property
    def code(self) -> int:
        """Exit code: 5 where the answer is no."""
        return 0 if self.passed else 5

    def as_json(self) -> dict[str, Any]:
        """The same words for a script."""
        return {
            "schema": 1,
            "name": self.name,
            "room": self.room,
            "seed": self.seed,
            "contracts": self.num_contracts,
            "passed": self.num("passed"),
            "failed": self.num("failed"),
            "not_claimed": self.num("not claimed"),
            "rows": [row._asdict() for row in self.rows],
        }


def render(report: Report, reasons: bool = False) -> str:
    """As `limbeck check` shows it; with `reasons`, also why contracts are not claimed."""
    lines = [f"{report.name} · {report.room} · {report.num_contracts} contracts"]
    lines += wrapped([f"{spaced(row.contract)} ✓" for row in report.rows if row.status == "passed"])
    width = max((len(row.contract) for row in report.rows), default=0)
    for row in report.rows:
        if row.status == "failed":
            first, *others = visible(row.message, 2_000, 12).splitlines() or [""]
            lines.append(f"  ✗ {row.contract:{width}}   {first}")
            lines += [" " * (width + 7) + line for line in others]
            lines.append(" " * (width + 7) + f"again: limbeck check {report.again} --only {row.contract} --seed {report.seed}")
        elif row.status == "not claimed" and reasons:
            lines.append(f"  - {row.contract:{width}}   {visible(row.message)}")
    counts = " · ".join(f"{report.num(status)} {status}" for status in ("passed", "failed", "not claimed"))
    return "\n".join([*lines, f"{counts} · {len(report.rows)} of {report.num_contracts} ran"])


def spaced(name: str) -> str:
    """A contract's name as words."""
    return name.replace("_", " ")


def wrapped(items: list[str]) -> list[str]:
    """Items in lines of at most the width, two spaces in front of each."""
    lines: list[str] = []
    for item in items:
        if lines and len(lines[-1]) + 2 + len(item) <= WIDTH:
            lines[-1] += "  " + item
        else:
            lines.append("  " + item)
    return lines
