"""How many steps fit into a given time."""

BACKWARD = 3.5
"""A training step costs so many forward passes of the student: measured between 3.4 and 3.7 on CPUs."""
FEWEST = 8
"""A run with fewer steps than these shows nothing."""


def affordable(minutes: float, spent_seconds: float, per_target: dict[str, float], targets: int, arms: int, after_seconds: float) -> int:
    """Steps that fit into `minutes`, given what is spent already and what comes afterwards.

    Args:
        per_target: seconds of a forward pass by role, as measured: `teacher`, `student`.
        targets: predictions of one window.
        arms: students that are trained: the distilled one and its baselines.
        after_seconds: evaluation and export.
    """
    step = targets * (per_target.get("teacher", 0.0) + arms * BACKWARD * per_target["student"])
    return max(FEWEST, int((minutes * 60 - spent_seconds - after_seconds) / max(step, 1e-9)))
