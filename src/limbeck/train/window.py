"""One optimiser step of one turn. How the window is cut does not change its gradient."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from limbeck.align.base import Align, Aligned, raw
from limbeck.chunked import fold_together
from limbeck.data.base import Place, Rows, Step
from limbeck.errors import Refused
from limbeck.model.base import Models
from limbeck.numerics import Streams
from limbeck.objective.base import Objective
from limbeck.signals import Batch, Loss, Needs, Row, Signals, joined
from limbeck.teacher.base import Teacher
from limbeck.train.settle import Settled
from limbeck.train.stage import Turn


@dataclass
class Running:
    """A turn while it runs: its document and everything it learns or remembers."""

    turn: Turn
    steps: tuple[Step, ...]
    """Data steps: those of the recipe, then those of the turn."""
    memory: list[Any]
    settled: Settled
    learned: list[nn.Module | None] = field(default_factory=list)
    optimiser: torch.optim.Optimizer | None = None
    drawn: int = 0
    """Windows drawn so far: the data cursor."""
    weights: list[float] | None = None
    """Of the objectives in the last window, where the turn balances them; they depend on that window alone."""
    stage: int = 0
    number: int = 0
    """Which turn of its stage this is: rows are drawn in an order of its own."""
    followed: list[dict[str, nn.Module]] = field(init=False)
    """What schedules of each objective remember, by field."""

    @property
    def early(self) -> bool:
        """Whether a window may be made before the step ahead of it is over: nothing that data remembers, and nobody who speaks, has a part in it."""
        return all(memory is None for memory in self.memory) and not any(step.needs for step in self.steps)

    def __post_init__(self) -> None:
        self.followed = [{name: s.begin() for name, s in o.schedules.items() if s.follows} for o in self.turn.objective]


def made(running: Running, rows: Rows, place: Place) -> Batch:
    """A window as its data makes it: rows are drawn, read by every role, and changed by the data steps."""
    turn, batch = running.turn, None
    if rows.parts:
        batch = place.models.batch(rows.draw(place.window * turn.batch, turn.batch, order(place.streams, running.stage, running.number)))
    seen = Counter[str]()
    for step, memory in zip(running.steps, running.memory, strict=True):
        again = seen[name := type(step).__name__]  # the second step of a kind must not draw the numbers of the first
        seen[name] += 1
        batch = step.window(batch, replace(place, streams=Streams(place.streams.number("again", again))) if again else place, memory)  # type: ignore[arg-type]
    assert batch is not None, "no data step made a window"
    return batch


def prepare(batch: Batch, running: Running, teacher: Teacher | None, kept: Mapping[str, Any], place: Place, spot: tuple[int, ...]) -> Batch:
    """Makes the window final: what was captured, alignment, random draws. After this nothing changes a count."""
    batch = batch.to(device_of(place.models))
    if teacher is not None:
        batch = teacher.attach(batch, place.models, kept)
    forward = running.turn.forward.at(spot[-1])
    batch = indexed(batch, place.models, running.settled.align, forward.requires(running.settled.needs))  # type: ignore[attr-defined]
    return forward.draw(batch, place.streams, spot)  # type: ignore[attr-defined]


def indexed(batch: Batch, models: Models, aligns: Sequence[Align], needs: Needs) -> Batch:
    """The window with what stands beside what; an alignment that has to look at a frozen role asks it for all that is wanted of it anyway."""
    for align in aligns:
        for role, names in align.looks.items():
            every = tuple(dict.fromkeys((*raw(aligns, role, needs.get(role, ())), *names)))
            batch = replace(batch, said={**batch.said, role: models.says(role, batch, every)})
        batch = align.index(batch, models)
    return batch


def order(streams: Streams, stage: int, turn: int) -> Streams:
    """The order in which a turn of a stage draws rows: one of its own, so that no two look at the same windows."""
    return Streams(streams.number("rows", stage, turn))


def drawn(rows: Rows, turn: Turn, steps: int, streams: Streams, stage: int, number: int) -> list[Row]:
    """All rows that a turn (the `number`-th of its stage) will draw in so many steps, in order: what a capture must cover."""
    return rows.draw(0, -(-steps // turn.every) * turn.batch, order(streams, stage, number)) if rows.parts else []


def device_of(models: Models) -> torch.device:
    """Where the models are; models without parameters are on the CPU."""
    return next((p.device for p in models.parameters()), torch.device("cpu"))


def count(turn: Turn, batch: Batch) -> list[int]:
    """How many units each objective will sum; with several ranks, these are added up."""
    return [batch.count(o.unit, o.role(o.teaches), o.tag) for o in turn.objective]


def window(running: Running, models: Models, batch: Batch, step: int, counts: Sequence[int]) -> list[Loss]:
    """Gradients of one optimiser step, added to those that are there; sums and counts of each objective.

    `counts` are over all micro-batches and ranks: the only place that divides.
    """
    sums, summed = [0.0] * len(counts), [0] * len(counts)
    parts, made = [batch] if whole(running.turn) else batch.cut(running.turn.micro), None
    running.weights = None
    if running.turn.balance == "gradient_norm":
        running.weights, made = balanced(running, models, parts, step, counts)
    for part in parts:
        total, losses = made or share(running, models, part, step, counts)
        for i, loss in enumerate(losses):
            sums[i], summed[i] = sums[i] + loss.total.item(), summed[i] + loss.count
        if total.requires_grad:
            total.backward()
    assert summed == count(running.turn, batch), f"counted {count(running.turn, batch)} before the window, summed {summed} in it"
    return [Loss(torch.tensor(s, dtype=torch.float64), n) for s, n in zip(sums, summed, strict=True)]


def share(running: Running, models: Models, part: Batch, step: int, counts: Sequence[int]) -> tuple[Tensor, list[Loss]]:
    """What a part of a window adds to the weighted sum of all objectives, whose gradient is wanted; and sum and count of each."""
    if running.weights is not None:
        means, losses, _ = told(running, models, part, step, counts)
        return weighted(means, running.weights), losses
    said, objectives = heard(running, models, part, step), at(running, step)
    return summed(objectives, running.learned, said, counts)


def at(running: Running, step: int) -> list[Any]:
    """The objectives with what their schedules say at a step."""
    return [o.at(step, followed) for o, followed in zip(running.turn.objective, running.followed, strict=True)]


def summed(objectives: Sequence[Any], learned: Sequence[Any], said: Mapping[str, Signals], counts: Sequence[int]) -> tuple[Tensor, list[Loss]]:
    """The weighted sum of the means of all objectives, and sum and count of each; those that hear the same logits share them, and gradients."""
    seated = [o.seated(said, module) for o, module in zip(objectives, learned, strict=True)]
    plain = [type(o).__call__ is Objective.__call__ for o in objectives]  # one that sums in its own way stands alone
    foldings = [o.folding(factors, **seats) if own else None for o, own, (factors, seats) in zip(objectives, plain, seated, strict=True)]
    groups: list[list[int]] = []
    for i, one in enumerate(foldings):
        group = next((g for g in groups if one is not None and foldings[g[0]] is not None and one.beside(foldings[g[0]])), None)
        groups.append([i]) if group is None else group.append(i)
    parts, losses = [], {}
    for group in groups:
        if len(group) > 1:
            shared = [one for i in group if (one := foldings[i]) is not None]
            part, sums = fold_together(shared, [objectives[i].weight / max(counts[i], 1) for i in group])
            losses |= {i: Loss(total, objectives[i].num(seated[i][1])) for i, total in zip(group, sums, strict=True)}
        else:
            (i,) = group
            losses[i] = objectives[i].loss(*seated[i], foldings[i]) if plain[i] else objectives[i](said, learned[i])
            part = objectives[i].weight * (losses[i].total / max(counts[i], 1))
        parts.append(part)
    return torch.stack(parts).sum(), [losses[i] for i in range(len(objectives))]


def told(running: Running, models: Models, part: Batch, step: int, counts: Sequence[int]) -> tuple[list[Tensor], list[Loss], list[float]]:
    """What a part of a window adds to the mean of each objective; sum and count of each; and the weights of the turn."""
    said, objectives = heard(running, models, part, step), at(running, step)
    losses = [objective(said, learned) for objective, learned in zip(objectives, running.learned, strict=True)]
    means = [loss.total / max(num, 1) for loss, num in zip(losses, counts, strict=True)]
    return means, losses, [objective.weight for objective in objectives]


def whole(turn: Turn) -> bool:
    """Whether an objective compares the rows of the whole window."""
    return any(objective.whole for objective in turn.objective)


def heard(running: Running, models: Models, part: Batch, step: int) -> dict[str, Signals]:
    """What all roles say about a part of a window.

    A window that must be seen whole is still run a micro-batch at a time: of each only what it says is kept, and it is run again, with the
    same random numbers, when its gradient is due. So memory is that of one micro-batch, for two forward passes.
    """
    forward, listen = running.turn.forward.at(step), Aligned(models, running.settled.align)

    def run(some: Batch) -> dict[str, Signals]:
        return forward(listen, some, running.settled.needs)  # type: ignore[operator]

    if running.turn.micro == 1 or not whole(running.turn):
        return run(part)
    cut = torch.arange(len(part.keys), device=part.group.device).tensor_split(running.turn.micro)
    said = [checkpoint(run, part.at(rows), use_reentrant=False) for rows in cut if len(rows)]
    return {role: part.signals(role, joined([one[role].values for one in said])) for role in said[0]}  # type: ignore[index]


def weighted(means: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    return torch.stack([weight * mean for weight, mean in zip(weights, means, strict=True)]).sum()


def balanced(running: Running, models: Models, parts: Sequence[Batch], step: int, counts: Sequence[int]) -> tuple[list[float], Any]:
    """Weights of the objectives, (1 / g_i) / sum_j (1 / g_j), and what `share` gives with them where the window is in one piece.

    g_i is the norm of the gradient of the mean over the whole window, by the last layer alone: a window that is cut is run twice, since
    no part of it knows g. One without a gradient there weighs nothing.

    Raises:
        Refused: `balance`, for an objective that the last layer does not reach.
    """
    turn, last = running.turn, models[running.turn.trains].last_layer
    parameters = [p for name, p in models.trainable(turn.trains, turn.only, turn.freeze) if name.startswith(last)]
    sums = [[torch.zeros_like(p) for p in parameters] for _ in counts]
    kept: Any = None
    for part in parts:
        means, losses, _ = told(running, models, part, step, counts)
        for i, mean in enumerate(means):
            slopes = torch.autograd.grad(mean, parameters, retain_graph=True, allow_unused=True) if mean.requires_grad else ()
            if counts[i] and slopes and all(slope is None for slope in slopes):
                kind, do = dict(turn.objective[i])["kind"], "compare the last layer or the output, or give weights in place of balance"
                raise Refused("balance", f"objective.{i}", "a loss whose gradient reaches the last layer", f"{kind}, which does not", do)
            sums[i] = [a if b is None else a + b for a, b in zip(sums[i], slopes, strict=True)] if slopes else sums[i]
        kept = means, losses
    norms = [float(torch.cat([x.flatten() for x in each]).norm()) for each in sums]
    inverse = [1 / norm if norm else 0.0 for norm in norms]
    weights = [x / (sum(inverse) or 1.0) for x in inverse]
    return weights, (weighted(kept[0], weights), kept[1]) if len(parts) == 1 else None
