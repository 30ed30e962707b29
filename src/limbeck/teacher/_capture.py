"""Asks a teacher that remembers about rows, and keeps what it says, so that any run may use it again."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from limbeck.errors import Failed
from limbeck.model.base import Role
from limbeck.model.recorded import refuse_missing
from limbeck.signals import Row
from limbeck.store import Answers
from limbeck.teacher._remembering import AbstractRemembering

PART_ROWS = 64
"""Rows a part: what a killed capture loses at most."""
FIRST_ROWS = 8
"""Rows of the first part: how large states are is measured on them, for all others."""
MEASURED = 2048
"""Entries that are measured, at most."""


def capture(
    teacher: AbstractRemembering, role: Role, rows: Sequence[Row], answers: Answers, tell: Callable[[int, int], None] = lambda done, total: None
) -> int:
    """Adds to the answers what is missing of these rows; returns how many rows were asked about, each once, whoever else asks.

    Args:
        tell: is called with rows done and rows in all.
    """
    named = {row.key: row for row in rows}
    wanted, asked = answers.missing(named), 0
    if not answers.writes:
        refuse_missing(answers.folder, len(named), len(wanted))
    while wanted:
        with answers.turn():
            wanted = answers.missing(wanted)  # another process may have asked meanwhile
            some = [named[key] for key in wanted[: PART_ROWS if len(answers) else FIRST_ROWS]]
            if some:
                add(answers, teacher, ask(teacher, role, some))
        asked, wanted = asked + len(some), wanted[len(some) :]
        tell(len(named) - len(wanted), len(named))
    return asked


def ask(teacher: AbstractRemembering, role: Role, rows: Sequence[Row]) -> dict[str, Mapping[str, Tensor]]:
    """What the teacher says about each row; not finite, it is refused."""
    found: dict[str, Mapping[str, Tensor]] = {}
    for first in range(0, len(rows), teacher.at_once):
        found |= teacher.capture(rows[first : first + teacher.at_once], role)
    for key, said in found.items():
        for name, x in said.items():
            if x.is_floating_point() and not torch.isfinite(x).all():
                where = f"teacher {', '.join(teacher.references)}  row {key}"
                raise Failed("nan", where, "finite answers", f"{name} is not", "look at the row, or at the teacher's dtype", code=5)
    return found


def add(answers: Answers, teacher: AbstractRemembering, said: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Packs and writes what was said as one part."""
    names = list(next(iter(said.values())))
    every = {name: torch.cat([one[name] for one in said.values()]) for name in names}
    tensors, whole = teacher.pack(every, others(answers) if teacher.bits == 8 else None)
    lengths = {key: {name: len(one[name.partition("/")[0]]) for name in tensors} for key, one in said.items()}
    answers.append(tensors, lengths, whole)


def others(answers: Answers) -> dict[str, Tensor]:
    """What was said about the first rows, which are there in more bits: a capture that was stopped goes on with the same measure."""
    found: dict[str, list[Tensor]] = {}
    for key in (key for name in sorted(answers.parts) if not answers.parts[name].whole for key in answers.parts[name].rows):
        if sum(len(x) for x in next(iter(found.values()), [])) >= MEASURED:
            break
        for name, x in answers[key].items():
            found.setdefault(name, []).append(x)
    return {name: torch.cat(some) for name, some in found.items()}
