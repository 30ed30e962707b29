"""The contracts as a test suite: every pair of a member and a contract, and what came of it, for our tests and those of other packages."""

from functools import cache
from typing import Any, NamedTuple

from limbeck.check import check, contracts, hold, kinds, locate
from limbeck.check.report import Outcome


class Pair(NamedTuple):
    """A member of a room, and a contract that it must keep."""

    room: str
    kind: str
    contract: str

    @property
    def slow(self) -> bool:
        """Whether the contract belongs into a slow suite."""
        return getattr(contracts(self.room)[self.contract], "slow", False)

    def __str__(self) -> str:
        return f"{self.kind}-{self.contract}"


def pairs(room: str) -> list[Pair]:
    """All members of a room (for `role`, all known families), each with all contracts; nothing is listed anywhere."""
    return [Pair(room, kind, name) for kind in kinds(room) for name in contracts(room)]


@cache
def member(room: str, kind: str) -> Any:
    """The class of a kind; a small model of a family."""
    return locate(f"{room}.{kind}")


@cache
def outcome(pair: Pair) -> Outcome:
    """What came of it; each pair is run once a process."""
    return hold(member(pair.room, pair.kind), pair.contract, contracts(pair.room)[pair.contract])


def keep(pair: Pair) -> None:
    """Raises where the contract is broken; one that is not claimed is kept."""
    found = outcome(pair)
    again = f"limbeck check {pair.room}.{pair.kind} --only {pair.contract}"
    assert found.status != "failed", f"{pair.kind} breaks {pair.contract}: {found.message}\n  again: {again}"


def bite(component: Any, contract: str) -> str:
    """The complaint of a contract about a component that breaks it; raises where it finds nothing to complain about."""
    (found,) = check(component, only=contract).rows
    assert found.status == "failed", f"{contract} does not notice it: {found.status} {found.message}"
    return found.message
