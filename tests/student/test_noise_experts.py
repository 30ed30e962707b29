"""Experts for stretches of the way from noise to sample."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from limbeck.check.models import classifier, denoiser
from limbeck.errors import Refused
from limbeck.export.base import Parcel
from limbeck.export.safetensors import Safetensors
from limbeck.model.base import clone
from limbeck.model.denoiser import Denoiser
from limbeck.model.denoising import sampled
from limbeck.model.from_diffusers import build
from limbeck.model.opening import open_pretrained
from limbeck.model.role import as_role
from limbeck.noise.rectified_flow import RectifiedFlow
from limbeck.noise.vp import VP
from limbeck.signals import View
from limbeck.student.lora import Lora
from limbeck.student.noise_experts import NoiseExperts

UNET = {"sample_size": 8, "in_channels": 1, "out_channels": 1, "layers_per_block": 1, "block_out_channels": [8, 16], "norm_num_groups": 4,
        "down_block_types": ["DownBlock2D", "DownBlock2D"], "up_block_types": ["UpBlock2D", "UpBlock2D"]}  # fmt: skip


def apart(role: Any, num: int = 2) -> Any:
    """The role with experts that are marked: each says its own number beside what it would."""
    made: Any = NoiseExperts(num=num, rungs=4)(role)
    with torch.no_grad():
        for i, expert in enumerate(made.module.experts):
            expert.last.weight.zero_()
            expert.last.bias.fill_(i)
    return made


@pytest.mark.parametrize("num, expected", [(2, [0, 0, 1, 1, 1]), (4, [0, 1, 2, 3, 3])])
def test_each_rung_is_the_expert_s_that_begins_there(num: int, expected: list[int]) -> None:
    role = apart(denoiser(dtype=torch.float32), num)
    time = RectifiedFlow().grid(4)  # 1, 0.75, 0.5, 0.25, 0
    said = role.run(torch.randn(5, 2), time, torch.zeros(5, dtype=torch.long))
    assert said[:, 0].tolist() == expected
    between = role.run(torch.randn(2, 2), torch.tensor([0.5001, 0.4999]), torch.zeros(2, dtype=torch.long))
    assert between[:, 0].tolist() == ([0, 1] if num == 2 else [1, 2])  # 0.5 is the first time of the later one


@pytest.mark.parametrize("noise", [VP(), RectifiedFlow(shift=3.0)], ids=lambda n: n.kind)
def test_rungs_are_those_of_the_schedule(noise: Any) -> None:
    config = {"denoiser": "mlp", "width": 8, "depth": 1, "noise": noise.model_dump(mode="json"), "predicts": "denoised"}
    role = apart(as_role_of(config))
    assert role.run(torch.randn(4, 2), noise.grid(4)[:-1], None)[:, 0].tolist() == [0, 0, 1, 1]


def as_role_of(config: dict[str, Any]) -> Denoiser:
    return Denoiser(build(config, "test")).eval()


def test_a_sampler_asks_each_expert_in_its_turn() -> None:
    """Experts that say a velocity of 0 and 1: after four Euler steps of a quarter, two of each, a sample has moved by -1/2."""
    start = torch.randn(6, 2)
    moved = sampled(apart(denoiser(dtype=torch.float32)), start, RectifiedFlow().grid(4), torch.zeros(6, dtype=torch.long))
    assert torch.allclose(moved, start - 0.5, atol=1e-6)


def test_rows_of_mixed_times_are_answered_as_if_alone() -> None:
    role = NoiseExperts(num=2, rungs=2)(denoiser(dtype=torch.float64))
    with torch.no_grad():
        role.module.experts[1].last.bias += 1  # type: ignore[index, union-attr, operator]
    sample, time = torch.randn(6, 2, dtype=torch.float64), torch.tensor([0.9, 0.1, 0.5, 0.6, 0.4, 1.0], dtype=torch.float64)
    whole = role.says(View({"sample": sample, "time": time}), ("velocity",), {})["velocity"]
    alone = [role.says(View({"sample": sample[i : i + 1], "time": time[i : i + 1]}), ("velocity",), {})["velocity"] for i in range(6)]
    assert torch.allclose(whole, torch.cat(alone))


@pytest.mark.parametrize("kind", ["mlp", "unet_2d"])
def test_a_student_of_experts_is_exported_and_opened_again(tmp_path: Path, kind: str) -> None:
    if kind == "unet_2d":
        pytest.importorskip("diffusers")
        config: dict[str, Any] = {"denoiser": kind, "num_classes": 3, "model_args": UNET}
    else:
        config = {"denoiser": kind, "num_classes": 3, "width": 8}
    role: Any = NoiseExperts(num=2, rungs=4)(as_role_of(config))
    with torch.no_grad():
        for p in role.module.experts[1].parameters():
            p += 0.1
    Safetensors()(Parcel(role, tmp_path, {}, ()))
    again: Any = as_role(open_pretrained(f"path:{tmp_path}"))
    assert again.num_classes == 3 and again.parametrisation == role.parametrisation and len(again.module.experts) == 2
    shape = (5, *(8 if axis is None else axis for axis in role.shape))
    view = View({"sample": torch.randn(shape), "time": torch.linspace(0.1, 1, 5), "label": torch.tensor([0, 1, 2, -1, 0])})
    ours, theirs = (one.says(view, ("velocity",), {})["velocity"] for one in (role, again))
    assert torch.equal(ours, theirs) and clone(again).shape == role.shape


@pytest.mark.parametrize("each", [{"denoiser": "experts", "num": 2, "rungs": 2, "each": {"denoiser": "mlp"}}, {"hidden": 3}])
def test_a_config_of_experts_names_one_plain_denoiser(each: dict[str, Any]) -> None:
    with pytest.raises(Refused, match="no experts itself"):
        build({"denoiser": "experts", "num": 2, "rungs": 4, "each": each}, "test")


def test_what_cannot_be_shared_out_is_refused() -> None:
    with pytest.raises(ValidationError, match="a multiple of num"):
        NoiseExperts(num=3, rungs=4)
    with pytest.raises(Refused, match="2 experts already"):
        NoiseExperts()(NoiseExperts()(denoiser()))
    with pytest.raises(Refused, match="a denoiser"):
        NoiseExperts()(classifier())
    pytest.importorskip("peft")
    with pytest.raises(Refused, match="lora after it"):
        NoiseExperts()(Lora(rank=2)(denoiser(dtype=torch.float32)))
