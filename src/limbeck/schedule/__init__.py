"""Numbers that move with the step."""

from limbeck.schedule.base import NonNegative, Positive, Scalar, Schedule, Share

__all__ = ["NonNegative", "Positive", "Scalar", "Schedule", "Share"]
