"""Encoders of sounds: what is written opens again, here and in transformers; sounds in the report."""

import base64
import io
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from limbeck.check.models import RATE, clips, hearing_model, quiet
from limbeck.export._wav import data_uri, wav
from limbeck.export.base import Parcel
from limbeck.export.report import render, verdict
from limbeck.export.safetensors import Safetensors
from limbeck.model.opening import open_pretrained
from limbeck.model.role import as_role
from limbeck.model.sound import Hearing
from limbeck.student.drop_blocks import DropBlocks


def written(role: Any, folder: Path, **fields: Any) -> list[dict[str, Any]]:
    folder.mkdir()
    with quiet():
        return Safetensors(**fields)(Parcel(role, folder, {}, ()))


@pytest.mark.parametrize("family", ["wav2vec2", "hubert", "wavlm"])
def test_a_student_opens_in_transformers_with_what_it_expects_of_a_waveform(tmp_path: Path, family: str) -> None:
    role = DropBlocks(keep=(0, 1))(hearing_model(dtype=torch.float32, layers=4, family=family))
    (check,) = written(role, tmp_path / "student")
    assert check["result"].startswith("largest difference of a state 0.0")
    again = as_role(open_pretrained(f"path:{tmp_path / 'student'}"))
    assert again.hearing == Hearing(RATE) and again.num_layers == 2  # type: ignore[attr-defined]
    theirs = transformers.AutoModel.from_pretrained(tmp_path / "student").eval()
    extractor = transformers.AutoFeatureExtractor.from_pretrained(tmp_path / "student")
    wave_ = clips()[0].content["wave"]
    with torch.no_grad():
        x = extractor(wave_.numpy(), sampling_rate=RATE, return_tensors="pt")["input_values"]
        ours = role.says(role.view(clips()[:1]), ("hidden.2",), {})["hidden.2"]
        assert torch.allclose(theirs(x).last_hidden_state[0], ours, atol=1e-5)
    assert "preprocessor_config.json" in (tmp_path / "student" / "README.md").read_text()


def test_half_the_numbers_leave_the_student_in_memory_as_it_was(tmp_path: Path) -> None:
    role = hearing_model(dtype=torch.float32)
    before = {name: x.clone() for name, x in role.module.state_dict().items()}
    written(role, tmp_path / "student", dtype="bfloat16")
    assert all(torch.equal(x, before[name]) and x.dtype == before[name].dtype for name, x in role.module.state_dict().items())
    weights = [path.stat().st_size for path in (tmp_path / "student").glob("*.safetensors")]
    assert sum(weights) < 0.8 * sum(x.numel() * x.element_size() for x in before.values())


def test_a_sound_is_a_wav_of_its_first_seconds_that_the_standard_library_reads() -> None:
    with wave.open(io.BytesIO(wav(torch.linspace(-2, 2, 5), 8000))) as opened:
        assert (opened.getnchannels(), opened.getframerate(), opened.getnframes()) == (1, 8000, 5)
        assert np.frombuffer(opened.readframes(5), "<i2").tolist() == [-32_767, -32_767, 0, 32_767, 32_767]
    with wave.open(io.BytesIO(wav(torch.zeros(100_000), 16_000))) as opened:
        assert opened.getnframes() == 32_000
    assert base64.b64decode(data_uri(torch.zeros(9), 8000).partition(",")[2]) == wav(torch.zeros(9), 8000)


SUMMARY: dict[str, Any] = {
    "run": "robust-1",
    "unit": "clip",
    "closeness": "probe",
    "held_out": {"documents": 40, "targets": 40},
    "teacher": {"metrics": {"probe accuracy": {"value": 92.0, "unit": "%"}}},
    "start": {"metrics": {"probe accuracy": {"value": 40.0, "error": 1.0, "unit": "%"}}},
    "student": {"metrics": {"probe accuracy": {"value": 86.0, "error": 1.0, "unit": "%"}}},
}


def test_the_report_plays_sounds_and_speaks_of_clips() -> None:
    page = render(SUMMARY, samples=[{"sound": data_uri(torch.zeros(800), 8000), "label": "<b>hood</b>"}])
    assert page.count("data:audio/wav;base64,") == 1 and "<audio controls" in page and "&lt;b&gt;hood&lt;/b&gt;" in page
    assert "media-src data:" in page and "img-src" not in page and "media-src" not in render(SUMMARY)
    assert "Measured on 40 held-out clips. ± is the standard error over clips." in page.replace("\u00a0", " ")
    assert "Holds 1 held-out sounds; " in page and "--no-samples" in page
    assert verdict(SUMMARY).startswith("The student reaches 86 % in probe accuracy (the teacher 92 %)")
    assert len(render(SUMMARY, samples=[{"sound": data_uri(torch.rand(64_000), 16_000), "label": ""}] * 25)) < 2_000_000


@pytest.mark.parametrize("sound", ["https://elsewhere/x.wav", "data:text/html;base64,AAAA", 'data:audio/wav;base64,A" onplay="x', 7])
def test_a_sound_from_elsewhere_is_not_played(sound: Any) -> None:
    page = render(SUMMARY, samples=[{"sound": sound, "label": "hood"}])
    assert "<audio" not in page and "onplay" not in page


def test_an_encoder_is_not_told_to_be_compared_with_one_that_had_nothing_to_learn_from() -> None:
    metric = {"name": {"value": 50.0, "error": 1.0, "unit": "%", "lower_is_better": False}}
    summary = {"run": "r", "unit": "clip", "closeness": "probe", **dict.fromkeys(("teacher", "start", "student"), {"metrics": metric})}
    assert "baseline" not in verdict(summary) and "baseline" in verdict({**summary, "unit": "position"})
