"""How many steps fit into a given time."""

BACKWARD = 3.5
"""A training step costs so many forward passes of the student: measured between 3.4 and 3.7 on CPUs."""
FEWEST = 8
"""A run with fewer steps than these shows nothing."""


def affordable(seconds: float, a_step: float) -> int:
    """Steps that fit into so many seconds, where one step of all students, the distilled one and its baselines, takes `a_step` seconds."""
    return max(FEWEST, int(seconds / max(a_step, 1e-9)))
