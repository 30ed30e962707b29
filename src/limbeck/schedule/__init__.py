"""Numbers that move with the step."""

from limbeck.schedule.base import Count, NonNegative, Positive, Scalar, Schedule, Share

__all__ = ["Count", "NonNegative", "Positive", "Scalar", "Schedule", "Share"]
