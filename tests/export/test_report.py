"""The report of a run: one page of plain data, whatever the run measured, and whatever stands in its texts."""

import html
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from limbeck.export import _findings as findings
from limbeck.export._report_data import curves, flatten, marked, thin
from limbeck.export._report_text import typeset
from limbeck.export._svg import Scale, spread
from limbeck.export.report import header, outcome, render, table, unmeasured, verdict, weakest

Summary = dict[str, Any]


def arms() -> Summary:
    """The imaginary run tutor-1 of the design, with its four arms; every number is invented."""
    same = {"parameters": 1_040_000_000, "memory_bytes": 3.32e9, "disk_bytes": 2.08e9}
    speed = {"decode_tokens_per_second": 190.0, "decode_low": 187.0, "decode_high": 192.0, "prefill_tokens_per_second": 34_900.0}
    split = {"weights": 2.08e9, "cache": 0.94e9, "workspace": 0.3e9}
    closeness = {"kl": 0.031, "kl_error": 0.0011, "top1": 0.931, "top1_error": 0.003}
    return {
        "teacher": {
            "name": "tutor-1.7b", "kl": 0.0, "top1": 1.0, "bits_per_byte": 0.612, "calibration_error": 0.021, "parameters": 1_710_000_000,
            "decode_tokens_per_second": 118.0, "decode_low": 115.0, "decode_high": 119.0, "prefill_tokens_per_second": 21_400.0,
            "memory_bytes": 5.33e9, "disk_bytes": 3.42e9, "memory": {"weights": 3.42e9, "cache": 1.61e9, "workspace": 0.3e9},
        },
        "start": {"kl": 4.12, "top1": 0.153, "bits_per_byte": 2.31},
        "student": {"name": "tutor-1", **closeness, "bits_per_byte": 0.618, "calibration_error": 0.024, **same, **speed, "memory": split},
        "baseline": {"name": "text_only", "kl": 0.41, "kl_error": 0.004, "top1": 0.712, "top1_error": 0.003, "bits_per_byte": 0.661, "calibration_error": 0.058},
    }  # fmt: skip


def tutor() -> Summary:
    """A summary that has everything."""
    student, baseline = (0.58, 0.72, 0.82, 0.88, 0.92, 0.945, 0.963, 0.978, 0.989, 0.997), (0.18, 0.31, 0.43, 0.54, 0.62, 0.69, 0.75, 0.81, 0.88, 0.955)
    shares = (0.02, 0.06, 0.08, 0.08, 0.08, 0.08, 0.08, 0.09, 0.11, 0.32)
    off = (-0.002, -0.008, -0.016, -0.026, -0.032, -0.034, -0.028, -0.019, -0.009, -0.002)
    names = ("instructions", "prose", "dialogue", "lists, tables", "numbers", "answers > 400 tokens", "code")
    kept, errors = (0.958, 0.946, 0.94, 0.922, 0.901, 0.883, 0.842), (0.004, 0.003, 0.005, 0.008, 0.011, 0.009, 0.016)
    alone = (0.76, 0.749, 0.755, 0.68, 0.615, 0.641, 0.498)
    teacher_ms, student_ms = (8.2, 8.5, 8.9, 9.9, 11.8), (5.1, 5.3, 5.5, 6.1, 7.2)
    return {
        "schema": "limbeck.summary/1", "run": "tutor-1", "about": "A tutor with 10 of its 24 blocks removed, taught by the whole one.",
        "date": "2026-11-24", "wall_seconds": 29_340.0, "steps": 2000, "tokens": 131_072_000, "seed": 0, "machine": "one 24 GB GPU", "unit": "token",
        "held_out": {"documents": 412, "targets": 204_800, "overlap_dropped": 2}, **arms(), "memory_context": 8192,
        "by_certainty": [
            {"low": i / 10, "high": (i + 1) / 10, "share": shares[i], "student": student[i], "baseline": baseline[i]} for i in range(10)
        ],
        "slices": [
            {"name": n, "share": 0.03, "student": k, "error": e, "baseline": a} for n, k, e, a in zip(names, kept, errors, alone, strict=True)
        ],
        "calibration": [{"stated": 0.05 + i / 10, "teacher": x, "student": 1.1 * x - 0.002, "baseline": 2.6 * x - 0.006} for i, x in enumerate(off)],
        "decode_by_context": [
            {"context": 512 * 2**i, "teacher_ms": [t, 0.96 * t, 1.05 * t], "student_ms": [s, 0.96 * s, 1.05 * s]}
            for i, (t, s) in enumerate(zip(teacher_ms, student_ms, strict=True))
        ],
        "runs": [
            {"name": "drop 4", "speed": 1.18, "top1": 0.984}, {"name": "drop 7", "speed": 1.37, "top1": 0.965}, {"name": "tutor-1", "speed": 1.61, "top1": 0.931},
            {"name": "drop 12", "speed": 1.86, "top1": 0.874}, {"name": "drop 14", "speed": 2.18, "top1": 0.769},
        ],
        "elsewhere": [
            {"where": "laptop, 8 cores, GGUF Q8_0", "teacher": 19, "student": 31, "unit": "tokens/s"},
            {"where": "phone, 8 GB, GGUF Q4_0", "teacher": 9, "student": 15, "unit": "tokens/s"},
        ],
        "worst_tokens": [{"before": "The function returns the first element of the", "token": " tuple", "teacher": " list", "kl": 6.2 - 0.1 * i} for i in range(50)],
        "checks": [
            {"name": "Evaluator on the teacher itself", "result": "KL 0.0000, agreement 100 %: as it must be", "open": False},
            {"name": "Exported student, loaded by stock transformers", "result": "largest difference of a logit 0.0 over 4,096 tokens", "open": False},
            {"name": "Held-out text in the training data", "result": "2 of 414 documents shared a run of 13 words with it and were left out", "open": False},
            {"name": "Text-only baseline", "result": "same start, data, order, steps and optimiser; only the objective differs", "open": False},
            {"name": "Interrupted", "result": "once, at step 1,043; the resumed run continues bit for bit", "open": False},
            {"name": "Spread over seeds", "result": "not measured", "open": True},
            {"name": "Other languages", "result": "not measured: the held-out set is English only", "open": True},
        ],
        "not_measured": [
            {"what": "spread over seeds; this is one seed", "command": "limbeck run tutor-1 seed=[1,2]"},
            {"what": "any task", "command": "limbeck evaluate tutor-1 --tasks gsm8k"},
        ],
        "gradient_shares": [
            {"step": s, "forward_kl": 0.94 - 0.06 * math.exp(-s / 300), "hidden_cosine": 0.06 + 0.06 * math.exp(-s / 300)} for s in range(0, 2001, 50)
        ],
        "plan": [
            {"what": "wall time", "planned": "7 h 56 min", "measured": "8 h 09 min"}, {"what": "peak memory, training", "planned": "21.9 GB", "measured": "21.2 GB"},
            {"what": "decoding, student", "planned": "185 tokens/s", "measured": "190 tokens/s"},
        ],
        "references": ["@article{hinton2015,\n  title = {Distilling the Knowledge in a Neural Network},\n  year = {2015}\n}"],
        "provenance": [
            {"name": "models/tutor-1.7b", "revision": "sha256 9b1f03", "licence": "apache-2.0", "role": "teacher"}, {"name": "lessons/*.jsonl", "role": "data"},
        ],
    }  # fmt: skip


def records() -> list[Summary]:
    """Metrics of both arms: loss by term at each tenth step, held-out KL at each fiftieth."""
    out: list[Summary] = []
    for arm, floor, pace in (("student", 0.024, 420.0), ("baseline", 0.41, 120.0)):
        for step in range(0, 2001, 10):
            kl = floor + (4.12 - floor) * (0.8 * math.exp(-step / pace * 4) + 0.2 * math.exp(-step / pace))
            term = "forward_kl" if arm == "student" else "cross_entropy"
            noise = 1 + 0.1 * math.sin(step * 1.7)
            for name, value in ((term, kl * noise), ("gradient_norm", 3 * kl**0.4 * noise), ("learning_rate", 3e-4 * math.cos(step / 1400))):
                out.append({"v": 1, "step": step, "stage": "main", "arm": arm, "name": name, "sum": value * 65_536, "count": 65_536, "time": 0.0})
            if step % 50 == 0:
                out.append({"v": 1, "step": step, "stage": "main", "arm": arm, "name": "held_out_kl", "value": kl})
    return out


RECIPE = """about: A tutor with 10 of its 24 blocks removed, taught by the whole one.
data:
- {kind: chat, path: lessons/*.jsonl}
- {kind: pack, length: 1024}  # default
teacher: path:models/tutor-1.7b
student:
  start: teacher  # from the command line
train:
- objective: [forward_kl, {kind: hidden_cosine, weight: 0.1}]
  steps: 2000
"""
ICE = "Because ice is less dense than liquid water. When water freezes, its molecules {} an open lattice that takes up about 9 % more {}."
CODE = "def reverse_words(text):\n    {} = text.split()\n    return ' '.join(reversed({}))"


def said() -> list[Summary]:
    """Held-out inputs with both answers; the marks lie on the words that differ."""
    out = []
    for prompt, text, left, right in (
        ("Why does ice float on water?", ICE, ("settle into", "room"), ("form", "space")),
        ("Write a function that reverses the words of a sentence.", CODE, ("words", "words"), ("parts", "parts")),
    ):
        answers = {"teacher": text.replace("{}", left[0], 1).replace("{}", left[1]), "student": text.replace("{}", right[0], 1).replace("{}", right[1])}
        marks = [[m.start(), m.end()] for word in dict.fromkeys(right) for m in re.finditer(rf"\b{word}\b", answers["student"])]
        out.append({"prompt": prompt, **answers, "teacher_seconds": 0.41, "student_seconds": 0.25, "agreement": 0.95, "marks": marks})
    return out


ENVIRONMENT = {"limbeck": "0.1.0", "torch": "2.14.1", "transformers": "5.23.0", "variables": {"OMP_NUM_THREADS": "2"}}
PLAN = "plan of tutor.yaml · no weights loaded\n  total       without what is cached            7 h 56 min   21.9 GB   41.7 GB"


def whole() -> str:
    return render(tutor(), RECIPE, records(), PLAN, ENVIRONMENT, said())
