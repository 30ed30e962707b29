"""Contracts of forwards: what they ask, what they draw, and that how a window is cut changes no gradient."""

from functools import partial
from typing import Any

import torch

from limbeck.align.base import Aligned
from limbeck.check.contract import contract
from limbeck.check.window import accumulation, exports_nothing, packing, padding, ranks, teacher_untouched, trial_of
from limbeck.forward.base import Forward
from limbeck.numerics import Streams

CONTRACTS = (accumulation, packing, padding, ranks, teacher_untouched, exports_nothing)
"""Those that it shares with objectives."""


def exercise(forward: Forward) -> None:
    """One ordinary use."""
    trial_of(forward, 0).whole  # noqa: B018


@contract
def asks_for_all(forward: Forward, seed: int = 0) -> None:
    """It asks the roles for everything that objectives need, and says it."""
    trial = trial_of(forward, seed)
    needs = trial.running.settled.needs
    required = forward.requires(needs)
    for role, names in needs.items():
        missing = set(names) - set(required.get(role, ()))
        assert not missing, f"requires() forgets {', '.join(sorted(missing))} of {role}"
    said = forward(Aligned(trial.models, trial.running.settled.align), trial.batch, needs)
    for role, names in needs.items():
        assert role in said and all(name in said[role].values for name in names), f"it does not say {', '.join(names)} of {role}"


@contract
def draws_before(forward: Forward, seed: int = 0) -> None:
    """All that is random is drawn for the whole window, from its streams: the same again, and nothing more while models run."""
    trial = trial_of(forward, seed)
    draw = partial(forward.draw, trial.batch, place=(0, 0, 3))
    a, b = (draw(streams=Streams(seed)) for _ in range(2))
    for role in a.views:
        for name, x in a.views[role].inputs.items():
            assert torch.equal(x, b.views[role].inputs[name]), f"{name} of {role} is drawn differently from the same streams"
    assert (a.keys, a.tags) == (trial.batch.keys, trial.batch.tags), "drawing changes keys or tags"
    before = torch.get_rng_state()
    needs = trial.running.settled.needs
    twice: list[Any] = [forward(Aligned(trial.models, trial.running.settled.align), a, needs) for _ in range(2)]
    assert torch.equal(before, torch.get_rng_state()), "it draws while models run: each micro-batch would draw otherwise"
    for role, names in needs.items():
        for name in names:
            first, second = (getattr(said[role][name], "hidden", said[role][name]) for said in twice)
            assert torch.equal(first, second), f"{name} of {role} is not the same when it is said again"
