"""Who hears how a run goes."""

import logging
from typing import Protocol

logger = logging.getLogger(__name__)


class Tell(Protocol):
    """Who hears how a run goes: the command line, or nobody."""

    def done(self, step: str, text: str, seconds: float) -> None: ...
    def bar(self, step: str, done: int, total: int, text: str) -> None:
        """How much of how much is done; a total of 0 is not known."""


class Quiet:
    """Tells the log only."""

    def done(self, step: str, text: str, seconds: float) -> None:
        logger.info("%s: %s (%.1f s)", step, text, seconds)

    def bar(self, step: str, done: int, total: int, text: str) -> None: ...
