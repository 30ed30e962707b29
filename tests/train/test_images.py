"""Whole stages and runs on images."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.check.models import classifier, pictures
from limbeck.data.augment import Augment
from limbeck.data.base import Part, Place, Rows
from limbeck.data.mix_images import MixImages
from limbeck.errors import Refused
from limbeck.model.base import Models
from limbeck.numerics import Streams
from limbeck.recipe import load, text_only
from limbeck.signals import dense
from limbeck.start import run
from limbeck.teacher.cached import Cached
from limbeck.teacher.ensemble import Ensemble
from limbeck.train.loop import Loop, World
from limbeck.train.stage import Stage, Turn
from toy import at_home, metrics, same, state  # noqa: F401

VIT = "timm:vit_tiny_patch16_224?num_classes=10&in_chans=1&img_size=8&patch_size=4&embed_dim=16&depth=2&num_heads=2"
CNN = "timm:resnet10t?num_classes=10&in_chans=1&channels=[8,8,8,8]&size=16"


def loop(micro: int = 1, steps: tuple[Any, ...] = (), classes: int = 10, **world: Any) -> Loop:
    models = Models({"student": copy.deepcopy(classifier()), "teacher": classifier(1, classes=classes, width=24)})
    turn = Turn(objective=({"kind": "cross_entropy"}, {"kind": "forward_kl", "temperature": 2.0}), batch=10, micro=micro)  # type: ignore[arg-type]
    return Loop(Stage(steps=3, turn=(turn,)), World(models, Rows((Part(pictures()),)), steps, streams=Streams(0), **world))


@pytest.mark.parametrize("steps", [(), (Augment(pad=1), MixImages())], ids=["plain", "augmented and mixed"])
def test_softened_logits_and_labels_teach_images_however_a_window_is_cut(steps: tuple[Any, ...]) -> None:
    states = []
    for micro in (1, 4):
        one = loop(micro, steps)
        one.run()
        states.append(one.world.models["student"].module.state_dict())
    assert all(torch.allclose(x, states[1][name], atol=1e-8) for name, x in states[0].items())


def test_a_stage_of_augmented_and_mixed_images_goes_on_where_it_was_stopped() -> None:
    steps, stopped = (Augment(pad=1), MixImages()), []
    whole, first = loop(steps=steps), loop(steps=steps)
    whole.run()
    first.run(stop=lambda: len(stopped) == 2 or bool(stopped.append(1)))
    assert first.step == 2
    second = loop(steps=steps).load(copy.deepcopy(first.state()))
    second.run()
    assert same(second.world.models["student"].module.state_dict(), whole.world.models["student"].module.state_dict())


def test_a_teacher_of_other_classes_is_refused_before_a_step() -> None:
    with pytest.raises(Refused, match="10 of student and 7 of teacher") as caught:
        loop(classes=7)
    assert caught.value.slug == "vocab"


def test_states_of_a_cached_teacher_teach_as_the_live_one_does() -> None:
    teacher, role = Cached(model="config:vit"), classifier(1, width=24)
    kept = teacher.capture(pictures(), role)
    assert set(kept[pictures()[0].key]) == {"hidden"}
    live, cached = loop(), loop(teacher=teacher, kept=kept)
    for one in (live, cached):
        one.run()
    after = cached.world.models["student"].module.state_dict()
    assert all(torch.allclose(x, after[name], atol=1e-8) for name, x in live.world.models["student"].module.state_dict().items())


def test_a_cached_teacher_refuses_images_that_it_has_never_seen() -> None:
    teacher = Cached(model="config:vit")
    kept = teacher.capture(pictures(), classifier(1, width=24))
    with pytest.raises(Refused, match="one that it has never seen") as caught:
        loop(steps=(Augment(pad=1),), teacher=teacher, kept=kept).run()
    assert "run the teacher live" in caught.value.do


def test_several_teachers_are_mixed_and_must_know_the_same_classes() -> None:
    opened = {"a:one": classifier(1), "a:two": classifier(2, width=24), "a:other": classifier(3, classes=7)}
    teacher = Ensemble(teachers=("a:one", "a:two")).open(opened.get)  # type: ignore[arg-type]
    rows = list(pictures()[:4])
    with torch.no_grad():
        p, q = (dense(role.says(role.view(rows), ("logits",), {})["logits"]).softmax(-1) for role in (opened["a:one"], opened["a:two"]))
        mixed = dense(teacher.says(teacher.view(rows), ("logits",), {})["logits"]).softmax(-1)
    assert torch.allclose(mixed, (p + q) / 2, atol=1e-6)
    with pytest.raises(Refused, match="10 classes, as the first teacher has"):
        Ensemble(teachers=("a:one", "a:other")).open(opened.get)  # type: ignore[arg-type]


def recipe(**change: Any) -> dict[str, Any]:
    objective = ["cross_entropy", {"kind": "exit_heads", "stages": [1, 2]}]
    return {
        "data": [{"kind": "digits", "num": 60, "split": 0.3}, {"kind": "augment", "pad": 1, "flip": 0.0}],
        "teacher": CNN,
        "student": {"start": VIT},
        "train": [{"name": "main", "objective": objective, "steps": 2, "batch": 4, "checkpoint": {"every": 1}}],
        "baseline": ["labels_only"],
        "evaluate": ["accuracy", "agreement"],
        "export": ["safetensors"],
        "threads": 1,
        **change,
    }


def test_the_baseline_of_labels_only_is_the_same_student_without_its_teacher() -> None:
    whole = load(recipe())
    alone = text_only(whole)
    assert alone.teacher is None and [o.kind for o in alone.train[0].turn[0].objective] == ["cross_entropy"]  # type: ignore[attr-defined]
    assert (alone.data, alone.student, alone.train[0].steps) == (whole.data, whole.student, whole.train[0].steps)


@pytest.mark.slow
def test_a_run_ends_with_a_verdict_about_images_pictures_and_a_student_that_teaches_the_next_run(tmp_path: Path) -> None:
    done = run(recipe(), name="first")
    summary, page = done.summary, (done.path / "report.html").read_text()
    assert summary["unit"] == "image" and "held-out images right" in done.verdict and summary["baseline"]["name"] == "labels only"
    assert summary["teacher"]["top1"] == 1 and summary["teacher"]["kl"] < 1e-6
    assert page.count("<img") == min(24, summary["held_out"]["targets"]) and "perplexity" not in summary["student"]
    assert [line["command"] for line in summary["not_measured"]] == ["limbeck run first seed=1"]
    losses = {r["name"] for r in metrics(done.path)}
    assert {"cross_entropy", "exit_heads"} <= losses and not any(name.startswith("exit") for name in state(done.path))
    next_one = run(recipe(teacher="run:first", baseline=[], evaluate=["accuracy"], student={"start": CNN}), name="second")
    assert next_one.summary["teacher"]["accuracy"] == summary["student"]["accuracy"]


def test_rows_of_the_wrong_channels_are_refused_before_a_weight_is_read() -> None:
    with pytest.raises(Refused) as caught:
        run(recipe(student={"start": VIT.replace("in_chans=1", "in_chans=3")}))
    assert caught.value.slug == "channels"


@pytest.mark.parametrize("change", [{"student": {"start": VIT, "surgery": [{"kind": "lora"}]}}, {"compile": True}], ids=["surgery", "compile"])
def test_what_changes_the_blocks_of_a_language_model_is_refused_of_a_classifier(change: dict[str, Any]) -> None:
    with pytest.raises(Refused) as caught:
        run(recipe(**change))
    assert caught.value.slug == "part" and caught.value.got == "VisionTransformer"


def test_place_of_a_window_alone_decides_what_is_drawn() -> None:
    models = Models({"student": classifier()})
    batch = models.batch(pictures()[:4])
    one, other = (Augment(pad=1).window(batch, Place(models, Streams(seed), 3), None).keys for seed in (0, 1))
    assert one != other
