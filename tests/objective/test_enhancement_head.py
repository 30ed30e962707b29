"""The clean sound from what the student says of a corrupted one."""

import cmath
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from limbeck.check.example import build, say
from limbeck.check.models import clips, hearing_model
from limbeck.data.base import Place
from limbeck.data.corrupt_sound import CorruptSound
from limbeck.errors import Refused
from limbeck.model.base import Models
from limbeck.numerics import Streams
from limbeck.objective.enhancement_head import EnhancementHead

SMALL = EnhancementHead.example()
HEARD = {"window": 64, "size": 64, "hop": 32, "width": 5, "depth": 1}
"""Of the small encoders: a frame is 64 numbers long, and two spectra."""


def ones(frames: Any) -> torch.Tensor:
    return torch.ones(sum(map(len, frames)), SMALL.size // 2 + 1, dtype=torch.float64)


def test_a_mask_of_ones_gives_the_noisy_spectrum_and_nothing_is_lost_where_both_hear_the_same() -> None:
    said = say(SMALL)
    assert torch.equal(SMALL.values(said["student"], replace(said["student"]), ones), torch.zeros(25, dtype=torch.float64))  # type: ignore[arg-type]
    frames = [one.repeat_interleave(2, 0) for one in said["student"]["hidden.-1"].split([4, 5, 3, 4, 6, 3])]
    noisy, clean = (torch.cat(SMALL.spectra(said[role], frames)) for role in ("student", "teacher"))
    got = SMALL.values(**said, learned=ones)  # type: ignore[arg-type]
    assert torch.allclose(got, (noisy - clean).abs().view(25, 2, 5).mean((1, 2)))
    squared = EnhancementHead.model_validate({**dict(SMALL), "power": 2}).values(**said, learned=ones)  # type: ignore[arg-type]
    assert torch.allclose(squared, ((noisy - clean) ** 2).view(25, 2, 5).mean((1, 2)))


def test_spectra_are_sums_that_are_written_out() -> None:
    said = say(SMALL)["student"]
    wave = said["wave"][:32].tolist()  # of the first row: 4 positions of 8 numbers
    hann = [0.5 - 0.5 * math.cos(2 * math.pi * n / 6) for n in range(6)]  # window: 6, in the middle of size: 8
    frames = [one.repeat_interleave(2, 0) for one in said["hidden.-1"].split([4, 5, 3, 4, 6, 3])]
    found = SMALL.spectra(said, frames)[0]
    assert found.shape == (8, 5)
    for t in (0, 1, 7):
        for f in range(5):
            at = [(n, 4 * t - 4 + 1 + n) for n in range(6)]  # hop: 4, and the middle of the window stands on 4 t
            total = sum(hann[n] * wave[i] * cmath.exp(-2j * math.pi * f * (n + 1) / 8) for n, i in at if 0 <= i < 32)
            assert found[t, f].item() == pytest.approx(abs(total), abs=1e-12), (t, f)


def test_a_row_among_longer_ones_counts_as_alone() -> None:
    models = Models({"student": hearing_model(), "teacher": hearing_model(1)})
    objective, rows = EnhancementHead(**HEARD), clips()[:5]  # type: ignore[arg-type]
    step = CorruptSound(noisy=1.0)
    place = Place(models, Streams(0))
    batches = [step.window(models.batch(some), place, None) for some in (rows, *([row] for row in rows))]
    heard = [{role: models.says(role, batch, objective.needs[role]) for role in models} for batch in batches]
    torch.manual_seed(0)
    learned: Any = objective.build(heard[0])
    losses = [objective(said, learned.double()) for said in heard]
    assert losses[0].count == sum(loss.count for loss in losses[1:]) == sum((len(row.content["wave"]) - 16) // 8 // 8 for row in rows)
    assert float(losses[0].total) == pytest.approx(sum(float(loss.total) for loss in losses[1:]), rel=1e-10)


@pytest.mark.parametrize(("hears", "reaches"), [("hidden", True), ("front", False)])
def test_the_whole_student_or_its_convolutions_alone_learn_from_it(hears: Any, reaches: bool) -> None:
    models = Models({"student": hearing_model(), "teacher": hearing_model(1)})
    objective = EnhancementHead(**HEARD, hears=hears)  # type: ignore[arg-type]
    batch = CorruptSound(noisy=1.0).window(models.batch(clips()[:2]), Place(models, Streams(0)), None)
    with models.turn("student"):
        said = {role: models.says(role, batch, objective.needs[role]) for role in models}
        learned: Any = objective.build(said)
        objective(said, learned.double()).total.backward()
        touched = {name.split(".")[0] for name, p in models["student"].module.named_parameters() if p.grad is not None and p.grad.any()}
    assert ("encoder" in touched) == reaches and "feature_extractor" in touched


def test_a_head_can_learn_to_take_noise_away() -> None:
    said = say(SMALL)
    learned: Any = build(SMALL, said)
    optimiser = torch.optim.Adam(learned.parameters(), 0.05)
    fixed = {role: replace(s, values={name: x.detach() for name, x in s.values.items()}) for role, s in said.items()}
    quiet = replace(fixed["student"], values={"wave": 0.2 * fixed["student"]["wave"]})
    losses = []
    for _ in range(30):
        optimiser.zero_grad()
        loss = SMALL({"student": fixed["student"], "teacher": quiet}, learned)
        (loss.total / loss.count).backward()
        optimiser.step()
        losses.append(float(loss.total.detach()))
    assert losses[-1] < 0.5 * losses[0]


def test_steps_that_do_not_fit_the_frames_are_refused_with_what_would() -> None:
    models = Models({"student": hearing_model(), "teacher": hearing_model(1)})
    batch = models.batch(clips()[:2])
    said = {role: models.says(role, batch, EnhancementHead().needs[role]) for role in models}
    with pytest.raises(Refused, match="write hop: 33"):  # 400 numbers, 6 frames
        EnhancementHead().build(said)
    fits = EnhancementHead(**HEARD)  # type: ignore[arg-type]
    learned: Any = fits.build(said)
    other = models.batch([replace(clips()[0], content={**clips()[0].content, "wave": torch.zeros(400)})])
    heard = {role: models.says(role, other, fits.needs[role]) for role in models}
    few = replace(heard["student"], values={**heard["student"].values, "wave": heard["student"]["wave"][:200]})
    few = replace(few, rows={**few.rows, "instant": few.rows["instant"][:200]})
    with pytest.raises(Refused, match="spectra for"):  # not the example it was built with
        fits.values(few, heard["teacher"], learned.double())
    with pytest.raises(ValidationError, match="at most size"):
        EnhancementHead(window=600)
