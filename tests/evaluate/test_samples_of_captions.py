"""Samples of captions: each is asked of its own, nothing is told of classes, and a picture stands below the caption that it was made of."""

import json
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.evaluate import _spread, samples
from limbeck.evaluate._pictures import by_caption, shown
from limbeck.evaluate._spread import frechet
from limbeck.evaluate.base import Exam
from limbeck.evaluate.samples import Samples
from limbeck.guidance import Guidance
from limbeck.model.latents import Latents
from limbeck.model.opening import open_pretrained
from limbeck.model.role import as_role
from limbeck.numerics import Streams
from limbeck.signals import Row
from tiny_pipeline import saved

pytest.importorskip("diffusers")


@pytest.fixture(scope="module")
def role(tmp_path_factory: pytest.TempPathFactory) -> Latents:
    made = as_role(open_pretrained(f"path:{saved(tmp_path_factory.mktemp('tiny') / 'pipeline')}"))
    assert isinstance(made, Latents)
    return made


def rows(num: int = 5) -> list[Row]:
    pixels = torch.randint(0, 256, (num, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return [Row(f"{i}", {"pixels": pixels[i], "text": f"picture {i}"}) for i in range(num)]


def exam(role: Latents, folder: Path, held_out: list[Row]) -> Exam:
    @contextmanager
    def open_(name: str) -> Any:
        yield role

    return Exam(held_out, ["teacher", "student"], open_, lambda name: None, 0, {"evidence": folder})  # type: ignore[arg-type, return-value]


def test_samples_are_told_without_classes_and_shown_below_their_captions(role: Latents, tmp_path: Path) -> None:
    how = Samples(steps=(1,), teacher_steps=2, num=7, guidance=Guidance(scale=2.0, convention="extra"))
    found = how(exam(role, tmp_path, rows()))
    assert found["teacher"]["samples"]["2"]["forwards"] == 4 and found["student"]["samples"]["1"]["forwards"] == 1
    names = {*found["teacher"], *found["student"]["samples"]["1"]}
    assert {"frechet", "sliced_w2"} <= names and not {"class_frechet", "covered"} & names
    pictures = json.loads((tmp_path / "made.json").read_text())
    every = ["held out", "teacher, 1 step", "teacher, 2 steps", "student, 1 step"]
    assert [(one["prompt"], one["label"]) for one in pictures] == [(f"picture {i}", label) for i in range(3) for label in every]
    held = torch.tensor(pictures[0]["pixels"])
    decoded = role.pictured(role.view(rows()).inputs["clean"])[0]
    assert held.shape == (3, 16, 16) and ((held / 127.5 - 1) - decoded.clamp(-1, 1)).abs().max() < 0.005  # half a step of 255


def test_each_sample_is_asked_with_its_own_caption(role: Latents) -> None:
    how, inputs = Samples(steps=(1,), num=3), role.view(rows(3)).inputs
    turned = {"caption": inputs["caption"].flip(0)}
    first, second = (
        how.made(role, "teacher", 1, inputs["label"], (4, 4, 4), Streams(0), more)[0] for more in ({"caption": inputs["caption"]}, turned)
    )
    assert torch.equal(first[1], second[1]) and not torch.allclose(first[0], second[0], atol=1e-4)  # the middle caption stays


def test_only_as_many_captions_as_a_report_shows_whole(role: Latents) -> None:
    latents = role.view(rows(3)).inputs["clean"]
    entries = [entry for i in range(9) for entry in shown(role, latents, rows(3), f"student, {i} steps")]
    kept = by_caption(entries)  # 9 of each of 3 captions are 27; a report shows 24
    assert [one["prompt"] for one in kept] == ["picture 0"] * 9 + ["picture 1"] * 9


def test_the_frechet_distance_of_wide_points_is_that_of_their_covariances(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = torch.Generator().manual_seed(0)
    a, b = torch.randn(9, 12, generator=draw), 0.7 * torch.randn(7, 12, generator=draw) + 0.3  # fewer points than numbers
    more, others = torch.randn(40, 12, generator=draw), 1.5 * torch.randn(50, 12, generator=draw)
    narrow = [frechet(a, b), frechet(more, others)]
    monkeypatch.setattr(_spread, "WIDE", 11)
    assert [frechet(a, b), frechet(more, others)] == pytest.approx(narrow, rel=1e-6)


def test_large_samples_are_made_in_smaller_parts(role: Latents, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, sizes = role.view(rows(3)).inputs, []
    run = role.run
    monkeypatch.setattr(role, "run", lambda sample, *more: (sizes.append(len(sample)), run(sample, *more))[1])
    monkeypatch.setattr(samples, "NUMBERS", 200)  # three codes of 4 x 4 x 4 numbers
    Samples(steps=(1,), num=7).made(role, "teacher", 1, inputs["label"], (4, 4, 4), Streams(0), {"caption": inputs["caption"]})
    assert sizes == [1, 3, 3, 1]  # the first is not of a sample's time
