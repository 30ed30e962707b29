"""Numbers that move with the step."""

from limbeck.schedule.base import Positive, Scalar, Schedule, Share

__all__ = ["Positive", "Scalar", "Schedule", "Share"]
