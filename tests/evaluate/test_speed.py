"""Speed, by a clock that tells the time it is given; memory, by a process of its own."""

import json
import subprocess
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from limbeck.evaluate import _memory
from limbeck.evaluate.speed import Speed, alternate, spread
from limbeck.model.base import Role
from limbeck.model.plain import Plain
from limbeck.signals import Row, View
from limbeck.text.bytes_tokenizer import ByteTokenizer


class Watch:
    """A clock that stands still unless it is moved."""

    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Writer(nn.Module):
    """Writes as transformers does, and takes so long to read a token of the prompt and to write one; each call is slower by a factor."""

    def __init__(self, watch: Watch, read: float, write: float, slower: float = 1.0):
        super().__init__()
        self.weight, self.watch, self.read, self.write, self.slower = nn.Parameter(torch.zeros(3)), watch, read, write, slower
        self.calls: list[dict[str, Any]] = []

    def generate(self, ids: torch.Tensor, streamer: Any, max_new_tokens: int, **options: Any) -> None:
        factor = self.slower ** len(self.calls)
        self.calls.append({"length": ids.shape[1], "new": max_new_tokens, **options})
        self.watch.now += 100  # what is prepared before the prompt is handed over
        streamer.put(ids)
        self.watch.now += factor * self.read * ids.shape[1]
        for _ in range(max_new_tokens):
            streamer.put(ids[0, :1])
            self.watch.now += factor * self.write
        streamer.end()


class Speaker(Role):
    offers = frozenset({"logits"})
    tokenizer = ByteTokenizer()

    def __init__(self, module: nn.Module, context: int | None = None):
        super().__init__(module)
        self.context = context

    def view(self, rows):
        return View({"ids": torch.arange(5)}, torch.tensor([5]))


def test_figures_are_those_of_the_clock():
    watch = Watch()
    roles = {"teacher": Speaker(Writer(watch, read=0.5, write=0.25)), "student": Speaker(Writer(watch, read=0.25, write=0.125))}
    found = Speed(repeats=3, new_tokens=4, prompt_tokens=8, contexts=(8, 16)).timings(roles, [], watch)
    assert found["teacher"] == {"decode_tokens_per_second": 4.0, "decode_low": 4.0, "decode_high": 4.0, "prefill_tokens_per_second": 2.0}
    assert found["student"] == {"decode_tokens_per_second": 8.0, "decode_low": 8.0, "decode_high": 8.0, "prefill_tokens_per_second": 4.0}
    assert found["decode_by_context"] == [
        {"context": 8, "teacher_ms": [250.0] * 3, "student_ms": [125.0] * 3},
        {"context": 16, "teacher_ms": [250.0] * 3, "student_ms": [125.0] * 3},
    ]


def test_the_warm_up_is_not_counted_and_repeats_are_spread():
    watch = Watch()
    writer = Writer(watch, read=1.0, write=1.0, slower=2.0)  # 1 s a token in the warm-up, then 2, 4, 8
    found = Speed(repeats=3, new_tokens=3, prompt_tokens=2, contexts=()).timings({"student": Speaker(writer)}, [], watch)
    assert found["decode_by_context"][0]["student_ms"] == pytest.approx([4000, 2400, 7200])  # 10 %: 2 + 0.2 * 2; 90 %: 4 + 0.8 * 4
    assert found["student"]["decode_tokens_per_second"] == 1 / 4
    assert found["student"]["decode_low"] == pytest.approx(1 / 8 + 0.2 / 8) and found["student"]["decode_high"] == pytest.approx(1 / 4 + 0.8 / 4)


def test_always_as_many_tokens_are_written_greedily_with_a_cache():
    writer = Writer(Watch(), 1.0, 1.0)
    Speed(repeats=2, new_tokens=7, prompt_tokens=12, contexts=()).timings({"student": Speaker(writer)}, [], writer.watch)
    assert len(writer.calls) == 3
    for call in writer.calls:
        assert call["new"] == call["min_new_tokens"] == 7 and call["length"] == 12 and call["use_cache"] and not call["do_sample"]


def test_subjects_take_turns_after_a_warm_up():
    calls: list[str] = []
    alternate({"teacher": lambda: calls.append("t"), "student": lambda: calls.append("s")}, 3)
    assert "".join(calls) == "ts" + "tststs"


def test_contexts_that_a_model_is_not_made_for_are_left_out():
    watch = Watch()
    roles = {"teacher": Speaker(Writer(watch, 1.0, 1.0), context=40), "student": Speaker(Writer(watch, 1.0, 1.0), context=100)}
    found = Speed(repeats=2, new_tokens=8, prompt_tokens=64, contexts=(16, 64, 256)).timings(roles, [], watch)
    assert [x["context"] for x in found["decode_by_context"]] == [16, 32]  # 32: the longest prompt that both have room for
    assert roles["teacher"].module.calls[-1]["length"] == 32 and "decode_tokens_per_second" in found["student"]
    assert Speed(new_tokens=32).timings({"student": Speaker(Writer(watch, 1.0, 1.0), context=32)}, [], watch) == {"decode_by_context": []}


def test_the_spread_is_median_ten_and_ninety_percent():
    assert spread([5.0, 1.0, 2.0, 3.0, 4.0]) == pytest.approx([3.0, 1.4, 4.6])


def test_a_real_model_writes_and_is_left_as_it_was(examine, speaker, rows):
    roles = {"teacher": speaker(0, 2), "start": speaker(1), "student": speaker(1), "text_only": speaker(2)}
    roles["student"].train()
    found = Speed(repeats=2, new_tokens=4, prompt_tokens=8, contexts=(16,))(examine(rows, roles))
    assert set(found) == {"teacher", "student", "decode_by_context"}  # the others are as fast as the student
    assert found["student"]["parameters"] == sum(p.numel() for p in roles["student"].module.parameters())
    assert found["student"]["decode_tokens_per_second"] > 0 and [x["context"] for x in found["decode_by_context"]] == [8, 16]
    assert roles["student"].training and "memory_bytes" not in found["student"]


def test_tied_weights_count_once(examine, speaker, rows):
    tied, free = speaker(0, tie_word_embeddings=True), speaker(0)
    sizes = {
        name: Speed(repeats=2, new_tokens=2, contexts=())(examine(rows, {"student": role}))["student"]["parameters"]
        for name, role in (("tied", tied), ("free", free))
    }
    assert sizes["free"] - sizes["tied"] == 258 * 16


def test_a_role_that_does_not_write_is_timed_by_rows():
    watch = Watch()

    class Slow(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            watch.now += 0.5
            return super().forward(x)

    rows = [Row(str(i), {"features": torch.ones(3)}) for i in range(4)]
    found = Speed(repeats=2).timings({"student": Plain(Slow(3, 2))}, rows, watch)
    assert found == {"student": {"forward_rows_per_second": 8.0}, "decode_by_context": []}
    assert Speed(repeats=2).timings({"student": Plain(Slow(3, 2), says="features")}, rows, watch) == {"decode_by_context": []}


def test_bytes_on_disk_and_memory_are_those_of_the_folder(examine, speaker, rows, tmp_path, monkeypatch):
    (tmp_path / "parts").mkdir()
    (tmp_path / "config.json").write_bytes(b"12345")
    (tmp_path / "parts" / "weights").write_bytes(b"123")
    asked: list[list[str]] = []

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        return subprocess.CompletedProcess(command, 0, "a warning\n[900, 700]\n", "")

    monkeypatch.setattr(subprocess, "run", run)
    found = Speed(repeats=2, new_tokens=4, prompt_tokens=8, contexts=(16,))(examine(rows, {"student": speaker(0)}, folders={"student": tmp_path}))
    assert {k: found["student"][k] for k in ("disk_bytes", "memory_bytes", "memory")} == {
        "disk_bytes": 8,
        "memory_bytes": 900,
        "memory": {"libraries": 700},
    }
    assert found["memory_context"] == 16 and asked[0][-3:] == [str(tmp_path), "16", "4"]


@pytest.mark.parametrize(
    "answer",
    [subprocess.CalledProcessError(2, "x", stderr="no model"), subprocess.TimeoutExpired("x", 1), OSError("no python"), "", "not json\n", "3\n"],
)
def test_memory_that_cannot_be_measured_is_left_out_with_a_warning(tmp_path, monkeypatch, caplog, answer):
    def run(*_: Any, **__: Any) -> Any:
        if isinstance(answer, str):
            return subprocess.CompletedProcess("x", 0, answer, "")
        raise answer

    monkeypatch.setattr(subprocess, "run", run)
    assert _memory.measured(tmp_path, 8, 4) is None and "was not measured" in caplog.text


@pytest.mark.slow
def test_memory_is_that_of_a_process_of_its_own(speaker, tmp_path):
    role = speaker(0, vocab=50_000, hidden_size=256, num_attention_heads=4)  # 2 * 51 MB of embeddings and head
    role.module.config.limbeck_tokenizer = "bytes"
    role.module.save_pretrained(tmp_path)
    ballast = torch.ones(100_000_000)  # 400 MB that are not the model's
    found = _memory.measured(tmp_path, 8, 4)
    weights = sum(p.numel() for p in role.module.parameters()) * 4
    assert found is not None and len(ballast)
    assert weights < found["memory_bytes"] - found["memory"]["libraries"] < 4 * weights
    assert json.dumps(found)


def test_fewer_than_two_repeats_are_refused():
    with pytest.raises(ValidationError):
        Speed(repeats=1)
