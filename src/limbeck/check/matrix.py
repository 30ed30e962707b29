"""Every objective with every teacher and every alignment: exact, approximate with its error, or refused with its message; nothing else."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

from torch import Tensor

from limbeck.align.base import Align
from limbeck.check import kinds, locate
from limbeck.check.models import Trial, Untold, pair
from limbeck.check.reads import variants
from limbeck.check.teacher import beside, kept_of
from limbeck.component import Component, canonical_json
from limbeck.errors import Refused
from limbeck.model.base import Models
from limbeck.objective.base import Objective
from limbeck.teacher.base import Teacher
from limbeck.terminal import columns
from limbeck.text.show import visible

SAME = 1e-5
"""Gap of two gradients, relative to their size, that counts as none."""
TRIES = 5
"""Seeds that are tried until something can be told."""
Verdict = Literal["exact", "approximate", "refused", "wrong"]


class Cell(NamedTuple):
    """What comes of one objective with one teacher and one alignment."""

    objective: str
    teacher: str
    align: str
    verdict: Verdict
    error: float | None
    """Gap of the student's gradient from that with the live teacher, relative to its size; None where it is refused."""
    message: str
    """Why it is refused, approximate or wrong."""


def cells(seed: int = 0, objectives: Sequence[Objective] | None = None, teachers: Sequence[Teacher] | None = None) -> Iterator[Cell]:
    """All combinations on small text models, or those of some objectives and teachers; each is held against the live, dense teacher."""
    aligns: list[Align | None] = [None, *(locate(f"align.{kind}").example() for kind in kinds("align"))]
    every: Any = [one for kind in kinds("teacher") for one in variants(locate(f"teacher.{kind}").example())]
    for teacher in teachers or every:
        for objective in objectives or [locate(f"objective.{kind}").example() for kind in kinds("objective")]:
            for align in aligns:
                yield cell(suited(objective, align), teacher, align, seed)


def suited(objective: Objective, align: Align | None) -> Objective:
    """The objective in the form in which it listens to chunks, beside an alignment that makes them, if it has one."""
    every: Any = variants(objective) if align is not None and align.crosses else [objective]
    return next((one for one in every if one.unit == "chunk"), objective)


def cell(objective: Objective, teacher: Teacher, align: Align | None, seed: int = 0, tries: int = TRIES) -> Cell:
    """One combination; what is neither exact nor says that it is not, is wrong, and so is any error but a refusal.

    Models of other seeds are tried where nothing can be told of one: some objectives are silent where the student is right nowhere.
    """
    name = named(objective), named(teacher), named(align) if align else "none"
    turn: dict[str, Any] = {"objective": (objective,), "align": (align,) if align else ()}
    try:
        models, kept = opened(teacher, seed)
        trial = Trial(seed, teacher, kept, models=models, **turn)
        found = trial.whole[0]
        expected = Trial(seed, models=Models({**models, "teacher": pair(seed)["teacher"]}), **turn).whole[0]
    except Untold as error:
        return cell(objective, teacher, align, seed + 1, tries - 1) if tries > 1 else Cell(*name, "wrong", None, str(error))
    except Refused as error:
        return Cell(*name, "refused", None, f"{error.expected}; {error.got}; {error.do}")
    except Exception as error:
        return Cell(*name, "wrong", None, f"{type(error).__name__}: {error}")
    gap = relative(found, expected)
    said = [note for note in trial.running.settled.notes if "approximate" in note] + [teacher.rounds] * bool(teacher.rounds)
    if gap <= SAME:
        return Cell(*name, "exact", gap, "")
    return Cell(*name, "approximate" if said else "wrong", gap, "; ".join(said) or "its gradient is another one, and nothing says so")


LAST: dict[tuple[str, int], tuple[Models, dict[str, Any]]] = {}
"""Roles and kept answers of the teacher that was tried last: its cells follow each other."""


def opened(teacher: Teacher, seed: int) -> tuple[Models, dict[str, Any]]:
    """The roles of a run with this teacher, and what it has said about the rows."""
    key = canonical_json(teacher), seed
    if key not in LAST:
        LAST.clear()
        LAST[key] = beside(teacher, seed), kept_of(teacher, seed)
    return LAST[key]


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def named(component: Component) -> str:
    """Its kind, and the choices in which it differs from its example."""
    usual = type(component).example()
    own = [f"{name}={value}" for name, value in component if name != "kind" and value != getattr(usual, name)]
    return " ".join([dict(component)["kind"], *own])


def rendered(found: Sequence[Cell]) -> str:
    """A table: a line an objective and alignment, a column a teacher; teachers and reasons are numbered, and written out below."""
    teachers = list(dict.fromkeys(c.teacher for c in found))
    reasons = list(dict.fromkeys(c.message for c in found if c.verdict in ("refused", "wrong")))
    at = {(c.objective, c.align, c.teacher): c for c in found}
    rows = [["objective", "align", *(f"T{i}" for i in range(1, len(teachers) + 1))]]
    for objective, align in dict.fromkeys((c.objective, c.align) for c in found):
        rows.append([objective, align, *(shown(at[objective, align, teacher], reasons) for teacher in teachers)])
    out = [*columns(rows), "", *(f"T{i}  {teacher}" for i, teacher in enumerate(teachers, 1))]
    out += ["", "~ the student's gradient differs by that share from the one with the live teacher; - refused, for the reason"]
    out += [f"[{i}] {visible(reason)}" for i, reason in enumerate(reasons, 1)]
    num = Counter(c.verdict for c in found)
    return "\n".join([*out, f"{len(found)} cells · " + " · ".join(f"{num[v]} {v}" for v in ("exact", "approximate", "refused", "wrong"))])


def shown(c: Cell, reasons: Sequence[str]) -> str:
    if c.verdict == "exact":
        return "exact"
    return f"~ {c.error:.1e}" if c.verdict == "approximate" else f"{'-' if c.verdict == 'refused' else 'WRONG'} [{reasons.index(c.message) + 1}]"
