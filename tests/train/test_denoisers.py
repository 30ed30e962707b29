"""Whole stages and runs of denoisers."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.check.models import denoiser, points
from limbeck.errors import Refused
from limbeck.export.safetensors import Safetensors
from limbeck.given import distill
from limbeck.model.base import Models
from limbeck.model.opening import open_pretrained
from limbeck.model.role import as_role
from limbeck.numerics import Streams
from limbeck.planning import plan
from limbeck.start import run
from limbeck.teacher.ema import EMA
from limbeck.train.loop import Loop, World
from limbeck.train.stage import Stage, Turn
from toy import at_home, same  # noqa: F401

LEARN = {"kind": "denoising", "signal": "denoised", "against": "teacher", "huber": 0.001}
VP = {"kind": "vp", "betas": "scaled_linear", "start": 0.00085, "end": 0.012}


def loop(micro: int = 1, forward: Any = "consistency", **world: Any) -> Loop:
    models = Models({"student": copy.deepcopy(denoiser()), "teacher": denoiser(1, width=24), "solver": denoiser(1, width=24)})
    turn = Turn(forward=forward, objective=(LEARN,), batch=4, micro=micro)  # type: ignore[arg-type]
    return Loop(Stage(steps=3, turn=(turn,)), World(models, points(), streams=Streams(0), **world))


def test_a_stage_of_noisy_samples_goes_on_where_it_was_stopped() -> None:
    stopped: list[int] = []
    whole, first = loop(), loop()
    whole.run()
    first.run(stop=lambda: len(stopped) == 2 or bool(stopped.append(1)))
    assert first.step == 2
    second = loop().load(copy.deepcopy(first.state()))
    second.run()
    assert same(second.world.models["student"].module.state_dict(), whole.world.models["student"].module.state_dict())


@pytest.mark.parametrize("forward", ["consistency", {"kind": "noised", "drop_label": 0.5}])
def test_how_a_window_of_noisy_samples_is_cut_changes_nothing(forward: Any) -> None:
    states = []
    for micro in (1, 3):
        one = loop(micro, forward)
        one.run()
        states.append(one.world.models["student"].module.state_dict())
    assert all(torch.allclose(x, states[1][name], atol=1e-9) for name, x in states[0].items())


def test_a_running_mean_follows_the_student_and_says_the_target() -> None:
    models = Models({"student": copy.deepcopy(denoiser()), "solver": denoiser(1, width=24)})
    teacher = EMA(model="config:student", decay=0.95)
    models["teacher"] = teacher.beside(models["student"], models)
    turn = Turn(forward={"kind": "consistency", "solver": "solver", "target": "teacher"}, objective=(LEARN,), batch=4)  # type: ignore[arg-type]
    before = copy.deepcopy(models["student"].module.state_dict())
    one = Loop(Stage(steps=1, turn=(turn,)), World(models, points(), teacher=teacher, streams=Streams(0)))
    one.run()
    for name, x in models["teacher"].module.state_dict().items():
        assert torch.allclose(x, 0.95 * before[name] + 0.05 * models["student"].module.state_dict()[name], atol=1e-9)


def files(folder: Path, **student: Any) -> dict[str, Any]:
    """A recipe of four steps that teaches a small denoiser by adapters, with the folder's models."""
    (folder / "net.json").write_text(json.dumps({"denoiser": "mlp", "width": 16, "num_classes": 8, "noise": VP}))
    (folder / "ring.json").write_text(json.dumps({"denoiser": "gaussian_mixture", "ring": {"modes": 8}, "noise": student.pop("noise", VP)}))
    return {
        "data": [{"kind": "gaussian_mixture", "num": 120}],
        "teacher": f"config:{folder / 'ring.json'}",
        "student": {"start": f"config:{folder / 'net.json'}", "surgery": [{"kind": "lora", "rank": 2}], **student},
        "train": [{"name": "main", "steps": 4, "batch": 4, "forward": {"kind": "consistency", "rungs": 10}, "objective": [LEARN]}],
        "evaluate": [{"kind": "samples", "steps": [1, 2], "teacher_steps": 4, "rungs": 10, "num": 40}],
        "export": ["safetensors"],
        "threads": 1,
    }


def test_a_run_trains_adapters_measures_samples_and_writes_what_opens_again(at_home: Path, tmp_path: Path) -> None:  # noqa: F811
    done = run(files(tmp_path), name="few", base=tmp_path)
    summary: Any = done.summary
    assert (summary["unit"], summary["closeness"]) == ("sample", "samples")
    assert list(summary["student"]["samples"]) == ["1", "2"] and list(summary["teacher"]["samples"]) == ["1", "2", "4"]
    assert {check["name"] for check in summary["checks"]} >= {"Adapters added to the weights", "Exported student, opened again"}
    assert not any(check["open"] for check in summary["checks"])
    assert "document" not in summary["verdict"] and "token" not in summary["verdict"] and "baseline" not in summary["verdict"]
    again: Any = as_role(open_pretrained(f"path:{done.path / 'student'}"))
    assert again.parametrisation.noise.betas == "scaled_linear" and (done.path / "student" / "adapter" / "adapter_config.json").is_file()
    page = (done.path / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 8 and "Samples that each makes" in page  # held out, teacher 3, start 2, student 2


REFUSED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"noise": {"kind": "rectified_flow"}}, {}, "noise"),
    ({"surgery": [{"kind": "drop_blocks", "keep": [0]}]}, {}, "part"),
    ({}, {"compile": True}, "part"),
    ({}, {"evaluate": [{"kind": "samples", "rungs": 50}]}, "forward"),
    ({}, {"data": [{"kind": "digits", "num": 20}]}, "size"),
]


@pytest.mark.parametrize("student, keys, slug", REFUSED)
def test_what_cannot_work_is_refused_by_the_plan(student: Any, keys: Any, slug: str, at_home: Path, tmp_path: Path) -> None:  # noqa: F811
    with pytest.raises(Refused) as told:
        plan({**files(tmp_path, **student), **keys}, probe=False)
    assert told.value.slug == slug


def test_denoisers_without_noise_are_told_the_forward(at_home: Path, tmp_path: Path) -> None:  # noqa: F811
    recipe = files(tmp_path)
    recipe["train"][0] |= {"forward": "paired"}
    with pytest.raises(Refused) as told:
        plan(recipe, probe=False)
    assert told.value.slug == "forward" and "noised" in told.value.do


def test_half_precision_is_written_and_opened(tmp_path: Path) -> None:
    from limbeck.export.base import Parcel

    checks = Safetensors(dtype="bfloat16")(Parcel(denoiser(dtype=torch.float32), tmp_path, {}, ()))
    assert not checks[0]["open"] and as_role(open_pretrained(f"path:{tmp_path}")).parametrisation.null_label == 8


def test_denoisers_at_hand_are_distilled_from_a_loader() -> None:
    student, teacher = denoiser(), denoiser(1, width=24)
    before = copy.deepcopy(student.module.state_dict())
    loader = [{"clean": torch.randn(6, 2, dtype=torch.float64), "label": torch.arange(6)}]
    seen: list[float] = []
    distill(teacher, student, loader, LEARN, 3, forward="consistency", observe=lambda step, means: seen.append(means["denoising"]))
    assert len(seen) == 3 and all(x > 0 for x in seen)
    assert not same(student.module.state_dict(), before)
