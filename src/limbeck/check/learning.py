"""Contracts of objectives about what they learn or remember."""

import io

import torch
from torch import nn

from limbeck.check.contract import NotClaimed, close, contract
from limbeck.check.example import build, say, solve
from limbeck.objective.base import Objective

STEPS = 3


@contract
def learned_parts(objective: Objective, seed: int = 0) -> None:
    """What it learns is a module, made alike from one seed, and every parameter of it gets a gradient."""
    said = say(objective, seed)
    learned = build(objective, said, seed)
    if learned is None:
        raise NotClaimed("it learns and remembers nothing")
    assert isinstance(learned, nn.Module), f"build returns {type(learned).__name__}, expected a module"
    again = build(objective, said, seed)
    for (name, a), b in zip(learned.state_dict().items(), again.state_dict().values(), strict=True):  # type: ignore[union-attr]
        assert torch.equal(a, b), f"{name} is not the same when it is built again from one seed"
    solve(objective, said, learned)
    for name, parameter in learned.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), f"the learned parameter {name} gets no finite gradient"


@contract
def no_batch_norm(objective: Objective, seed: int = 0) -> None:
    """What it learns has no batch statistics: they would make the gradient depend on how a window is cut."""
    learned = build(objective, say(objective, seed), seed)
    if learned is None:
        raise NotClaimed("it learns and remembers nothing")
    for name, part in learned.named_modules():
        assert not isinstance(part, nn.modules.batchnorm._BatchNorm), f"it learns a batch norm ({name or 'the module itself'})"


@contract
def resumes(objective: Objective, seed: int = 0) -> None:
    """Stopped, saved and loaded into a fresh copy, it goes on exactly as if it had not been stopped."""
    first = build(objective, say(objective, seed), seed)
    optimiser = torch.optim.SGD(first.parameters(), 0.1) if first is not None and any(True for _ in first.parameters()) else None
    for n in range(STEPS):
        if optimiser:
            optimiser.zero_grad()
        solve(objective, say(objective, seed + 10 + n), first)
        if optimiser:
            optimiser.step()
    second = build(objective, say(objective, seed), seed + 1)
    if first is not None:
        assert second is not None, "build makes something only sometimes"
        disk = io.BytesIO()
        torch.save(first.state_dict(), disk)
        disk.seek(0)
        second.load_state_dict(torch.load(disk, weights_only=True))
    fresh = type(objective).model_validate(objective.model_dump())
    ours, theirs = solve(fresh, say(objective, seed + 50), second), solve(objective, say(objective, seed + 50), first)
    close(ours[0], theirs[0], (0.0, 0.0), "loaded against never stopped, value")
    close(ours[1], theirs[1], (0.0, 0.0), "loaded against never stopped, gradient")
    if first is not None and second is not None:
        for (name, a), b in zip(second.state_dict().items(), first.state_dict().values(), strict=True):
            close(a, b, (0.0, 0.0), f"loaded against never stopped, {name} after one more step")
