"""Reconstruction of hidden places from the states of visible ones alone."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from limbeck.errors import Refused
from limbeck.objective._mask_decoder import MaskDecoder, sinusoids
from limbeck.objective.reconstruct import Reconstruct
from limbeck.signals import Batch, Signals, View

LENGTHS = (7, 4, 9)
HIDDEN = ((2, 3), (3,), (1, 2, 3, 4, 8))
WIDTH, CLASSES = 12, 5


def said(seed: int = 0, hidden: Any = HIDDEN) -> Signals:
    lengths, draw = torch.tensor(LENGTHS), torch.Generator().manual_seed(seed)
    asked = torch.tensor([i in some for length, some in zip(LENGTHS, hidden, strict=True) for i in range(length)])
    view = View({"ids": torch.zeros(sum(LENGTHS), dtype=torch.long)}, lengths, asked, shift=0)
    states = torch.randn(sum(LENGTHS), WIDTH, generator=draw, dtype=torch.float64)
    label = torch.randint(CLASSES, (int(asked.sum()),), generator=draw)
    batch = Batch({"student": view}, ("",) * 3, torch.arange(3), tuple("abc"), torch.ones(3))
    values = {"hidden.-1": states, "asked": asked, "label": label, "logits": torch.zeros(len(label), CLASSES)}
    return batch.signals("student", values)


def decoder(objective: Reconstruct, student: Signals) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return objective.build({"student": student}).double()


def naive(d: MaskDecoder, student: Signals) -> torch.Tensor:
    """The same, row by row, query by query, head by head."""
    out, start, taken = [], 0, 0
    for length, hidden in zip(LENGTHS, HIDDEN, strict=True):
        states = student["hidden.-1"][start : start + length]
        visible = [i for i in range(length) if i not in hidden]
        at = sinusoids(torch.arange(length), d.empty.shape[0]).double()
        normed = [d.states(states[i]) for i in visible]
        keys, values = [d.key(s) + d.place(at[i]) for s, i in zip(normed, visible, strict=True)], [d.value(s) for s in normed]
        for place in hidden:
            x = d.empty + at[place]
            query, heads, size = d.query(x), [], d.empty.shape[0] // d.heads
            for h in range(d.heads):
                cut = slice(h * size, (h + 1) * size)
                scores = torch.stack([query[cut] @ k[cut] / math.sqrt(size) for k in keys]).softmax(0)
                heads.append(sum(w * v[cut] for w, v in zip(scores, values, strict=True)))
            x = x + torch.cat(heads)  # type: ignore[arg-type]
            x = x + d.down(nn.functional.gelu(d.up(d.inside(x))))
            out.append(-d.out(d.norm(x)).log_softmax(-1)[student["label"][taken]])
            taken += 1
        start += length
    return torch.stack(out)


def test_it_is_what_a_loop_over_rows_places_and_heads_gives() -> None:
    student, objective = said(), Reconstruct(width=16, heads=2)
    learned = decoder(objective, student)
    torch.testing.assert_close(objective.values(student, learned), naive(learned, student))  # type: ignore[arg-type]


def test_states_of_hidden_places_and_of_other_rows_change_nothing() -> None:
    student, objective = said(), Reconstruct()
    learned = decoder(objective, student)
    states, asked = student["hidden.-1"].clone().requires_grad_(), student["asked"]
    value = objective.values(replace(student, values={**student.values, "hidden.-1": states}), learned)
    slope = torch.autograd.grad(value[:2].sum(), states)[0]  # of the two hidden places of the first row
    assert not slope[asked].any() and not slope[LENGTHS[0] :].any() and bool((slope[: LENGTHS[0]][~asked[: LENGTHS[0]]].abs().sum(-1) > 0).all())


def test_each_hidden_place_has_logits_of_its_own_not_their_mean() -> None:
    """The four bases in a row that the third row hides: asked alone they are told apart, a pooled state could not tell their order."""
    student, objective = said(), Reconstruct()
    learned = decoder(objective, student)
    logits = learned(student["hidden.-1"], student["asked"], student.rows["pos"], 3)
    inside = logits[3:7]
    assert logits.shape == (8, CLASSES) and bool((inside[:, None] - inside[None]).abs().amax(-1).add(torch.eye(4)).gt(1e-3).all())


def test_the_decoder_can_read_out_of_visible_states_what_they_hold() -> None:
    """Labels stand in a neighbour's state: 60 steps of AdamW on one window learn them by heart, where chance is log 5."""
    student, objective = said(), Reconstruct(width=32)
    learned = decoder(objective, student)
    optimiser = torch.optim.AdamW(learned.parameters(), 1e-2)
    for _ in range(60):
        optimiser.zero_grad()
        loss = objective.values(student, learned).mean()
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.1 < math.log(CLASSES)


def test_rows_that_nothing_is_hidden_of_or_everything_are_refused_or_stay_finite() -> None:
    whole = said(hidden=tuple(range(length) for length in LENGTHS))
    with pytest.raises(Refused, match="add {kind: mask} to data"):
        Reconstruct().build({"student": whole})
    student = said(hidden=((2,), (0, 1, 2, 3), ()))
    value = Reconstruct().values(student, decoder(Reconstruct(), student))
    assert value.shape == (5,) and bool(value.isfinite().all())
