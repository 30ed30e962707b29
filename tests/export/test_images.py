"""Image students: what is written opens again, here, in timm and in transformers; pictures in the report."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import transformers
from PIL import Image

from limbeck.check.models import classifier, quiet
from limbeck.export._png import data_uri, png
from limbeck.export.base import Parcel
from limbeck.export.report import render, table, verdict, weakest
from limbeck.export.safetensors import Safetensors
from limbeck.model.opening import open_meta, open_pretrained
from limbeck.model.reference import Reference
from limbeck.model.role import as_role, without_weights
from limbeck.terminal import summary_lines

RESNET = "timm:resnet10t?num_classes=5&in_chans=1&channels=[8,8,16,16]&size=24"


def written(role: Any, folder: Path, **fields: Any) -> list[dict[str, Any]]:
    folder.mkdir()
    with quiet():
        return Safetensors(**fields)(Parcel(role, folder, {}, ()))


def test_a_student_of_timm_opens_again_as_it_was_and_in_timm_itself(tmp_path: Path) -> None:
    role = as_role(open_pretrained(RESNET))
    for buffer in role.module.buffers():  # running statistics are part of what it is
        buffer.copy_(buffer + 0.1 if buffer.is_floating_point() else buffer + 3)
    (check,) = written(role, tmp_path / "student")
    assert check["result"].startswith("largest difference of a logit 0.0")
    again = as_role(open_pretrained(f"path:{tmp_path / 'student'}"))
    assert again.preprocessing == role.preprocessing and again.preprocessing.size == (24, 24)  # type: ignore[attr-defined]
    theirs = timm.create_model(f"local-dir:{tmp_path / 'student'}", pretrained=True).eval()
    x = torch.randn(2, 1, 24, 24, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(theirs(x), role.module(x)) and torch.equal(again.module(x), role.module(x))
    mean = theirs.pretrained_cfg["mean"]
    assert list(mean) == list(role.preprocessing.mean) and theirs.pretrained_cfg["input_size"][1:] == (24, 24)  # type: ignore[attr-defined]
    assert "timm.create_model" in (tmp_path / "student" / "README.md").read_text()


def test_a_student_of_transformers_opens_there_with_its_pixels(tmp_path: Path) -> None:
    role = classifier(dtype=torch.float32)
    written(role, tmp_path / "student")
    theirs = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "student").eval()
    processor = transformers.ViTImageProcessor.from_pretrained(tmp_path / "student")
    pixels = torch.randint(0, 256, (2, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    x = processor(list(pixels), return_tensors="pt", input_data_format="channels_first")["pixel_values"]
    with torch.no_grad():
        assert torch.allclose(theirs(x).logits, role.run(pixels), atol=1e-5)
    again = as_role(open_pretrained(f"path:{tmp_path / 'student'}"))
    assert again.preprocessing == role.preprocessing  # type: ignore[attr-defined]
    reference = Reference.parse(f"path:{tmp_path / 'student'}")
    assert without_weights(open_meta(reference)[0], lambda: None, reference).preprocessing == role.preprocessing  # type: ignore[attr-defined]


@pytest.mark.parametrize("text", [RESNET, None], ids=["timm", "transformers"])
def test_half_the_numbers_leave_the_student_in_memory_as_it_was(tmp_path: Path, text: str | None) -> None:
    role = as_role(open_pretrained(text)) if text else classifier(dtype=torch.float32)
    before = {name: x.clone() for name, x in role.module.state_dict().items()}
    written(role, tmp_path / "student", dtype="bfloat16")
    assert all(torch.equal(x, before[name]) and x.dtype == before[name].dtype for name, x in role.module.state_dict().items())
    weights = [path.stat().st_size for path in (tmp_path / "student").glob("*.safetensors")]
    assert sum(weights) < 0.8 * sum(x.numel() * x.element_size() for x in before.values())


@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_is_a_png_that_pillow_reads(channels: int) -> None:
    pixels = torch.randint(0, 256, (channels, 5, 7), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    opened = Image.open(io.BytesIO(png(pixels)))
    opened.load()
    assert opened.mode == {1: "L", 3: "RGB"}[channels]
    assert np.array_equal(np.array(opened).reshape(5, 7, channels), pixels.permute(1, 2, 0).numpy())
    assert base64.b64decode(data_uri(pixels).partition(",")[2]) == png(pixels)
    assert Image.open(io.BytesIO(png(torch.zeros(3, 224, 100, dtype=torch.uint8)))).size == (25, 56)  # thinned, below 64 on a side


def test_a_student_that_was_trained_in_bfloat16_opens_again_as_it_was(tmp_path: Path) -> None:
    """Its folder is opened in float32: what is compared is what the same weights say there."""
    (check,) = written(as_role(open_pretrained(RESNET, dtype="bfloat16")), tmp_path / "student")
    assert check["result"].startswith("largest difference of a logit 0.0")


def test_what_a_small_student_takes_on_the_disk_is_told_in_megabytes() -> None:
    small = {"teacher": {"disk_bytes": 650_000}, "student": {"disk_bytes": 248_000}}
    (row,) = [row for row in table({"run": "r", **small}) if row.name.startswith("On disk")]
    assert (row.name, row.teacher, row.student) == ("On disk, MB", "0.65", "0.248")
    large = {"teacher": {"disk_bytes": 538e6}, "student": {"disk_bytes": 50e6}}
    assert "On disk, GB" in {row.name for row in table({"run": "r", **large})}


SUMMARY: dict[str, Any] = {
    "run": "ofa-1",
    "unit": "image",
    "closeness": "agreement",
    "teacher": {"accuracy": 0.92, "top1": 1.0},
    "start": {"accuracy": 0.10, "accuracy_error": 0.01},
    "student": {"accuracy": 0.86, "accuracy_error": 0.01, "top1": 0.88},
    "baseline": {"name": "labels only", "accuracy": 0.83, "accuracy_error": 0.01, "top1": 0.85},
    "accuracy_gaps": {"baseline": {"accuracy": 0.03, "accuracy_error": 0.005}},
    "classes": [{"name": "Shirt", "student": 0.6, "share": 0.1}, {"name": "Bag", "student": 0.9, "share": 0.1}],
}


def test_the_verdict_of_a_classifier_is_about_images_and_labels() -> None:
    told = verdict(SUMMARY)
    assert told == (
        "The student gets 86 % of the held-out images right (the teacher 92 %); "
        "the same student trained on labels alone for as many steps gets 83 %."
    )
    rows = {row.name: row for row in table(SUMMARY)}
    assert rows["Right, %"].student == "86" and "Perplexity, held-out" not in rows
    assert weakest(SUMMARY) == "Weakest on Shirt: 60 % (10 % of the held-out images)."


@pytest.mark.parametrize(
    "unit, told", [("image", "360 held-out images. ± is the standard error over images."), ("candidate", "360 held-out queries, 2,880 candidates.")]
)
def test_errors_are_over_what_was_drawn_as_a_whole_which_of_images_are_no_documents(unit: str, told: str) -> None:
    summary = {**SUMMARY, "unit": unit, "held_out": {"documents": 360, "targets": 360 if unit == "image" else 2880}}
    assert f"Measured on {told}" in render(summary).replace("\u00a0", " ") and "documents" not in "\n".join(summary_lines(summary, Path("x")))


@pytest.mark.parametrize("unit, does", [("position", "it fills in what is hidden of a row"), ("candidate", "it puts candidates in order")])
def test_of_a_model_that_writes_nothing_no_sample_is_missed(unit: str, does: str) -> None:
    page = render({**SUMMARY, "unit": unit})
    assert f"Nothing: {does}, and writes no text." in page and "No sample was drawn" not in page


def test_no_help_is_said_of_images_too() -> None:
    close = {**SUMMARY, "accuracy_gaps": {"baseline": {"accuracy": 0.03, "accuracy_error": 0.02}}}
    assert verdict(close).startswith("The teacher did not help: the student gets")
    alone = {name: value for name, value in SUMMARY.items() if name != "baseline"}
    assert "baseline=[labels_only]" in verdict(alone) and "text" not in verdict(alone)


def test_the_report_shows_pictures_with_their_labels_and_marks_wrong_answers() -> None:
    picture = {"image": data_uri(torch.zeros(1, 8, 8, dtype=torch.uint8)), "label": "Bag", "teacher": "Bag", "student": "<b>Shirt</b>"}
    page = render(SUMMARY, samples=[picture])
    assert page.count("data:image/png;base64,") == 1 and "<mark>&lt;b&gt;Shirt&lt;/b&gt;</mark>" in page and "teacher: Bag" in page
    assert "img-src data:" in page


def test_the_report_shows_pictures_with_their_questions_and_marks_answers_that_are_not_the_one_of_the_data() -> None:
    seen = {"image": data_uri(torch.zeros(1, 8, 8, dtype=torch.uint8)), "prompt": "What is <it>?", "label": "A bag." + " And a long strap" * 5}
    page = render({**SUMMARY, "unit": "token", "writes": False}, samples=[{**seen, "teacher": seen["label"], "student": "A shirt."}])
    assert "<span>What is &lt;it&gt;?</span>" in page and "<mark>A shirt.</mark>" in page and f"teacher: {seen['label']}" in page
    assert "an answer that is not the one of the data" in page


def test_what_cannot_write_without_an_image_is_compared_with_labels_and_not_offered_to_talk_to() -> None:
    close = {"run": "seen-1", "unit": "token", "writes": False, "closeness": "agreement", "student": {"top1": 0.5, "top1_error": 0.01}}
    assert "baseline=[labels_only]" in verdict({**close, "teacher": {"top1": 1.0}}) and "text alone" not in verdict(close)
    assert "limbeck chat" not in "".join(summary_lines(close, Path("runs/seen-1")))
    assert "limbeck chat" in "".join(summary_lines({**close, "writes": True}, Path("runs/seen-1")))


@pytest.mark.parametrize("image", ["https://elsewhere/x.png", "data:image/svg+xml;base64,AAAA", 'data:image/png;base64,A" onload="x', 7])
def test_an_image_from_elsewhere_is_not_shown(image: Any) -> None:
    page = render(SUMMARY, samples=[{"image": image, "label": "Bag", "student": "Bag"}])
    assert "<img" not in page and "onload" not in page
