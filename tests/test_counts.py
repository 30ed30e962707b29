"""How many pairs of a member and a contract ran, room by room: a suite that shrinks unnoticed is worse than one that fails.

`contract_counts.json` holds, for each room, how many pairs ran at least (neither failed nor not claimed); why a contract may be
claimed by no member of a room at all; and why a field need not be read. Numbers are raised when members come; lowering one needs a
reason in the same change.
"""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from limbeck.check import contracts, kinds
from limbeck.check.suite import member, outcome, pairs
from limbeck.component import ROOMS

STORED = json.loads((Path(__file__).parent / "contract_counts.json").read_text())


def ran(room: str) -> tuple[Counter[str], dict[str, str]]:
    """Contract -> members that it ran over; pair -> why it is not claimed."""
    found = {pair: outcome(pair) for pair in pairs(room) if not pair.slow}
    reasons = {str(pair): o.message for pair, o in found.items() if o.status == "not claimed"}
    return Counter(pair.contract for pair, o in found.items() if o.status == "passed"), reasons


@pytest.mark.parametrize("room", [*ROOMS, "role"])
def test_no_fewer_contracts_run_than_before(room: str, record_property: Callable[[str, Any], None]) -> None:
    count, unclaimed = ran(room)
    record_property("not claimed", unclaimed)
    print(f"{room}: {len(kinds(room))} members, {count.total()} ran, {len(unclaimed)} not claimed")
    print("\n".join(f"  {pair}: {reason}" for pair, reason in unclaimed.items()))
    assert count.total() >= STORED["ran"][room], f"{count.total()} pairs ran, {STORED['ran'][room]} did before"
    assert all(unclaimed.values()), "a contract is not claimed, and does not say why"


@pytest.mark.parametrize("room", [*ROOMS, "role"])
def test_every_contract_runs_over_some_member_or_says_why_not(room: str) -> None:
    idle = {name for name in contracts(room) if not ran(room)[0][name] and not getattr(contracts(room)[name], "slow", False)}
    assert idle <= STORED["claimed by none"].get(room, {}).keys(), f"no member of {room} claims {', '.join(sorted(idle))}"


def test_fields_that_need_not_be_read_are_counted_with_their_reasons() -> None:
    found = {f"{room}.{kind}.{field}" for room in ROOMS for kind in kinds(room) for field in member(room, kind).unread}
    assert found == STORED["unread"].keys()
