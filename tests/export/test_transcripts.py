"""Speech in the report: a player, the transcript, and what teacher and student write."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.examine import over_telephone
from limbeck.export._wav import data_uri
from limbeck.export.report import render
from limbeck.model.opening import open_pretrained
from limbeck.model.role import as_role
from limbeck.model.transcriber import Transcriber
from limbeck.signals import Row
from limbeck.start import resume, run
from toy import after, at_home, state  # noqa: F401

SUMMARY: dict[str, Any] = {
    "run": "whisper-1",
    "unit": "token",
    "sources": "clips",
    "closeness": "aligned_bytes",
    "held_out": {"documents": 4, "targets": 40},
    "student": {"metrics": {"Wrong words": {"value": 12.0, "error": 1.0, "unit": "%", "lower_is_better": True}}},
}


def test_a_clip_is_shown_with_its_transcript_and_with_what_both_write_and_other_words_are_marked() -> None:
    said = {"label": "not an ill disposed man", "teacher": "Not an ill-disposed man.", "student": "<b>man"}
    entry = {"sound": data_uri(torch.zeros(800), 8000), **said}
    page = render(SUMMARY, samples=[entry])
    assert "<audio controls" in page and "not an ill disposed man" in page and "<mark>&lt;b&gt;man</mark>" in page
    assert "teacher: Not an ill-disposed man." in re.sub(r"\s+", " ", page)  # the same words, so not marked
    assert "words that are not those of the transcript" in page
    assert "held-out clips, 40 tokens. ± is the standard error over clips." in page.replace("\u00a0", " ")
    assert "held-out documents" not in page and "over documents" not in page


def test_a_sound_with_a_class_is_shown_as_ever() -> None:
    page = render(SUMMARY, samples=[{"sound": data_uri(torch.zeros(800), 8000), "label": "hood"}])
    assert "<mark>" not in page.split('id="say"')[1] and "hood" in page


def test_ten_long_clips_with_their_words_stay_below_the_size_of_a_page() -> None:
    entry = {"sound": data_uri(torch.rand(64_000), 16_000), **dict.fromkeys(("label", "teacher", "student"), "word " * 1000)}
    assert len(render(SUMMARY, samples=[entry] * 25)) < 2_000_000


@pytest.mark.parametrize(("number", "rate", "expected"), [(32_000, 16_000, 16_000), (48_000, 16_000, 8_000), (48_000, 8_000, 8_000)])
def test_longer_speech_is_heard_as_over_a_telephone(number: int, rate: int, expected: int) -> None:
    wave = torch.sin(2 * torch.pi * 440 * torch.arange(number) / rate)
    found, at = over_telephone(Row("a", {"wave": wave, "rate": rate}))
    assert at == expected and len(found) == number * expected // rate
    tone = torch.sin(2 * torch.pi * 440 * torch.arange(len(found)) / at)
    assert torch.allclose(found[100:-100], tone[100:-100], atol=0.01)


SMALL = ("data.0.num=30", "train.0.steps=4", "train.0.checkpoint.every=1", "baseline=[]", "threads=1")


def test_a_run_goes_from_clips_to_a_report_and_goes_on_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMBECK_HOME", str(tmp_path / "home"))
    change = (*SMALL, "evaluate=[aligned_bytes, {kind: transcription, tokens: 4}]")
    whole = run("whisper", *change, toy=True, runs=tmp_path / "whole")
    summary = whole.summary
    assert (summary["unit"], summary["sources"], summary["closeness"]) == ("token", "clips", "aligned_bytes")
    assert all(0 <= summary[arm]["word_error_rate"] for arm in ("teacher", "start", "student")) and summary["teacher"]["words_as_teacher"] == 1
    page = (whole.path / "report.html").read_text()
    held = json.loads((whole.path / "evidence" / "written.json").read_text())
    assert page.count("<audio") == len(held) == summary["transcription"]["clips"] and "held-out clips" in page
    role = as_role(open_pretrained(f"path:{whole.path / 'student'}"))
    assert isinstance(role, Transcriber)
    own = state(whole.path, "main")
    assert all(torch.equal(x, own[name]) for name, x in role.module.named_parameters())
    stopped = run("whisper", *change, toy=True, runs=tmp_path / "parts", stop=after(2))
    assert not stopped.finished
    again = resume(stopped.path)
    assert again.finished and all(torch.equal(x, own[name]) for name, x in state(again.path, "main").items())
    encoder = as_role(open_pretrained(str(summary["provenance"][1]["reference"]))).module.model.encoder  # type: ignore
    assert all(torch.equal(x, own[f"model.encoder.{name}"]) for name, x in encoder.named_parameters())  # frozen, as the recipe says
