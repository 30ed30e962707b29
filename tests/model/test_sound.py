"""Encoders of speech: what they say is what transformers says itself, of each clip as if it were alone."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from limbeck.data.base import Part, Rows
from limbeck.errors import Refused
from limbeck.model.base import Models
from limbeck.model.opening import open_meta, open_pretrained
from limbeck.model.reference import Reference
from limbeck.model.role import as_role, without_weights
from limbeck.model.sound import Hearing, Sound
from limbeck.numerics import Streams
from limbeck.signals import Row
from limbeck.student.drop_blocks import DropBlocks
from limbeck.teacher.cached import Cached
from limbeck.train.loop import Loop, World
from limbeck.train.stage import Stage

LENGTHS = (90, 41, 90, 64)
"""Two clips are of one length."""


def module(kind: str, norm: str = "group", **more: Any) -> Any:
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 8}
    front = {"conv_dim": [8, 8], "conv_kernel": [10, 3], "conv_stride": [5, 2], "num_feat_extract_layers": 2, "feat_extract_norm": norm}
    places = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "do_stable_layer_norm": norm == "layer"}
    still = dict.fromkeys(("hidden_dropout", "activation_dropout", "attention_dropout", "feat_proj_dropout"), 0.0)
    config: Any = transformers.AutoConfig.for_model(kind, **{**sizes, **front, **places, **still, **more})
    torch.manual_seed(0)
    made: Any = transformers.AutoModel.from_config(config)
    for parameter in made.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return made.double().eval()


def rows(*lengths: int, rate: int = 16_000) -> list[Row]:
    draw = torch.Generator().manual_seed(1)
    return [Row(str(i), {"wave": torch.randn(n, generator=draw), "rate": rate}) for i, n in enumerate(lengths)]


def said(role: Sound, some: list[Row], *names: str) -> dict[str, Any]:
    with torch.no_grad():
        return role.says(role.view(some), names, {})


@pytest.mark.parametrize("kind", ["wav2vec2", "hubert", "wavlm"])
@pytest.mark.parametrize("norm", ["group", "layer"])
def test_states_are_those_that_transformers_lists(kind: str, norm: str) -> None:
    made = module(kind, norm)
    role = Sound(made, Hearing(normalise=False))
    got = said(role, rows(90), "front", "hidden.0", "hidden.1", "hidden.2", "hidden.-1", "wave")
    wave = rows(90)[0].content["wave"]
    with torch.no_grad():
        front = made.feature_extractor(wave[None].double())
        out = made(wave[None].double(), output_hidden_states=True)
    assert role.view(rows(90)).ragged.tolist() == [front.shape[-1]] == [8]  # (90 - 10) // 5 + 1 = 17; (17 - 3) // 2 + 1
    assert torch.allclose(got["front"], front[0].mT) and torch.equal(got["wave"], wave)
    for i in (0, 1, 2):
        assert torch.allclose(got[f"hidden.{i}"], out.hidden_states[i][0]), i
    last = made.encoder.layer_norm(got["hidden.-1"]) if norm == "layer" else got["hidden.-1"]
    assert torch.allclose(last, out.last_hidden_state[0])


@pytest.mark.parametrize("norm", ["group", "layer"])
@pytest.mark.parametrize("kind", ["wav2vec2", "wavlm"])
def test_a_clip_among_longer_ones_says_what_it_says_alone_in_value_and_gradient(kind: str, norm: str) -> None:
    role, some = Sound(module(kind, norm)), rows(*LENGTHS)
    names = ("front", "hidden.0", "hidden.3")
    alone = [said(role, [row], *names) for row in some]
    together = said(role, some, *names)
    for name in names:
        assert torch.allclose(together[name], torch.cat([one[name] for one in alone]), rtol=1e-10, atol=1e-12), name
    role.requires_grad_(True)
    gradients = []
    for groups in ([some], [[row] for row in some]):
        role.zero_grad()
        sum(role.says(role.view(group), ("hidden.3",), {})["hidden.3"].square().sum() for group in groups).backward()  # type: ignore[union-attr]
        gradients.append(torch.cat([p.grad.flatten() for p in role.parameters() if p.grad is not None]))
    assert torch.allclose(*gradients, rtol=1e-8, atol=1e-10)


def test_filling_up_with_zeros_would_change_what_a_group_norm_over_time_says() -> None:
    made, (long, short, *_) = module("hubert"), rows(*LENGTHS)
    waves = [row.content["wave"].double() for row in (long, short)]
    with torch.no_grad():
        filled = made.feature_extractor(torch.nn.utils.rnn.pad_sequence(waves, batch_first=True))[1, :, :3]
        assert not torch.allclose(filled, made.feature_extractor(waves[1][None])[0, :, :3], atol=1e-2)


def test_a_clip_is_normalised_as_the_extractor_of_transformers_does_it() -> None:
    wave = 3 + 2 * rows(90)[0].content["wave"]
    theirs = transformers.Wav2Vec2FeatureExtractor(do_normalize=True)([wave.numpy()], sampling_rate=16_000, return_tensors="pt")
    assert torch.allclose(Hearing()(wave), theirs["input_values"][0], atol=1e-5)
    assert torch.equal(Hearing(normalise=False)(wave), wave)


@pytest.mark.parametrize("kind", ["wav2vec2", "wavlm"])
def test_the_first_blocks_of_a_teacher_say_in_the_student_what_they_said_in_it(kind: str) -> None:
    teacher, some = Sound(module(kind)), rows(90, 64)
    before = said(teacher, some, "front", "hidden.1", "hidden.2")
    student = DropBlocks(keep=(0, 1))(Sound(copy.deepcopy(teacher.module)))
    assert student.num_layers == 2 and student.module.config.num_hidden_layers == 2 and teacher.num_layers == 3  # type: ignore[union-attr]
    after = said(student, some, "front", "hidden.1", "hidden.-1")  # type: ignore[arg-type]
    assert all(torch.equal(a, b) for a, b in zip(before.values(), after.values(), strict=True))
    assert len(student.module.state_dict()) < len(teacher.module.state_dict())


def test_masked_spans_and_dropped_blocks_are_off_in_training() -> None:
    role, some = Sound(module("wav2vec2", mask_time_prob=0.9, mask_time_length=2, layerdrop=0.9)), rows(90, 64)
    listened = said(role, some, "hidden.3")["hidden.3"]
    role.train()
    assert torch.allclose(role.says(role.view(some), ("hidden.3",), {})["hidden.3"], listened)


def test_no_rows_say_nothing_and_stay_connected() -> None:
    role = Sound(module("wavlm", "layer"))
    role.requires_grad_(True)
    view = role.view(rows(*LENGTHS)).at(torch.arange(0))
    got = role.says(view, ("front", "hidden.2", "wave"), {})
    assert [len(got[name]) for name in got] == [0, 0, 0]
    got["hidden.2"].sum().backward()


def test_parts_of_a_view_are_the_views_of_the_parts() -> None:
    role, some = Sound(module("hubert")), rows(*LENGTHS)
    part, alone = role.view(some).at(torch.tensor([1, 3])), role.view([some[1], some[3]])
    assert torch.equal(part.inputs["wave"], alone.inputs["wave"])
    assert part.ragged.tolist() == alone.ragged.tolist() == [3, 5]
    assert torch.equal(part.rows("instant"), alone.rows("instant")) and len(part.rows("instant")) == 41 + 64
    assert torch.equal(part.targets, torch.arange(8)), "each frame is a target: nothing stands before it that it would be predicted from"


def test_roles_share_a_view_only_if_they_cut_the_same_frames() -> None:
    other = module("hubert")
    other.config.conv_stride = [5, 4]
    other.feature_extractor.conv_layers[1].conv.stride = (4,)
    models = Models({"student": Sound(other), "teacher": Sound(module("hubert")), "peer": Sound(other)})
    batch = models.batch(rows(*LENGTHS))
    assert set(batch.views) == {"student", "teacher"}
    assert batch.view("teacher").ragged.tolist() == [8, 3, 8, 5] and batch.view("peer").ragged.tolist() == [4, 2, 4, 3]
    assert len(models.says("student", batch, ("hidden.1",))["hidden.1"]) == 13


@pytest.mark.parametrize(
    ("content", "slug", "told"),
    [
        ({"wave": torch.zeros(90), "rate": 8_000}, "rate", "write rate: 16000"),
        ({"wave": torch.zeros(2, 90), "rate": 16_000}, "channels", "shape (2, 90) mix the channels"),
        ({"wave": torch.zeros(19), "rate": 16_000}, "length", "19 leave out"),  # 20 = 10 + 5 * (3 - 1): three steps of the first make one frame
        ({"wave": torch.zeros(90, dtype=torch.int16), "rate": 16_000}, "data", "torch.int16"),
        ({"text": "no sound"}, "data", "none use a source of sounds"),
    ],
)
def test_rows_that_an_encoder_cannot_hear_are_refused(content: dict[str, Any], slug: str, told: str) -> None:
    role = Sound(module("hubert"))
    with pytest.raises(Refused) as caught:
        role.view([Row("a", content)])
    assert caught.value.slug == slug and told in f"{caught.value.got} {caught.value.do}"
    assert role.least == 20 and role.view(rows(20)).ragged.tolist() == [1]


def test_a_config_and_a_folder_open_as_what_hears_sounds(tmp_path: Path) -> None:
    made = module("wavlm").float()
    made.save_pretrained(tmp_path / "saved")
    (tmp_path / "saved" / "preprocessor_config.json").write_text(json.dumps({"sampling_rate": 8_000, "do_normalize": False}))
    role = as_role(open_pretrained(f"path:{tmp_path / 'saved'}"))
    assert isinstance(role, Sound) and role.hearing == Hearing(8_000, False) and role.num_layers == 3
    with torch.no_grad():
        wave = rows(90)[0].content["wave"]
        got = role.says(role.view(rows(90, rate=8_000)), ("hidden.3",), {})["hidden.3"]
        assert torch.allclose(got, made(wave[None]).last_hidden_state[0], atol=1e-5)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    (tmp_path / "tiny.yaml").write_text(json.dumps({"model_type": "hubert", **sizes, "conv_dim": [8] * 7}))
    tiny = as_role(open_pretrained(text := f"config:{tmp_path / 'tiny.yaml'}"))
    assert isinstance(tiny, Sound) and tiny.least == 400 and tiny.hearing == Hearing()  # 25 ms at 16 kHz, as published
    plan = without_weights(open_meta(text)[0], lambda: None, Reference.parse(text))
    cost = plan.row_cost(rows(16_000))
    assert cost is not None and cost[0] > 2 * 3200 * 10 * 8  # at least the first convolution: 3,199 steps of 10 numbers into 8 channels


def test_an_extractor_that_says_nonsense_is_refused_with_its_field(tmp_path: Path) -> None:
    for field, value in (("sampling_rate", "16k"), ("do_normalize", 1)):
        (tmp_path / "preprocessor_config.json").write_text(json.dumps({field: value}))
        with pytest.raises(Refused, match=field):
            Hearing.read(tmp_path)


def test_every_family_of_sounds_in_the_folder_is_tested_here() -> None:
    from limbeck.model.sound import __file__ as here

    assert {path.stem for path in (Path(here).parent / "families" / "sound").glob("*.json")} == {"wav2vec2", "hubert", "wavlm"}


def test_answers_of_an_encoder_are_not_kept_and_that_is_said_before_it_is_asked() -> None:
    with pytest.raises(Refused, match="one that says none") as caught:
        Cached(model="config:tiny.json", taps=("hidden.1",)).open(lambda text: Sound(module("hubert")))
    assert "write teacher: config:tiny.json" in caught.value.do


def after_a_step(micro: int, **more: Any) -> torch.Tensor:
    """What a student has become after one step on corrupted clips of unequal lengths."""
    models = Models({"student": Sound(module("hubert")), "teacher": Sound(module("wavlm", hidden_size=24))})
    heads = [{"kind": "layer_heads", "layers": [1, 3]}, {"kind": "enhancement_head", "hop": 5, "window": 10, "size": 10, "width": 4, "depth": 1}]
    turn = {"objective": heads, "batch": 4, "micro": micro, "data": [{"kind": "corrupt_sound", **{"noisy": 1.0, **more}}], "optimiser": {"lr": 0.01}}
    some = Rows((Part(tuple(rows(*LENGTHS))),))
    loop = Loop(Stage.model_validate({"steps": 1, "turn": [turn]}), World(models, some, (), None, {}, Streams(0)))
    for running in loop.running:
        for learned in running.learned:
            assert learned is not None
            learned.double()
    assert loop.run()
    return torch.cat([p.detach().flatten() for p in models["student"].parameters()])


def test_how_a_window_is_cut_changes_no_step_and_what_the_student_hears_does() -> None:
    whole, cut, other = after_a_step(1), after_a_step(3), after_a_step(1, noisy=0.0)
    start = torch.cat([p.detach().flatten() for p in Sound(module("hubert")).parameters()])
    assert (whole - start).abs().max() > 1e-3 and not torch.allclose(whole, other, atol=1e-4)
    assert torch.allclose(whole, cut, rtol=1e-5, atol=1e-7)


def test_the_first_block_of_wavlm_which_holds_the_table_of_positions_is_not_dropped() -> None:
    with pytest.raises(Refused, match="block 0 among them") as caught:
        DropBlocks(keep=(1, 2))(Sound(module("wavlm")))
    assert caught.value.slug == "layer" and caught.value.do == "add 0 to keep"
    seen: list[int] = []

    def score(now: Any) -> float:  # it runs, with whatever blocks are left
        seen.append(now.num_layers)
        return float(said(now, rows(90), "hidden.-1")["hidden.-1"].isnan().sum())

    assert DropBlocks(choose="influence").settle(Sound(module("wavlm")), score) == DropBlocks(keep=(0, 1)) and seen == [2, 2]
    left = DropBlocks(keep=(0, 2))(Sound(module("wavlm")))
    assert said(left, rows(90), "hidden.-1")["hidden.-1"].isfinite().all()
    assert DropBlocks(keep=(1, 2))(Sound(module("hubert"))).num_layers == 2
