"""Contracts of objectives: what they sum, whom they teach, and what they claim."""

from dataclasses import replace
from typing import Any

import torch
from pydantic import ValidationError

from limbeck.check.contract import NotClaimed, close, contract
from limbeck.check.example import ROWS, batch, build, each, floats, gradient, loss, names, say, solve
from limbeck.check.reads import over_choices
from limbeck.component import changed, find
from limbeck.numerics import TOLERANCE
from limbeck.objective.base import Objective
from limbeck.signals import VOCABULARY

VALUE, GRADIENT, ZERO = (TOLERANCE["float64", kind] for kind in ("value", "gradient", "zero"))


def exercise(objective: Objective) -> None:
    """One ordinary use."""
    said = say(objective)
    solve(objective, said, build(objective, said))


@contract
def vocabulary(objective: Objective) -> None:
    """It asks in words of the vocabulary, and has a seat for the role that it teaches."""
    needs = objective.needs
    assert objective.teaches in needs, f"teaches {objective.teaches!r}, which has no seat among {', '.join(needs)}"
    for seat, asked in needs.items():
        assert isinstance(asked, tuple) and asked, f"needs of {seat}: {asked!r}, expected a tuple of names"
        for name in (n for both in asked for n in both.split("|")):
            assert name.split(".")[0] in VOCABULARY, f"{name} of {seat} is not in the vocabulary"
    units = {unit for unit, _ in VOCABULARY.values()} | {"group", "row"}
    assert objective.unit in units, f"unit {objective.unit!r}, expected one of {', '.join(sorted(units))}"


@contract
@over_choices
def teaches(objective: Objective, seed: int = 0) -> None:
    """The seat that it teaches gets a gradient that is finite and not zero."""
    said = say(objective, seed)
    _, found, _ = solve(objective, said, build(objective, said))
    assert found.isfinite().all(), f"{(~found.isfinite()).sum()} of {found.numel()} entries of the gradient are not finite"
    assert found.any(), f"the gradient of {objective.teaches} is zero"


@contract
@over_choices
def counts(objective: Objective, seed: int = 0) -> None:
    """It sums exactly as many units as the batch counts before any model runs."""
    said = say(objective, seed)
    expected = batch(objective).count(objective.unit, objective.role(objective.teaches))
    got = loss(objective, said, build(objective, said)).count
    assert isinstance(got, int) and got == expected > 0, f"summed {got!r}, the batch counts {expected} ({objective.unit})"


@contract
@over_choices
def tags(objective: Objective, seed: int = 0) -> None:
    """A tag picks rows, as if the others were not there; what compares rows of a group takes none."""
    if objective.unit == "group":
        try:
            changed(objective, tag="chosen")
        except ValidationError:
            return
        raise AssertionError("it compares the rows of a group, and yet takes a tag, which would part them")
    said, some = say(objective, seed), changed(objective, tag="chosen")
    learned, rows = build(objective, said), torch.arange(0, ROWS, 2)
    total, count = loss(some, said, learned)
    expected = loss(objective, {role: s.at(rows) for role, s in said.items()}, learned)
    counted = batch(objective).count(objective.unit, objective.role(objective.teaches), "chosen")
    assert count == expected.count == counted, f"summed {count} with a tag, {expected.count} of its rows alone; the batch counts {counted}"
    close(total, expected.total, VALUE, "rows with a tag")


@contract
@over_choices
def weights(objective: Objective, seed: int = 0) -> None:
    """Weights of rows are factors of what each row gives; they do not change the count."""
    if objective.unit == "group":
        raise NotClaimed("it gives one number a group; weights are of rows")
    said = say(objective, seed)
    learned, factors = build(objective, said), torch.tensor([2.0, 0.5, 0.0, 1.0, 3.0, 0.25])
    weighed = {role: replace(s, weights=factors) for role, s in said.items()}
    alone = [loss(objective, {role: s.at(torch.tensor([i])) for role, s in said.items()}, learned).total for i in range(ROWS)]
    total, count = loss(objective, weighed, learned)
    close(total, sum(w * x for w, x in zip(factors.double(), alone, strict=True)), VALUE, "with weights of rows")
    assert count == loss(objective, said, learned).count, "weights change the count"
    chosen = loss(changed(objective, tag="chosen"), weighed, learned).total
    close(chosen, sum(w * x for w, x in zip(factors.double()[::2], alone[::2], strict=True)), VALUE, "with weights of rows that a tag picks")


@contract
@over_choices
def parts_add_up(objective: Objective, seed: int = 0) -> None:
    """Sums and counts of parts of the rows add up to those of all: what makes accumulation exact."""
    if objective.whole:
        raise NotClaimed("it compares rows of the whole window, which the loop keeps together")
    said = say(objective, seed)
    learned = build(objective, said)
    whole, found, count = solve(objective, said, learned)
    again = each(said, lambda _, __, x: x.detach().requires_grad_(x.requires_grad))
    parts = [loss(objective, {role: s.at(rows) for role, s in again.items()}, learned) for rows in (torch.arange(2), torch.arange(2, ROWS))]
    sum(part.total for part in parts).backward()  # type: ignore[union-attr]
    close(sum(part.total for part in parts), whole, VALUE, "sum of two parts of the rows")
    assert sum(part.count for part in parts) == count, f"counts of the parts are {[part.count for part in parts]}, of the whole {count}"
    close(gradient(objective, again), found, GRADIENT, "gradient of two parts of the rows")


@contract
@over_choices
def empty(objective: Objective, seed: int = 0) -> None:
    """No rows give zero of zero, still connected, so that a backward pass works."""
    said = say(objective, seed)
    learned = build(objective, said)
    total, count = loss(objective, {role: s.at(torch.arange(0)) for role, s in said.items()}, learned)
    assert (total.item(), count) == (0, 0), f"no rows give {total.item():.4g} of {count}, expected 0 of 0"
    assert total.requires_grad, "the zero of no rows is not connected: a backward pass would fail"
    total.backward()
    assert not gradient(objective, said).any(), "no rows give a gradient that is not zero"


@contract
@over_choices
def zero_at_match(objective: Objective, seed: int = 0) -> None:
    """Where claimed: value and gradient vanish where two seats say the same."""
    if not objective.zero_at_match:
        raise NotClaimed("zero_at_match is not claimed")
    a, b = objective.zero_at_match
    if not {a, b} <= set(objective.needs):
        raise NotClaimed(f"with these fields it does not hear {a} and {b}")
    said = say(objective, seed, alike=(a, b))
    total, found, _ = solve(objective, said, build(objective, said))
    assert total.abs() <= ZERO[1], f"claimed; but loss {total.item():.4g} where {a} = {b} (expected below {ZERO[1]:.0e})"
    assert found.abs().max() <= ZERO[1], f"claimed; but gradient {found.abs().max().item():.4g} where {a} = {b} (expected below {ZERO[1]:.0e})"


@contract
def special_cases(objective: Objective, seed: int = 0) -> None:
    """Where claimed: with some fields it equals another objective, in value and gradient."""
    if not objective.special_cases:
        raise NotClaimed("no special case is claimed")
    for kind, fields in objective.special_cases.items():
        special, other = changed(objective, **fields), find(Objective, kind).example()
        assert {s: names(special, s) for s in special.needs} == {s: names(other, s) for s in other.needs}, f"{kind} needs other signals"  # type: ignore[attr-defined]
        said = say(special, seed)
        learned = build(special, said)
        ours, theirs = solve(special, said, learned), solve(other, say(other, seed), learned)  # type: ignore[arg-type]
        close(ours[0], theirs[0], VALUE, f"claimed to equal {kind} at {fields}; its value")
        close(ours[1], theirs[1], GRADIENT, f"claimed to equal {kind} at {fields}; its gradient")


@contract
def descends(objective: Objective, seed: int = 0) -> None:
    """Unless denied: a small step against the gradient lowers the value."""
    if not objective.descends:
        raise NotClaimed("its gradient is a direction, its value is no distance")
    said = say(objective, seed)
    learned = build(objective, said)
    before, found, _ = solve(objective, said, learned)
    role = objective.role(objective.teaches)
    step = 1e-4 / found.norm()
    lower = each(said, lambda r, _, x: (x.detach() - step * x.grad).requires_grad_() if r == role and x.grad is not None else x)
    after = loss(objective, lower, learned).total.detach()
    assert after < before, f"a step of 1e-4 against the gradient takes it from {before.item():.8g} to {after.item():.8g}"


@contract
@over_choices
def inputs_untouched(objective: Objective, seed: int = 0) -> None:
    """What it is given is the same afterwards: others read it too."""
    said = say(objective, seed)

    def tensors() -> list[tuple[str, Any]]:
        return [(f"{name} of {role}", x.detach()) for role, s in said.items() for name, x in s.values.items() if floats(x)] + [
            (f"{what} of {role}", x) for role, s in said.items() for what, x in (("weights", s.weights), ("group", s.group), *s.rows.items())
        ]

    before = [(what, x.clone()) for what, x in tensors()]
    names_before = {role: list(s.values) for role, s in said.items()}
    solve(objective, said, build(objective, said))
    for (what, x), (_, y) in zip(before, tensors(), strict=True):
        assert torch.equal(x, y), f"{what} is changed in place"
    assert names_before == {role: list(s.values) for role, s in said.items()}, "signals are added or removed"
