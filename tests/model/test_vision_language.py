"""Vision-language models: what they say is what transformers' own forward pass says, and every role knows its own spans."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from limbeck.check.contract import NotClaimed
from limbeck.check.models import TOKENIZER, Trial, described, family_of, quiet, sighted, sighted_of
from limbeck.errors import Refused
from limbeck.export.base import Parcel
from limbeck.export.safetensors import Safetensors
from limbeck.model.anatomy import anatomy
from limbeck.model.base import Models
from limbeck.model.loading import named_tokenizer
from limbeck.model.opening import image_token, open_meta, open_pretrained
from limbeck.model.pixels import Preprocessing
from limbeck.model.reference import Reference
from limbeck.model.role import as_role, without_weights
from limbeck.model.vision_family import vision_family
from limbeck.model.vision_language import VisionLanguage
from limbeck.numerics import log_probs
from limbeck.objective.forward_kl import ForwardKL
from limbeck.objective.gram import Gram
from limbeck.objective.hidden_mse import HiddenMSE
from limbeck.signals import Row, View, dense
from limbeck.student.drop_blocks import DropBlocks

ROWS = described().train
NAMES = ("logits", "label", "hidden.1", "patch_features", "patch_embedding", "patch_hidden.1", "patch_hidden.-1", "patch_logits")


def padded(role: VisionLanguage, view: View) -> dict[str, Tensor]:
    """The rows of a view as transformers takes them, padded to the right, with labels where something is asked for."""
    lengths, longest = view.ragged.tolist(), int(view.ragged.max())

    def pad(x: Tensor, value: int) -> Tensor:
        return torch.stack([torch.nn.functional.pad(part, (0, longest - len(part)), value=value) for part in x.split(lengths)])

    ids = view.inputs["ids"]
    asked = view.span("response")
    return {
        "input_ids": pad(ids, 0),
        "attention_mask": pad(torch.ones_like(ids), 0),
        "labels": pad(torch.where(asked, ids, -100), -100),
        "pixel_values": role.preprocessing(view.inputs["pixels"], torch.float64),
    }


def said(role: VisionLanguage, view: View, *names: str, layout: Any = "auto", **inject: Tensor) -> dict[str, Tensor]:
    role.layout = layout
    with torch.no_grad():
        return {name: dense(x) for name, x in role.says(view, names, inject).items()}


def of(role: VisionLanguage, x: Tensor, view: View, span: Any) -> Tensor:
    """Of a padded tensor, the positions of a span, row after row."""
    return torch.cat([row[mask] for row, mask in zip(x, view.span(span).split(view.ragged.tolist()), strict=False)])


def flat(x: Tensor, view: View) -> Tensor:
    return torch.cat([row[:n] for row, n in zip(x, view.ragged.tolist(), strict=True)])


def test_its_cross_entropy_is_the_loss_that_transformers_computes_on_the_padded_batch() -> None:
    role = sighted_of()
    view = role.view(ROWS)
    with torch.no_grad():
        theirs = role.module(**padded(role, view)).loss
    found = said(role, view, "logits", "label")
    ours = -log_probs(found["logits"]).gather(-1, found["label"][:, None]).mean()
    assert torch.allclose(ours, theirs.to(ours.dtype), rtol=1e-5)
    assert len(found["label"]) == int(view.span("response").sum()), "the first token of an answer is predicted too, and nothing behind the last"


def test_logits_and_states_are_those_of_transformers_at_the_same_positions() -> None:
    role = sighted_of()
    view = role.view(ROWS)
    with torch.no_grad():
        out = role.module(**padded(role, view), output_hidden_states=True)
        embedded = role.module.get_image_features(pixel_values=padded(role, view)["pixel_values"]).pooler_output  # type: ignore[operator]
    found = said(role, view, *NAMES, layout="padded")
    logits = flat(out.logits, view)
    near: dict[str, float] = {"rtol": 1e-5, "atol": 1e-6}  # transformers computes norms in float32
    assert torch.allclose(found["logits"], logits[view.targets - 1], **near)
    assert torch.allclose(found["patch_logits"], logits[view.span("vision")], **near)
    assert torch.allclose(found["patch_embedding"], torch.cat(list(embedded)), **near)
    assert torch.allclose(found["patch_hidden.1"], flat(out.hidden_states[1], view)[view.span("vision")], **near)
    assert torch.allclose(found["hidden.1"], flat(out.hidden_states[1], view), **near)
    final = role.module.get_submodule(role.anatomy.path("final_norm"))(found["patch_hidden.-1"])
    assert torch.allclose(final, flat(out.hidden_states[-1], view)[view.span("vision")], **near)


def test_packed_padded_and_row_by_row_it_says_the_same() -> None:
    role = sighted_of()
    view = role.view(ROWS)
    whole = said(role, view, *NAMES, layout="padded")
    alone = [said(role, view.at(torch.tensor([i])), *NAMES) for i in range(view.num_rows)]
    others = {"packed": said(role, view, *NAMES, layout="packed"), "alone": {n: torch.cat([part[n] for part in alone]) for n in NAMES}}
    for how, found in others.items():
        for name in NAMES:
            assert torch.allclose(found[name].double(), whole[name].double(), rtol=1e-5, atol=1e-6), f"{name}, {how}"


def test_no_rows_give_signals_of_nothing() -> None:
    role = sighted_of()
    view = role.view(ROWS)
    whole, none = said(role, view, *NAMES), said(role, view.at(torch.arange(0)), *NAMES)
    assert {name: tuple(x.shape) for name, x in none.items()} == {name: (0, *x.shape[1:]) for name, x in whole.items()}


def test_spans_are_the_image_the_question_and_the_answer() -> None:
    role = sighted_of()
    view = role.view([Row("a", {**ROWS[0].content, "prompt": "Is it <image>?", "answer": "yes"})])
    spelled = "".join({"vision": "v", "prompt": "p", "response": "r"}[s] for s in span_of(view))
    assert spelled == "p" * 7 + "v" * 4 + "p" + "r" * 4  # the begin and 'Is it ', four tokens of 8x8 pixels in patches of 4, '?', 'yes' and the end
    assert view.inputs["ids"][7:11].tolist() == [255] * 4
    assert not (view.at(torch.arange(0)).span("vision")).any()


def span_of(view: View) -> list[str]:
    spans = {name: view.span(name).tolist() for name in ("vision", "prompt", "response")}  # type: ignore[arg-type]
    return [next(name for name in spans if spans[name][i]) for i in range(int(view.ragged.sum()))]


def unlike() -> Models:
    """A teacher that makes 16 visual tokens of an image, and a student that makes 4."""
    return Models({"student": sighted_of(), "teacher": sighted_of(1, patch=2, layers=3)})


def test_each_role_has_its_own_spans_where_numbers_of_visual_tokens_differ() -> None:
    models = unlike()
    batch = models.batch(ROWS)
    assert set(batch.views) == {"student", "teacher"}
    views = batch.view("student"), batch.view("teacher")
    assert [int(view.span("vision").sum()) for view in views] == [4 * len(ROWS), 16 * len(ROWS)]
    labels = [view.inputs["ids"][view.targets] for view in views]
    assert torch.equal(*labels)
    part = batch.at(torch.tensor([1, 3]))
    assert [int(part.view(role).rows("patch").bincount()[1]) for role in ("student", "teacher")] == [4, 16]


def test_answers_are_compared_where_numbers_of_visual_tokens_differ() -> None:
    models = unlike()
    said = {name: models.says(name, models.batch(ROWS), ("logits",)) for name in ("student", "teacher")}
    p, q = (log_probs(dense(said[name]["logits"])) for name in ("teacher", "student"))
    found = ForwardKL()(said)
    assert torch.allclose(found.total, (p.exp() * (p - q)).sum()) and found.count == len(p)


@pytest.mark.parametrize(
    "objective", [ForwardKL(per="patch"), Gram(), Gram(of="hidden"), HiddenMSE()], ids=["patch", "gram", "gram_hidden", "hidden"]  # type: ignore[call-arg]
)
def test_visual_tokens_of_other_numbers_are_not_compared_one_by_one(objective: Any) -> None:
    with pytest.raises(Refused, match="as many in each row") as caught:
        Trial(models=unlike(), objective=(objective,))
    assert caught.value.slug == "units" and {"4 of student", "16 of teacher"} <= set(caught.value.got.split(" and "))


def test_the_number_of_visual_tokens_is_the_towers_whatever_a_config_says() -> None:
    text = transformers.LlamaConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=258)
    sizes: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    vision = transformers.SiglipVisionConfig(**sizes, image_size=384, patch_size=14, vision_use_head=False)
    fields: dict[str, Any] = {"vision_config": vision, "text_config": text, "image_token_index": 255, "image_seq_length": 728}
    for strategy, expected in (("full", 729), ("default", 728)):  # 384 // 14 = 27, squared; `default` leaves the first out, which is no class here
        config = transformers.LlavaConfig(**fields, vision_feature_select_strategy=strategy, vision_feature_layer=-1)
        with torch.device("meta"):
            module: Any = transformers.LlavaForConditionalGeneration(config)
        family = vision_family(module)
        assert family is not None
        assert VisionLanguage(module, TOKENIZER, anatomy(module), family).num_patches == expected


def row(prompt: str = "<image>\nWhat?", answer: str = "this", **content: Any) -> Row:
    return Row("a", {**ROWS[0].content, "prompt": prompt, "answer": answer, **content})


@pytest.mark.parametrize(
    ("given", "slug", "told"),
    [
        (row("What?"), "image", "0 of <image>"),
        (row("<image> or <image>?"), "image", "2 of <image>"),
        (row("What?", "<image>"), "image", "in what is to be answered"),
        (row("<image>?", "an <image>"), "image", "2 of <image>"),
        (Row("a", {"prompt": "<image>?", "answer": "this"}), "data", "none"),
        (row(pixels=torch.zeros(3, 8, 8, dtype=torch.uint8)), "channels", "3"),
        (row(answer="long " * 20), "context", "4 of them of the image"),
    ],
    ids=["no_mark", "two_marks", "in_the_answer", "both", "no_image", "channels", "long"],
)
def test_rows_whose_text_and_image_disagree_are_refused_by_name(given: Row, slug: str, told: str) -> None:
    for ask in (sighted_of().view, sighted_of().refuse):
        with pytest.raises(Refused) as caught:
            ask([given])
        assert caught.value.slug == slug and caught.value.where == "row a" and told in caught.value.got


def test_a_view_of_another_number_of_visual_tokens_is_refused() -> None:
    view = sighted_of(patch=2).view(ROWS)
    with pytest.raises(Refused, match="a position for each visual token"):
        said(sighted_of(), view, "logits")


def test_what_the_connector_hears_can_come_from_another_tower() -> None:
    models = sighted()
    student, teacher = models["student"], models["teacher"]
    assert isinstance(teacher, VisionLanguage) and isinstance(student, VisionLanguage)
    view = teacher.view(ROWS)
    own = said(teacher, view, "logits", "patch_features", "patch_embedding")
    again = said(teacher, view, "logits", "patch_features", patch_features=own["patch_features"])
    assert torch.allclose(again["logits"], own["logits"])
    assert torch.allclose(said(teacher, view, "logits", patch_embedding=own["patch_embedding"])["logits"], own["logits"])
    other = (own["patch_features"] * 0.5).requires_grad_()
    heard = teacher.says(view, ("logits", "patch_features"), {"patch_features": other})
    (slope,) = torch.autograd.grad(dense(heard["logits"]).pow(2).sum(), other)
    assert not torch.allclose(dense(heard["logits"]), own["logits"]) and slope.any() and heard["patch_features"] is other


# tokenizers, templates, processors


def fast() -> VisionLanguage:
    """A role whose tokenizer has a token for images, added at its end."""
    tokenizer = named_tokenizer("python_4k")
    number = image_token(tokenizer)["image_token_index"]
    role = sighted_of()
    module: Any = copy.deepcopy(role.module)
    module.config.image_token_index = number
    module.resize_token_embeddings(len(tokenizer))
    made = VisionLanguage(module.float(), tokenizer, role.anatomy, role.family)
    made.context = None
    return made


def test_ids_are_those_of_the_processor_of_transformers(tmp_path: Path) -> None:
    role = fast()
    role.tokenizer.save_pretrained(str(tmp_path))
    role.accompany(tmp_path)
    told = json.loads((tmp_path / "processor_config.json").read_text())
    assert (told["patch_size"], told["num_additional_image_tokens"]) == (4, 1)  # the class, which `default` leaves out again
    images = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    fields = {name: told[name] for name in ("patch_size", "vision_feature_select_strategy", "image_token", "num_additional_image_tokens")}
    processor = transformers.LlavaProcessor(images, role.tokenizer, **fields)
    pixels = torch.randint(0, 256, (1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    prompt = "Before <image>\nwhat does it mean, def f(x)?"
    theirs = processor(images=[pixels.expand(3, 8, 8)], text=[prompt], return_tensors="pt")
    view = role.view([Row("a", {"pixels": pixels, "prompt": prompt, "answer": "a class"})])
    assert view.inputs["ids"][~view.span("response")].tolist() == theirs["input_ids"][0].tolist()


def test_a_tokenizer_that_would_cut_the_mark_into_pieces_is_refused() -> None:
    role = fast()
    role.tokenizer = named_tokenizer("python_4k")
    with pytest.raises(Refused, match="an added token of id"):
        role.view([row()])


def test_messages_are_written_by_the_template_also_where_images_are_parts_of_them() -> None:
    role = fast()
    role.tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}:\n{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}"
        "{{ '<image>' if part.type == 'image' else part.text }}{% endfor %}{% endif %}</s>{% endfor %}"
        "{% if add_generation_prompt %}assistant:\n{% endif %}"
    )
    answer = {"role": "assistant", "content": "a line"}
    plain = ({"role": "user", "content": "<image>What?"}, answer)
    parts = ({"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}, answer)
    views = [role.view([Row(str(i), {"pixels": ROWS[0].content["pixels"], "messages": m})]) for i, m in enumerate((plain, parts))]
    assert torch.equal(views[0].inputs["ids"], views[1].inputs["ids"]) and int(views[0].span("vision").sum()) == 4
    assert role.tokenizer.decode(views[0].inputs["ids"][views[0].span("response")]) == "a line</s>"


def test_a_tokenizer_may_call_an_image_as_it_likes() -> None:
    role = fast()
    tokenizer = named_tokenizer("python_4k")
    tokenizer.add_tokens([transformers.AddedToken("<|image_pad|>", special=True, normalized=False)], special_tokens=True)
    other = VisionLanguage(role.module, tokenizer, role.anatomy, role.family)
    assert torch.equal(other.view([row()]).inputs["ids"], role.view([row()]).inputs["ids"])


# families, opening, students


def test_where_the_tokenizer_has_a_begin_and_an_end_of_an_image_they_stand_around_it() -> None:
    plain = sighted()["student"]
    marked = copy.copy(plain)
    assert isinstance(plain, VisionLanguage) and isinstance(marked, VisionLanguage)
    marked.tokenizer = type(marked.tokenizer)()
    marked.tokenizer.start_image_token_id, marked.tokenizer.end_image_token_id = 1, 2
    one, other = plain.view(ROWS[:2]), marked.view(ROWS[:2])
    expected: list[int] = []
    for ids, seen in zip(*(x.split(one.ragged.tolist()) for x in (one.inputs["ids"], one.span("vision"))), strict=True):
        at = seen.nonzero()[:, 0].tolist()  # begin, visual tokens, end: what transformers' processor of InternVL makes of an image
        expected += [*ids[: at[0]].tolist(), 1, *ids[at].tolist(), 2, *ids[at[-1] + 1 :].tolist()]
    assert other.inputs["ids"].tolist() == expected
    assert int(other.span("vision").sum()) == int(one.span("vision").sum()) == 2 * plain.num_patches
    assert torch.equal(other.inputs["ids"][other.span("response")], one.inputs["ids"][one.span("response")])
    assert marked.puts_in == {"patch": plain.num_patches, "pos": plain.num_patches + 2} and marked.reads_as != plain.reads_as
    assert len(said(marked, other, "patch_embedding")["patch_embedding"]) == 2 * plain.num_patches


def test_neighbouring_patches_become_one_visual_token_in_internvl() -> None:
    sizes: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = transformers.Qwen2Config(**sizes, num_key_value_heads=1, vocab_size=258)
    vision = transformers.InternVLVisionConfig(**sizes, image_size=[8, 8], patch_size=[2, 2], num_channels=1)
    config = transformers.InternVLConfig(vision_config=vision, text_config=text, image_token_id=255, downsample_ratio=0.5)
    torch.manual_seed(0)
    module: Any = transformers.InternVLForConditionalGeneration(config).double().eval()
    module.preprocessing = Preprocessing((0.5,), (0.25,), (8, 8))
    family = vision_family(module)
    assert family is not None
    role = VisionLanguage(module, TOKENIZER, anatomy(module), family)
    view = role.view(ROWS)
    assert role.num_patches == 4 and role.num_layers == 2  # 16 patches, four by four
    with torch.no_grad():
        theirs = flat(module(**padded(role, view)).logits, view)
    found = said(role, view, "logits", "patch_logits", "patch_features")
    assert torch.allclose(found["patch_logits"], theirs[view.span("vision")], rtol=1e-5, atol=1e-6)
    assert torch.allclose(found["logits"], theirs[view.targets - 1], rtol=1e-5, atol=1e-6) and found["patch_features"].shape == (40, 64)


TINY = {
    "model_type": "llava",
    "vision_feature_layer": -1,
    "vision_config": {
        "model_type": "clip_vision_model",
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 8,
        "patch_size": 4,
        "num_channels": 1,
    },
    "text_config": {"model_type": "llama", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2},
}


def config(folder: Path, **fields: Any) -> str:
    path = folder / "tiny.json"
    path.write_text(json.dumps({**TINY, **fields}))
    return f"config:{path}"


def test_a_config_opens_with_weights_and_without(tmp_path: Path) -> None:
    text = config(tmp_path)
    role = as_role(open_pretrained(text))
    assert isinstance(role, VisionLanguage) and (role.vocab, role.image_id, role.num_patches, role.num_layers) == (258, 255, 4, 3)
    assert role.module.config.image_seq_length == 4 and role.preprocessing == Preprocessing((0.5,), (0.5,), (8, 8))
    meta = without_weights(open_meta(text)[0], lambda: TOKENIZER, Reference.parse(text))
    assert isinstance(meta, VisionLanguage) and meta.reads_as == role.reads_as
    meta.refuse(ROWS)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"text_config": {**TINY["text_config"], "num_hidden_layer": 3}}, "text_config.num_hidden_layer"),  # type: ignore[dict-item]
        ({"text_config": "llama"}, "text_config.model_type"),
        ({"vision_config": {**TINY["vision_config"], "model_type": "eye"}}, "vision_config.model_type"),  # type: ignore[dict-item]
        ({"text_config": {**TINY["text_config"], "vocab_size": 100}}, "text_config.vocab_size"),  # type: ignore[dict-item]
    ],
    ids=["misspelt", "no_part", "unknown_tower", "too_few_ids"],
)
def test_a_wrong_part_of_a_config_is_named(tmp_path: Path, fields: dict[str, Any], told: str) -> None:
    with pytest.raises(Refused) as caught:
        open_pretrained(config(tmp_path, **fields))
    assert told in caught.value.where


def test_an_image_that_the_tower_cannot_read_is_refused_with_its_reason(tmp_path: Path) -> None:
    role = as_role(open_pretrained(config(tmp_path)))
    assert isinstance(role, VisionLanguage)
    other = VisionLanguage(role.module, role.tokenizer, role.anatomy, role.family)
    other.preprocessing = replace(role.preprocessing, size=(12, 12))
    with pytest.raises(Refused, match="images that it can read"):
        _ = other.num_patches


def test_a_student_with_fewer_language_blocks_sees_with_the_same_tower_and_is_exported_as_stock(tmp_path: Path) -> None:
    whole = sighted_of(layers=3, dtype=torch.float32)
    teacher, before = copy.deepcopy(whole), said(whole, whole.view(ROWS), "patch_embedding")
    student = DropBlocks(keep=(0, 2))(whole)
    assert isinstance(student, VisionLanguage) and student.num_layers == 2
    assert (student.module.config.text_config.num_hidden_layers, teacher.module.config.text_config.num_hidden_layers) == (2, 3)
    after = said(student, student.view(ROWS), "patch_embedding", "logits", "patch_logits")
    assert torch.equal(after["patch_embedding"], before["patch_embedding"])
    with quiet():
        (check,) = Safetensors()(Parcel(student, tmp_path, {"run": "r"}, ()))  # type: ignore[call-arg]
        assert "0.0" in check["result"] and check["class"] == "LlavaForConditionalGeneration"
        student.module.config.limbeck_tokenizer = "bytes"
        student.module.config.save_pretrained(tmp_path)
        again = as_role(open_pretrained(f"path:{tmp_path}"))
    assert isinstance(again, VisionLanguage)
    torch.testing.assert_close(said(again, again.view(ROWS), "logits")["logits"], after["logits"])  # by another attention kernel
    stock = transformers.LlavaForConditionalGeneration.from_pretrained(tmp_path)
    inputs, question, answer = again.question(ROWS[0])
    assert torch.equal(stock.generate(**inputs, max_new_tokens=3), again.module.generate(**inputs, max_new_tokens=3))  # type: ignore[operator]
    assert ROWS[0].content["answer"] == answer and question == ROWS[0].content["prompt"].replace("<image>", "")


def test_a_text_model_has_no_visual_tokens_to_compare() -> None:
    with pytest.raises(NotClaimed, match="patch_logits of student"):
        Trial(models=Models({"student": family_of("llama"), "teacher": family_of("llama", 1)}), objective=(ForwardKL(per="patch"),))  # type: ignore[call-arg]
