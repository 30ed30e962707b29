"""Adapters as files: what is added is what peft adds."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from limbeck.check.models import move
from limbeck.errors import Refused
from limbeck.model.adapter_files import CONFIG, WEIGHTS, with_adapters, write_adapter
from limbeck.model.adapters import adapted, merged
from limbeck.model.base import clone
from limbeck.model.denoiser import Denoiser
from limbeck.model.from_diffusers import build
from limbeck.signals import View
from limbeck.student.lora import Lora

peft = pytest.importorskip("peft")
pytest.importorskip("diffusers")
SIZES = {"in_channels": 1, "out_channels": 1, "sample_size": 8, "block_out_channels": [8, 16], "layers_per_block": 1, "norm_num_groups": 4,
         "down_block_types": ["DownBlock2D", "AttnDownBlock2D"], "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
         "attention_head_dim": 8}  # fmt: skip


def unet(seed: int = 0) -> Denoiser:
    config = {"denoiser": "unet_2d", "num_classes": 3, "noise": {"kind": "vp"}, "predicts": "epsilon", "seed": seed, "model_args": SIZES}
    return Denoiser(build(config, "test")).eval()


@torch.no_grad()
def says(role: Any) -> torch.Tensor:
    sample = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return role.says(View({"sample": sample, "time": torch.tensor([20.0, 700.0]), "label": torch.tensor([0, -1])}), ("epsilon",), {})["epsilon"]


def learned(role: Denoiser, seed: int, **fields: Any) -> Denoiser:
    made: Any = Lora(**fields)(clone(role))
    move(made, seed)
    return made.eval()


def test_adapters_of_a_u_net_stand_beside_what_the_published_method_names() -> None:
    role: Any = Lora(rank=4, alpha=4)(unet())
    assert torch.equal(says(role), says(unet()))
    found = {name.rpartition(".")[2] for name in adapted(role.module)}
    assert found == {"to_q", "to_k", "to_v", "0", "conv1", "conv2", "conv_shortcut", "conv", "time_emb_proj"}  # 0: of to_out; conv: of the samplers
    assert not any("conv_in" in name or "conv_out" in name or "time_embedding" in name for name in adapted(role.module))
    kinds = {type(layer.get_base_layer()).__name__ for layer in adapted(role.module).values()}
    assert kinds == {"Conv2d", "Linear"}


def test_what_adapters_change_is_added_to_the_weights_of_convolutions_too(tmp_path: Path) -> None:
    role = learned(unet(), 1, rank=4, alpha=8)
    write_adapter(role, tmp_path / "a")
    for made in (merged(role), with_adapters(unet(), [(tmp_path / "a", 1.0)])):
        assert not adapted(made.module)
        assert (says(made) - says(role)).abs().max() < 1e-5 * says(role).abs().max() + 1e-6
    assert (says(role) - says(unet())).abs().max() > 1e-2


def test_shares_of_two_adapters_are_what_peft_says_with_both(tmp_path: Path) -> None:
    base, shares = unet(), (0.8, 1.0)  # as the documentation of diffusers has them: style, few steps
    for i, name in enumerate(("style", "few")):
        write_adapter(learned(base, i + 1, rank=3 + i, alpha=6), tmp_path / name)
    wrapped: Any = peft.PeftModel.from_pretrained(clone(base).module, str(tmp_path / "style"), adapter_name="style")
    wrapped.load_adapter(str(tmp_path / "few"), adapter_name="few")
    for layer in wrapped.modules():
        if hasattr(layer, "set_scale") and hasattr(layer, "lora_A"):
            for name, share in zip(("style", "few"), shares, strict=True):
                layer.set_scale(name, share)
    wrapped.base_model.set_adapter(["style", "few"])
    theirs = Denoiser(wrapped.base_model.model, base.parametrisation).eval()
    ours = with_adapters(base, [(tmp_path / "style", shares[0]), (tmp_path / "few", shares[1])])
    assert (says(ours) - says(theirs)).abs().max() < 1e-5 * says(theirs).abs().max()
    alone = with_adapters(base, [(tmp_path / "style", shares[0])])
    assert (says(ours) - says(alone)).abs().max() > 1e-2


def test_an_adapter_is_plugged_into_another_model_of_the_same_shapes(tmp_path: Path) -> None:
    base, tuned = unet(), unet(seed=1)
    role = learned(base, 1, rank=4)
    write_adapter(role, tmp_path)
    ours, whole = with_adapters(tuned, [(tmp_path, 1.0)]), merged(role)
    for name, weight in ours.module.state_dict().items():
        change = whole.module.state_dict()[name] - base.module.state_dict()[name]
        assert torch.allclose(weight, tuned.module.state_dict()[name] + change, atol=1e-6)
    assert torch.equal(says(tuned), says(unet(seed=1)))


def test_half_of_an_adapter_is_half_of_the_change(tmp_path: Path) -> None:
    base = unet()
    write_adapter(learned(base, 1, rank=2), tmp_path)
    half, whole = (with_adapters(base, [(tmp_path, share)]).module.state_dict() for share in (0.5, 1.0))
    before = base.module.state_dict()
    assert all(torch.allclose(half[name] - before[name], (whole[name] - before[name]) / 2, atol=1e-6) for name in before)


def test_an_adapter_that_does_not_fit_or_is_more_than_two_matrices_is_refused(tmp_path: Path) -> None:
    write_adapter(learned(unet(), 1, rank=2), tmp_path)
    other = build({"denoiser": "mlp"}, "test")
    with pytest.raises(Refused, match="a model with the layer") as told:
        with_adapters(Denoiser(other), [(tmp_path, 1.0)])
    assert told.value.slug == "adapters"
    (tmp_path / CONFIG).write_text((tmp_path / CONFIG).read_text().replace('"bias": "none"', '"bias": "none", "use_dora": true'))
    with pytest.raises(Refused, match="use_dora"):
        with_adapters(unet(), [(tmp_path, 1.0)])
    (tmp_path / CONFIG).write_text((tmp_path / CONFIG).read_text().replace(', "use_dora": true', ""))
    tensors = load_file(tmp_path / WEIGHTS)
    first = next(key for key in sorted(tensors) if ".lora_A" in key)
    kohya = {key.replace(".lora_A.", ".lora.down.").replace(".lora_B.", ".lora.up."): x for key, x in tensors.items()}
    more, half = {**tensors, "base_model.model.last.weight": tensors[first].clone()}, {k: x for k, x in tensors.items() if ".lora_B" not in k}
    for found in (more, kohya, half, {}):
        save_file({key: x.contiguous() for key, x in found.items()}, tmp_path / WEIGHTS)
        with pytest.raises(Refused, match="pairs of lora_A and lora_B"):
            with_adapters(unet(), [(tmp_path, 1.0)])
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(Refused, match="an adapter of peft"):
        with_adapters(unet(), [(tmp_path, 1.0)])
    with pytest.raises(Refused, match="a student with adapters"):
        write_adapter(unet(), tmp_path)
