"""What was sent to a server and what it cost, over all runs and processes; and the budget that is not exceeded."""

import json
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limbeck.errors import Refused
from limbeck.store import Log, corrupt, disk

LOCK_SECONDS = 60.0
"""Longest wait for another process that writes a line."""


@dataclass(frozen=True)
class Budget:
    """The most that a server may be paid in all, and its prices."""

    tokens: int | None = None
    """Tokens read and written; none: no bound."""
    usd: float | None = None
    usd_per_million_in: float = 0.0
    usd_per_million_out: float = 0.0

    def dollars(self, tokens_in: int, tokens_out: int) -> float:
        """The price of so many tokens."""
        return (tokens_in * self.usd_per_million_in + tokens_out * self.usd_per_million_out) / 1e6


class Ledger:
    """A file of one line a sending and one line an answer. What was sent and never answered counts as paid: nobody knows."""

    def __init__(self, path: Path, budget: Budget, where: str):
        self.log, self.budget, self.where = Log(path), budget, where
        self.open: dict[str, tuple[int, int]] = {}
        """Request -> tokens in and out that were estimated, as long as there is no answer."""
        self.paid_in, self.paid_out, self.offset = 0, 0, 0
        self.guard = threading.Lock()

    def catch_up(self) -> None:
        """Takes up what this process or another has written since."""
        path = self.log.path
        with disk(path):
            if not path.is_file():
                return
            with open(path, "rb") as file:
                file.seek(self.offset)
                data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        for line in whole.splitlines():
            try:
                self.take(json.loads(line))
            except (ValueError, KeyError, TypeError, RecursionError):
                raise corrupt(path, "lines of a ledger", ascii(line[:60])) from None
        self.offset += len(whole)

    def take(self, record: dict[str, Any]) -> None:
        """One line: a request that was `sent`, was `answered`, or was turned away and is `free`."""
        key, tokens = record["request"], (int(record.get("in", 0)), int(record.get("out", 0)))
        before = self.open.pop(key, (0, 0))
        if record["event"] == "sent":
            self.open[key] = tokens
        paid = {"sent": before, "answered": tokens, "free": (0, 0)}[record["event"]]
        self.paid_in, self.paid_out = self.paid_in + paid[0], self.paid_out + paid[1]

    def spent(self) -> tuple[int, int]:
        """Tokens in and out that were paid, or may have been."""
        with self.guard:
            self.catch_up()
            return self.sums()

    def sums(self) -> tuple[int, int]:
        return self.paid_in + sum(a for a, _ in self.open.values()), self.paid_out + sum(b for _, b in self.open.values())

    def send(self, key: str, tokens_in: int, tokens_out: int) -> bool:
        """Writes down that a request is about to be sent; returns whether it was sent before and never answered.

        Raises:
            Refused: `budget`, if it could cost more than is left.
        """
        with self.guard, self.log.alone(LOCK_SECONDS):
            self.catch_up()
            spent_in, spent_out = self.sums()
            self.afford(spent_in, spent_out, tokens_in, tokens_out)
            again = key in self.open
            self.log.append([{"request": key, "event": "sent", "in": tokens_in, "out": tokens_out}])
            self.catch_up()
            return again

    def settle(self, key: str, event: str, tokens_in: int = 0, tokens_out: int = 0) -> None:
        """Writes down what came of it: `answered`, with the tokens that the server counted, or `free`."""
        with self.guard, self.log.alone(LOCK_SECONDS):
            self.log.append([{"request": key, "event": event, "in": tokens_in, "out": tokens_out}])
            self.catch_up()

    def afford(self, spent_in: int, spent_out: int, tokens_in: int, tokens_out: int) -> None:
        budget, spent, more = self.budget, spent_in + spent_out, tokens_in + tokens_out
        do = "it is asked again where it stopped, and nothing twice; answers that are kept cost nothing"
        if budget.tokens is not None and spent + more > budget.tokens:
            got = f"{spent:,} spent, and the next request may take {more:,}"
            raise Refused("budget", self.where, f"at most {budget.tokens:,} tokens", got, f"raise budget_tokens: {do}", code=3)
        dollars, next_dollars = budget.dollars(spent_in, spent_out), budget.dollars(tokens_in, tokens_out)
        if budget.usd is not None and dollars + next_dollars > budget.usd:
            got = f"{dollars:,.4f} spent, and the next request may cost {next_dollars:,.4f}"
            raise Refused("budget", self.where, f"at most {budget.usd:,.2f} dollars", got, f"raise budget_usd: {do}", code=3)
