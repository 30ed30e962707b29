"""Example signals for any objective, made from what it needs and from the vocabulary. No objective is named here."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.check.contract import NotClaimed, Unfit
from limbeck.errors import LimbeckError
from limbeck.numerics import log_probs, top_k
from limbeck.objective.base import Objective
from limbeck.signals import VOCABULARY, Batch, Head, Logits, Loss, Signals, TopK, View, unit_of

ROWS = 6
GROUP = (0, 0, 1, 1, 1, 1)
"""The group of each row: a pair, and a longer list."""
LENGTHS, PROMPTS = (4, 5, 3, 4, 6, 3), (1, 2, 1, 1, 3, 0)
"""Positions of each row, and how many of them are not asked for."""
INSTANTS = 8
"""Numbers of the waveform that a position is made of, where one is asked for."""
PATCHES = 3
"""Visual tokens of each row, at its first positions."""
SHARED = {"vocab": 11, "channel": 2, "height": 4, "width": 4, "past": max(LENGTHS)}
"""Axes that all roles agree on."""
WHOLE = {name for name, (_, axes) in VOCABULARY.items() if axes == "vocab"}
"""Logits over all entries: roles say them lazily."""
OWN = (6, 8, 4, 6)
"""`dim`: a width for each seat, so that maps between widths are exercised."""
OTHER = 3
"""Every axis that is named in the vocabulary only."""

Said = dict[str, Signals]


def names(objective: Objective, seat: str, choose: int = 0) -> tuple[str, ...]:
    """What a seat must say, with alternatives chosen (the last one, where there are not so many) and `hidden.*` written out."""
    picked = [name.split("|")[min(choose, name.count("|"))] for name in objective.needs[seat]]
    return tuple(dict.fromkeys(n for name in picked for n in ([name.replace("*", str(i)) for i in range(2)] if name.endswith(".*") else [name])))


def batch(objective: Objective) -> Batch:
    """Six rows of ragged text in two groups; where chunks are asked for, each is two targets of one row; where waveforms are, each position has
    some numbers of one."""
    lengths, prompts = torch.tensor(LENGTHS), torch.tensor(PROMPTS)
    view = View({"ids": torch.arange(sum(LENGTHS)) % SHARED["vocab"]}, lengths)
    view = replace(view, asked=view.offsets >= prompts.repeat_interleave(lengths))
    units = {unit_of(name) for needs in objective.needs.values() for name in needs}
    if "instant" in units:
        view = replace(view, instants=INSTANTS * lengths)
    if "chunk" in units:
        row = view.rows("target")
        place = torch.arange(len(row)) - torch.searchsorted(row, row)
        starts = place % 2 == 0
        view = replace(view, chunk_of=starts.cumsum(0) - 1, chunk_row=row[starts])
    if "patch" in {unit_of(name) for needs in objective.needs.values() for name in needs}:
        view = replace(view, patches=view.offsets < PATCHES)
    seats = {objective.role(seat): view for seat in objective.needs}
    return Batch({"student": view, **seats}, ("chosen", "rejected") * (ROWS // 2), torch.tensor(GROUP), tuple("abcdef"), torch.ones(ROWS))


def value(name: str, num: int, dim: int, random: torch.Generator, dtype: torch.dtype) -> Any:
    """A signal of that name, standard normal where it may be; labels are below the vocabulary, log-probabilities below 0, every second row is
    relevant."""
    word = name.split(".")[0]
    axes = VOCABULARY[word][1].split()
    if word in ("top_logits", "sampled_logits"):
        return TopK(*top_k(log_probs(torch.randn(num, SHARED["vocab"], generator=random, dtype=torch.float64)).to(dtype), SHARED["vocab"] - 1))
    shape = [num, *(dim if axis == "dim" else SHARED.get(axis, OTHER) for axis in axes)]
    if word in ("label", "ids", "class"):
        return torch.randint(SHARED["vocab"], shape, generator=random)
    if word in ("relevance", "rank"):  # some of every group are relevant and some are not; no two have a rank
        return torch.arange(num) % 2 if word == "relevance" else 1 + torch.randperm(num, generator=random)
    x = torch.randn(shape, generator=random, dtype=torch.float64)
    if word == "pitch":  # in Hz, within the first bins; every third frame has none
        return torch.where(torch.arange(num) % 3 == 2, 0.0, 33 + x.abs().clamp(max=2)).to(dtype)
    if word in ("target_weight", "maskable"):  # one over a probability; a number of things
        return (1 + x.abs()).to(dtype)
    return (-x.abs() - 0.1 if "logprob" in word else x).to(dtype)


def say(
    objective: Objective,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    alike: tuple[str, ...] = (),
    gap: float = 0.0,
    scale: float = 1.0,
    choose: int = 0,
) -> Said:
    """Role -> signals. Only the taught seat asks for gradients.

    Args:
        objective: whose needs are met.
        seed: of everything that is random.
        dtype: of all numbers that are not ids.
        alike: seats that say the same, but for `gap` times what each would say by itself.
        gap: see `alike`.
        scale: factor on all numbers.
        choose: which alternative of `a|b` is said.
    """
    rows, out = batch(objective), {}
    for i, seat in enumerate(objective.needs):
        random, same = (torch.Generator().manual_seed(100 * seed + n) for n in (i, 99))
        values: dict[str, Any] = {}
        for name in names(objective, seat, choose):
            num = rows.signals(objective.role(seat), {}).num(unit_of(name))
            x = value(name, num, OWN[0] if seat in alike else OWN[i % len(OWN)], same if seat in alike else random, torch.float64)
            x = asked(rows.view(objective.role(seat))) if name == "asked" else x
            if seat in alike and floats(x) and gap:
                x = x + gap * value(name, num, OWN[0], random, torch.float64)
            values[name] = leaf((x * scale).to(dtype), seat == objective.teaches) if floats(x) else x
        out[objective.role(seat)] = rows.signals(objective.role(seat), values)
    return out


def asked(view: View) -> Tensor:
    """Which positions are targets."""
    return torch.zeros(len(view.inputs["ids"]), dtype=torch.bool).index_fill(0, view.targets, True)


def floats(x: Any) -> bool:
    """Whether it is a tensor of numbers, not of ids."""
    return isinstance(x, Tensor) and x.is_floating_point()


def leaf(x: Tensor, learns: bool) -> Tensor:
    return x.detach().clone().requires_grad_(learns)


def each(said: Mapping[str, Signals], change: Any) -> Said:
    """The same signals with every tensor of numbers changed by a function of role, name and tensor."""
    return {role: replace(s, values={name: change(role, name, x) if floats(x) else x for name, x in s.values.items()}) for role, s in said.items()}


def build(objective: Objective, said: Mapping[str, Signals], seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Module | None:
    """What the objective learns or remembers, made as the loop makes it."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            learned = objective.build({seat: said[objective.role(seat)] for seat in objective.needs})
        except (ValueError, LimbeckError) as error:
            raise Unfit(f"build refuses the example signals: {error}") from error
    return learned if learned is None else learned.to(dtype)


def loss(objective: Objective, said: Mapping[str, Signals], learned: nn.Module | None = None) -> Loss:
    """What the objective makes of the signals; as in the loop, it alone is asked."""
    found = objective(said, learned)
    assert isinstance(found, tuple) and len(found) == 2, f"returned {type(found).__name__}, expected Loss(total, count)"
    return found


def gradient(objective: Objective, said: Mapping[str, Signals]) -> Tensor:
    """The gradient of the taught seat after a backward pass, as one vector; zero where there is none."""
    leaves = [x for x in said[objective.role(objective.teaches)].values.values() if floats(x)]
    if not leaves:
        raise NotClaimed("the taught seat says nothing that has a gradient")
    return torch.cat([(torch.zeros_like(x) if x.grad is None else x.grad).flatten() for x in leaves])


def solve(objective: Objective, said: Said, learned: nn.Module | None = None) -> tuple[Tensor, Tensor, int]:
    """Value, gradient of the taught seat, and count."""
    for s in said.values():
        for x in s.values.values():
            if floats(x):
                x.grad = None
    total, count = loss(objective, said, learned)
    assert total.requires_grad, "the total does not depend on what the taught seat says"
    total.backward()
    return total.detach(), gradient(objective, said), count


def with_heads(
    objective: Objective, said: Mapping[str, Signals], frozen: bool, seed: int = 0, known: bool = True
) -> tuple[Said, Said, list[tuple[Tensor, Tensor]]]:
    """Signals whose logits are lazy, the same with dense ones, and pairs of leaves whose gradients must agree. `known`: its head is a matrix."""
    lazy, plain, pairs = {}, {}, []
    for i, (role, s) in enumerate(said.items()):
        learns, ours, theirs = role == objective.role(objective.teaches), dict(s.values), dict(s.values)
        random = torch.Generator().manual_seed(1000 * seed + i)
        for name in sorted(WHOLE & set(s.values)):
            hidden, weight = (torch.randn(n, 5, generator=random, dtype=torch.float64) for n in (len(s[name]), SHARED["vocab"]))
            a, b = ((leaf(hidden, learns), leaf(weight, learns and not frozen)) for _ in range(2))
            ours[name] = Logits(a[0], Head(a[1]) if known else lambda h, w=a[1]: h @ w.mT, learns)
            theirs[name] = b[0] @ b[1].mT
            pairs += zip(a, b, strict=True)
        lazy[role], plain[role] = replace(s, values=ours), replace(s, values=theirs)
    return lazy, plain, pairs
