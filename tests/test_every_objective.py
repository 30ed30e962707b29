"""What every objective must do: each one against each contract, and its stored output. A new one is tested here without being listed.

`python tests/test_every_objective.py` stores the output of objectives that are new, or whose revision was raised.
"""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from limbeck.check import kinds
from limbeck.check.example import build, say, solve
from limbeck.check.suite import Pair, keep, member, pairs

GOLDEN = Path(__file__).parent / "golden" / "objective.json"


@pytest.mark.parametrize("pair", [pytest.param(pair, id=str(pair), marks=[pytest.mark.slow] * pair.slow) for pair in pairs("objective")])
def test_every_objective_keeps_its_contracts(pair: Pair) -> None:
    keep(pair)


def output(kind: str) -> dict[str, Any]:
    """Revision, and value and size of the gradient on example signals in double precision."""
    objective = member("objective", kind).example()
    said = say(objective, seed=0)
    total, gradient, _ = solve(objective, said, build(objective, said))
    return {"revision": objective.revision, "value": float(f"{total.item():.12g}"), "gradient": float(f"{gradient.norm().item():.12g}")}


def complaint(kind: str, stored: dict[str, Any] | None, now: dict[str, Any]) -> str:
    """What is wrong between a stored output and that of now; nothing if nothing is."""
    write = "python tests/test_every_objective.py stores it"
    if stored is None:
        return f"{kind} has no stored output: {write}"
    if stored["revision"] != now["revision"]:
        return f"{kind} is revision {now['revision']}, stored is {stored['revision']}: {write}"
    if not all(math.isclose(stored[name], now[name], rel_tol=1e-7, abs_tol=1e-12) for name in ("value", "gradient")):
        return f"{kind} computes {now}, and did compute {stored}: raise its revision, or else old caches pass for new results"
    return ""


@pytest.mark.parametrize("kind", kinds("objective"))
def test_an_output_changes_with_the_revision_only(kind: str) -> None:
    assert not (found := complaint(kind, json.loads(GOLDEN.read_text()).get(kind), output(kind))), found


def test_a_changed_output_without_a_new_revision_is_noticed() -> None:
    now = {"revision": 1, "value": 2.0, "gradient": 1.0}
    assert "raise its revision" in complaint("x", {"revision": 1, "value": 2.00001, "gradient": 1.0}, now)
    assert "stores it" in complaint("x", {"revision": 2, "value": 2.00001, "gradient": 1.0}, now)
    assert complaint("x", dict(now), now) == ""


def store() -> None:
    """Writes what is missing or of another revision; a changed output of one revision stays, and is complained about."""
    stored = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    for kind in kinds("objective"):
        now = output(kind)
        if kind not in stored or stored[kind]["revision"] != now["revision"]:
            stored[kind] = now
    lines = ",\n".join(f" {json.dumps(kind)}: {json.dumps(stored[kind])}" for kind in sorted(stored))
    GOLDEN.write_text("{\n" + lines + "\n}\n")


if __name__ == "__main__":
    store()
