"""Two processes under DDP: all that is trained with gives the gradient of one, and what does not is found."""

from pathlib import Path

import pytest

from limbeck.check import kinds
from limbeck.check.conformance import INVARIANCES, TRAINED, conformance, mark, rendered
from limbeck.check.processes import together

PLANTED = """
from typing import Literal

from limbeck.numerics import kl
from limbeck.objective.base import AbstractDivergence
from limbeck.signals import Loss


class OwnMean(AbstractDivergence):
    kind: Literal["planted:own_mean"] = "planted:own_mean"

    def divergence(self, log_p, log_q):
        return kl(log_p, log_q)

    def __call__(self, said, learned=None):
        found = super().__call__(said, learned)
        return Loss(found.total / said["student"].num("target"), found.count)
"""


def test_two_processes_give_the_gradient_of_one() -> None:
    names = [f"{room}.{kind}" for room in TRAINED for kind in kinds(room)]
    found = together(names)
    assert list(found) == names and {name: said for name, said in found.items() if said} == {}
    assert sum(said == "" for said in found.values()) >= 10, "most of them were tried"


def test_a_mean_over_the_own_part_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "planted.py").write_text(PLANTED)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = together(["planted:OwnMean", "objective.forward_kl"])
    assert "two processes against that of one" in (found["planted:OwnMean"] or "")
    assert found["objective.forward_kl"] == ""


def test_a_process_that_ends_badly_says_why() -> None:
    with pytest.raises(RuntimeError, match="nothing_like_it"):
        together(["objective.nothing_like_it"])


def test_the_table_has_a_column_an_invariance() -> None:
    found = conformance(only="padding")
    text = rendered(found)
    assert all(name in text.splitlines()[0] for name in (*INVARIANCES, "2 processes"))
    assert found["passed"], text
    assert "objective.forward_kl" in text and "student" not in text


def test_a_broken_contract_outweighs_a_kept_one() -> None:
    assert [mark(["passed", "failed"]), mark(["passed", "not claimed"]), mark([]), mark(["not claimed"])] == ["✗", "✓", "·", "·"]
