"""How many steps fit into a given time."""

from collections.abc import Sequence

from limbeck.model.base import Role
from limbeck.student.base import Surgery
from limbeck.train.stage import Stage

BACKWARD = 3.5
"""A training step costs so many forward passes of the student: measured between 3.4 and 3.7 on CPUs."""
FEWEST = 8
"""A run with fewer steps than these shows nothing."""
FITTED = 1.5
"""Looks at a row that fitting a student on it takes: student and teacher hear it, without their heads, and there are the products that fit."""


def affordable(seconds: float, a_step: float) -> int:
    """Steps that fit into so many seconds, where one step of all students, the distilled one and its baselines, takes `a_step` seconds."""
    return max(FEWEST, int(seconds / max(a_step, 1e-9)))


def of_stages(stages: Sequence[Stage]) -> list[Surgery]:
    """Surgeries of stages, as often as the stages are repeated."""
    return [surgery for stage in stages for surgery in stage.surgery * stage.repeat]


def measured(surgeries: Sequence[Surgery], begun: Role | None) -> int:
    """How often surgeries score a student that begins as this role, at most."""
    return 0 if begun is None else sum(surgery.measures(begun) for surgery in surgeries)


def fitted(stages: Sequence[Stage], most: int) -> int:
    """Training rows that stages fit a student on before they learn, of at most so many."""
    return sum(min(stage.reconstruct.rows, most) for stage in stages if stage.reconstruct)
