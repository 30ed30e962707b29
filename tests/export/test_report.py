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
from limbeck.export._figures_close import learning
from limbeck.export._report_data import curves, flatten, marked, thin
from limbeck.export._report_text import measure_it, typeset
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
        "baseline": {
            "name": "text_only", "kl": 0.41, "kl_error": 0.004, "top1": 0.712, "top1_error": 0.003, "bits_per_byte": 0.661,
            "calibration_error": 0.058,
        },
    }  # fmt: skip


def tutor() -> Summary:
    """A summary that has everything."""
    student = (0.58, 0.72, 0.82, 0.88, 0.92, 0.945, 0.963, 0.978, 0.989, 0.997)
    baseline = (0.18, 0.31, 0.43, 0.54, 0.62, 0.69, 0.75, 0.81, 0.88, 0.955)
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
            {"name": "drop 4", "speed": 1.18, "top1": 0.984}, {"name": "drop 7", "speed": 1.37, "top1": 0.965},
            {"name": "tutor-1", "speed": 1.61, "top1": 0.931}, {"name": "drop 12", "speed": 1.86, "top1": 0.874},
            {"name": "drop 14", "speed": 2.18, "top1": 0.769},
        ],
        "elsewhere": [
            {"where": "laptop, 8 cores, GGUF Q8_0", "teacher": 19, "student": 31, "unit": "tokens/s"},
            {"where": "phone, 8 GB, GGUF Q4_0", "teacher": 9, "student": 15, "unit": "tokens/s"},
        ],
        "worst_tokens": [
            {"before": "The function returns the first element of the", "token": " tuple", "teacher": " list", "kl": 6.2 - 0.1 * i} for i in range(50)
        ],
        "checks": [
            {"name": "Evaluator on the teacher itself", "result": "KL 0.0000, agreement 100 %: as it must be", "open": False},
            {"name": "Exported student, loaded by stock transformers", "result": "largest difference of a logit 0.0", "open": False},
            {"name": "Held-out text in the training data", "result": "2 of 414 documents shared a run of 13 words with it", "open": False},
            {"name": "Text-only baseline", "result": "same start, data, order and steps; another objective", "open": False},
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
            {"what": "wall time", "planned": "7 h 56 min", "measured": "8 h 09 min"},
            {"what": "peak memory, training", "planned": "21.9 GB", "measured": "21.2 GB"},
            {"what": "decoding, student", "planned": "185 tokens/s", "measured": "190 tokens/s"},
        ],
        "references": ["@article{hinton2015,\n  title = {Distilling the Knowledge in a Neural Network},\n  year = {2015}\n}"],
        "provenance": [
            {"name": "models/tutor-1.7b", "revision": "sha256 9b1f03", "licence": "apache-2.0", "role": "teacher"},
            {"name": "lessons/*.jsonl", "role": "data"},
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
        answers = {who: text.replace("{}", a, 1).replace("{}", b) for who, (a, b) in (("teacher", left), ("student", right))}
        marks = [[m.start(), m.end()] for word in dict.fromkeys(right) for m in re.finditer(rf"\b{word}\b", answers["student"])]
        out.append({"prompt": prompt, **answers, "teacher_seconds": 0.41, "student_seconds": 0.25, "agreement": 0.95, "marks": marks})
    return out


ENVIRONMENT = {"limbeck": "0.1.0", "torch": "2.14.1", "transformers": "5.23.0", "variables": {"OMP_NUM_THREADS": "2"}}
PLAN = "plan of tutor.yaml · no weights loaded\n  total       without what is cached            7 h 56 min   21.9 GB   41.7 GB"


def whole() -> str:
    return render(tutor(), RECIPE, records(), PLAN, ENVIRONMENT, said())


class Page(HTMLParser):
    """Tags with their attributes, and the text inside each kind of tag."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "wbr"):
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        for tag in set(self.open):
            self.texts[tag][-1] += data

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def test_the_page_has_one_result_six_questions_in_the_order_of_doubt_and_may_load_nothing():
    page = Page(whole())
    assert page.open == [] and page.named("html") == [{"lang": "en"}]
    assert len(page.texts["h1"]) == 1
    questions = page.texts["h2"]
    assert questions == [
        "How close?", "Where does it differ?", "How fast, how big?", "What does it say?", "Can I trust this?", "Recipe, numbers, citation",
    ]  # fmt: skip
    assert [a["href"] for a in page.named("a")][-6:] == [f"#{section['id']}" for section in page.named("section")]
    policy = [m["content"] for m in page.named("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'"]
    assert not {"script", "img", "link", "iframe", "object", "form", "base", "use", "image"} & {tag for tag, _ in page.tags}
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_the_file_asks_for_nothing():
    page = Page(whole())
    for _, attributes in page.tags:
        assert not any(name.startswith("on") or name in ("src", "srcset", "style", "action") for name in attributes)
        assert all((attributes.get(name) or "#").startswith("#") for name in ("href", "xlink:href"))
    assert "url(" not in whole() and "@import" not in whole()


def test_each_plot_says_what_it_is_has_its_numbers_below_and_readable_labels():
    text = whole()
    page = Page(text)
    assert len(page.named("svg")) == 13  # strip, 2, 2, 3, 1, and four curves of training
    for svg in page.named("svg"):
        assert svg["role"] == "img" and (svg["viewbox"] or "").startswith("0 0 360 ")
    for figure in re.findall(r"<figure>.*?</figure>", text, re.S):
        if "<svg" in figure:
            assert re.search(r"<title id=\"[\w-]+\">[^<]+</title><desc id=\"[\w-]+\">[^<]+\.</desc>", figure)
            assert re.search(r"<details class=\"numbers\">.*<td>", figure, re.S)
    sizes = [float(size) for size in re.findall(r"svg[^{}]*\{[^{}]*font(?:-size)?: ([\d.]+)px", text)]
    assert sizes and min(sizes) >= 11


def test_a_page_of_a_whole_run_is_small_and_made_of_nothing_but_its_input():
    assert len(whole().encode()) < 200_000
    assert whole() == whole()


HOSTILE = "<script>alert(1)</script>\u202e\x1b[31m\x00\"'>[/INST]{{ 7*7 }}&lt;"


def poisoned(value: Any, keep: tuple[str, ...] = ("unit",)) -> Any:
    """The same data with every text replaced, those of keys as well, except where the page reads the key."""
    if isinstance(value, str):
        return HOSTILE
    if isinstance(value, dict):
        return {key: poisoned(item) for key, item in value.items()} | ({HOSTILE: 0.5, HOSTILE + "2": HOSTILE} if value else {})
    return [poisoned(item) for item in value] if isinstance(value, list) else value


def test_no_text_of_a_run_can_do_anything_in_the_page():
    summary = poisoned(tutor()) | {"verdict": HOSTILE}
    for share in summary["gradient_shares"]:
        share[HOSTILE] = 0.3
    summary["student"]["tasks"] = summary["student"]["metrics"] = {HOSTILE: {"value": 0.5, "error": 0.1, "unit": HOSTILE}}
    metrics = [record | {"name": record["name"] + HOSTILE, "stage": HOSTILE} for record in records()]
    page = render(summary, HOSTILE, metrics, HOSTILE, {HOSTILE: {HOSTILE: HOSTILE}}, poisoned(said()))
    assert "<script" not in page and "alert(1)</" not in page and "49" not in re.findall(r"\{\{.{0,9}", page)
    assert page.count("&lt;script&gt;") > 100
    assert not re.search("[\u202a-\u202e\u2066-\u2069\x00-\x08\x0b-\x1f\x7f-\x9f]", page)
    assert "\\u202e" in page and "␛" in page and "␀" in page
    harmless = Page(page)
    assert harmless.open == []
    assert {tag for tag, _ in harmless.tags} <= {tag for tag, _ in Page(whole()).tags} | {"wbr"}
    assert {key for _, a in harmless.tags for key in a} == {key for _, a in Page(whole()).tags for key in a}


def test_the_page_stays_below_two_megabytes_whatever_it_is_given():
    long = '"' * 100_000
    huge = [{"prompt": long, "teacher": long, "student": long, "marks": [[i, i + 1] for i in range(0, 10_000, 2)]}] * 1_000
    summary = tutor()
    for key, item in summary.items():
        if isinstance(item, list) and item and isinstance(item[0], dict):
            summary[key] = [entry | {k: long for k, v in entry.items() if isinstance(v, str)} for entry in item] * 200
    summary["references"], summary["about"] = [long] * 100, long
    summary["student"]["tasks"] = {f"{i}{long}": {"value": 0.5, "unit": long} for i in range(100)}
    metrics = [record | {"name": f"{record['name']}{i}"} for i in range(40) for record in records()[::7]]
    page = render(summary, long, metrics, long, {f"{i}{long}": long for i in range(300)}, huge)
    assert 500_000 < len(page.encode()) < 2_000_000


@pytest.mark.parametrize("summary", [{}, {"run": "x-1"}, {"run": "x-1", "student": {}, "baseline": None, "teacher": {}, "start": {}}])
def test_a_run_that_measured_nothing_says_so_with_commands_and_draws_nothing(summary: Summary):
    page = render(summary)
    run = summary.get("run", "RUN")
    assert "<svg" not in page and "<table class" not in page
    assert f"was not measured (<code>limbeck run {run} evaluate=[agreement]</code>)" in page
    assert page.count(f"<code>limbeck run {run} evaluate=[agreement,<wbr>perplexity,<wbr>calibration,<wbr>speed]</code>") == 3
    assert f"No sample was drawn. <code>limbeck evaluate {run}</code>" in page


PARTS = (
    "baseline", "start", "teacher", "held_out", "by_certainty", "slices", "calibration", "decode_by_context", "runs", "checks", "gradient_shares",
    "tokens", "unit",
)  # fmt: skip


@pytest.mark.parametrize("key", PARTS)
def test_what_a_run_lacks_shrinks_the_page_and_leaves_no_hole(key: str):
    for gone in (None, "missing"):
        summary = tutor()
        summary[key] = None
        if gone:
            del summary[key]
        page = render(summary, RECIPE, records(), PLAN, ENVIRONMENT, said())
        assert Page(page).open == [] and len(page) < len(whole()) + 200
        assert "nan" not in page.lower().replace("finance", "") and "None" not in page


NONSENSE = (None, "<script>", math.nan, math.inf, [], {}, -1, 0, 1e308, 10**400, True, [1], {"a": 1}, "")


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = list(value.items()) if isinstance(value, dict) else list(enumerate(value))[:1] if isinstance(value, list) else []
    return [path, *(p for key, item in items for p in places(item, (*path, key)))]


def test_nonsense_anywhere_in_a_summary_is_not_measured_rather_than_an_error_or_a_nan():
    for i, path in enumerate(places(tutor())[1:]):
        summary = tutor()
        place: Any = summary
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = NONSENSE[i % len(NONSENSE)]
        page = render(summary, samples=said()[:1])
        assert "<script" not in page and not re.search(r"\b(nan|inf|None)\b", page), path


# --- the verdict -----------------------------------------------------------------------------------------------------


def changed(**arms_changed: Any) -> Summary:
    summary = tutor()
    for name, change in arms_changed.items():
        summary[name] = None if change is None else {**summary[name], **change}
    return summary


SLOW = {"decode_tokens_per_second": None}
ALONE = "the same student trained on text alone for as many steps"


@pytest.mark.parametrize(
    ("summary", "kind", "sentence"),
    [
        (tutor(), "clear", f"The student keeps 93 % of the teacher's top-1 choices at 1.6x its decoding speed; {ALONE} keeps 71 %."),
        (changed(student=SLOW), "clear", f"The student keeps 93 % of the teacher's top-1 choices; {ALONE} keeps 71 %."),
        (changed(baseline={"top1": 0.926}, student={"top1_error": 0.001, **SLOW}, start={"top1": 0.5}), "no_help",
         f"The teacher did not help: the student keeps 93.1 ± 0.1 % of the teacher's top-1 choices, and {ALONE} keeps 92.6 ± 0.3 %."),
        (changed(baseline={"top1": 0.95}), "behind",
         "The teacher did not help: the student keeps 93 % of the teacher's top-1 choices at 1.6x its decoding speed, "
         f"and {ALONE} is ahead with 95 %."),
        (changed(baseline=None), "alone",
         "The student keeps 93 % of the teacher's top-1 choices at 1.6x its decoding speed; "
         "not compared with text alone (`limbeck run tutor-1 baseline=[text_only]`)."),
        (changed(baseline=None) | {"baseline_seconds": 10_920}, "alone",
         "The student keeps 93 % of the teacher's top-1 choices at 1.6x its decoding speed; "
         "not compared with text alone (3 h 02 min: `limbeck run tutor-1 baseline=[text_only]`)."),
        (changed(student={"top1": 0.12, **SLOW}), "worse",
         f"Worse than at the start: the student keeps 12 % of the teacher's top-1 choices, 15 % before training; {ALONE} keeps 71 %."),
        (changed(student={"top1": 0.154, **SLOW}, baseline=None), "unmoved",
         "Training changed nothing that could be measured: the student keeps 15.4 ± 0.3 % of the teacher's top-1 choices, "
         "15.3 % before training; not compared with text alone (`limbeck run tutor-1 baseline=[text_only]`)."),
        (changed(student={"top1": None}, baseline={"top1": None}, start={"top1": None}), "clear",
         f"The student reaches 0.031 nats per token in KL to the teacher at 1.6x its decoding speed; {ALONE} reaches 0.41."),
        ({"run": "x"}, "unmeasured", "How close the student comes to the teacher was not measured (`limbeck run x evaluate=[agreement]`)."),
    ],
)  # fmt: skip
def test_the_verdict_is_one_sentence_for_each_outcome(summary: Summary, kind: str, sentence: str):
    from limbeck.export._verdict import measure

    assert outcome(measure(summary)) == kind
    assert verdict(summary) == sentence


def test_a_model_without_agreement_is_judged_by_its_first_metric():
    def image(value: float, error: float, less: bool = False) -> Summary:
        return {"metrics": {"accuracy": {"value": value, "error": error, "unit": "%", "lower_is_better": less}}}

    summary = {"run": "vit-1", "unit": "image", "teacher": image(93.4, 0.2), "student": image(91.2, 0.2)}
    summary["baseline"] = {"name": "no_teacher", **image(88.0, 0.3)}
    assert verdict(summary) == (
        "The student reaches 91.2 % in accuracy (the teacher 93.4 %); the same student trained without the teacher for as many steps reaches 88 %."
    )
    assert [row[:5] for row in table(summary)] == [("accuracy, %", "93.4", "", "88", "91.2")] and header(summary)["baseline"] == "no teacher"
    less = {"run": "vit-1", "unit": "image", "student": image(91.2, 0.2, less=True), "baseline": image(88.0, 0.3, less=True)}
    assert verdict(less).startswith("The teacher did not help: the student reaches 91.2 % in accuracy, and the same student trained without")


@pytest.mark.parametrize("baseline, sentence", [
    ({"chunk_gap": 2.0, "chunk_gap_error": 0.01},
     "The student comes within 1.2 nats of the teacher's log-probability of a stretch of text; the same student trained on text alone "
     "for as many steps comes within 2."),
    ({"chunk_gap": 1.21, "chunk_gap_error": 0.01},
     "The teacher did not help: the student comes within 1.20 ± 0.01 nats of the teacher's log-probability of a stretch of text, "
     "and the same student trained on text alone for as many steps comes within 1.21 ± 0.01."),
])  # fmt: skip
def test_across_tokenizers_a_student_is_judged_by_the_gap_of_log_probabilities(baseline: Summary, sentence: str):
    summary = {"run": "x", "closeness": "aligned_bytes", "teacher": {"bits_per_byte": 0.9}, "baseline": {"name": "text_only", **baseline}}
    summary["student"] = {"chunk_gap": 1.2, "chunk_gap_error": 0.01, "bits_per_byte": 1.0}
    assert verdict(summary) == sentence
    assert table(summary)[0][:5] == ("Gap to the teacher's log-probability, nats/stretch", "0", "", table(summary)[0].baseline, "1.20")
    assert verdict({"run": "x", "closeness": "aligned_bytes"}).endswith("was not measured (`limbeck run x evaluate=[aligned_bytes]`).")


@pytest.mark.parametrize("start, sentence", [
    ({"bits_per_byte": 2.5}, "The student reaches 1 bits per byte of held-out text, 2.5 before training."),
    ({"bits_per_byte": 0.9}, "Worse than at the start: the student reaches 1 bits per byte of held-out text, 0.9 before training."),
    (None, "The student reaches 1 bits per byte of held-out text."),
])  # fmt: skip
def test_without_a_teacher_there_is_no_column_for_it_and_nothing_to_compare_with(start: Summary | None, sentence: str):
    summary = {"run": "x", "closeness": None, "teacher": None, "start": start, "student": {"bits_per_byte": 1.0, "parameters": 1000}}
    assert verdict(summary) == sentence and "teacher" not in header(summary)
    page = render(summary)
    assert "teacher</th>" not in page and "evaluate=[agreement]" not in page and 'colspan="0"' not in page
    assert verdict({"run": "x", "closeness": None}) == "What the student can do was not measured (`limbeck run x evaluate=[perplexity]`)."
    taught = {**summary, "closeness": "agreement"}  # the same figures of a run that has one
    assert "How close the student comes" in verdict(taught) and "teacher" in header(taught)


def test_two_figures_are_told_apart_beyond_two_standard_errors_of_their_difference():
    student = {"top1": 0.5, "top1_error": 0.03, "kl": None}
    for gap, expected in ((0.0999, "The teacher did not help"), (0.1001, "The student keeps 50 %")):  # 2 x hypot(0.03, 0.04) = 0.1
        summary = changed(student=student, baseline={"top1": 0.5 - gap, "top1_error": 0.04}, start={"top1": 0.1})
        assert verdict(summary).startswith(expected)


def test_figures_that_differ_do_not_read_the_same_and_nothing_is_called_good():
    summary = changed(student={"top1": 0.714, "top1_error": 0.0001, **SLOW}, baseline={"top1": 0.712, "top1_error": 0.0001})
    assert verdict(summary) == f"The student keeps 71.4 % of the teacher's top-1 choices; {ALONE} keeps 71.2 %."
    words = verdict(tutor()) + "".join(Page(whole()).texts["figcaption"]).replace("text only", "")
    assert not re.search(r"\b(good|great|excellent|poor|bad|impressive|only)\b", words)


def test_the_page_the_terminal_and_the_summary_say_the_same_sentence():
    shown = Page(whole()).texts["h1"][0].replace("\u00a0", " ").replace("×", "x").replace("’", "'")
    assert shown == verdict(tutor())
    assert "<h1>Said before.</h1>" in render(tutor() | {"verdict": "Said before."})


def test_doubts_are_strings_of_their_own():
    assert weakest(tutor()) == "Weakest on code: 84 % (3 % of the held-out tokens)."
    assert weakest(tutor() | {"slices": tutor()["slices"][:1]}) == ""
    assert unmeasured(tutor()) == [
        "Not measured: spread over seeds; this is one seed. `limbeck run tutor-1 seed=[1,2]`",
        "Not measured: any task. `limbeck evaluate tutor-1 --tasks gsm8k`",
    ]
    assert unmeasured({"not_measured": [{"what": "x`\x1b"}, {"what": 3}, 4]}) == ["Not measured: x'␛."]


def test_the_table_is_that_of_the_terminal():
    rows = table(tutor())
    assert list(header(tutor()).values()) == ["teacher", "before", "text only", "student"]
    assert [tuple(row) for row in rows] == [
        ("Top-1 agreement, %", "100", "15.3", "71.2", "93.1", "± 0.3", "", False),
        ("KL to teacher, nats/token", "0", "4.12", "0.41", "0.031", "± 0.001", "", False),
        ("Bits per byte, held-out", "0.612", "2.31", "0.661", "0.618", "", "", False),
        ("Decoding, tokens/s", "118", "190", "190", "190", "", "1.6x", True),
        ("Prefill, tokens/s", "21,400", "34,900", "34,900", "34,900", "", "1.6x", True),
        ("Memory at 8k context, GB", "5.33", "3.32", "3.32", "3.32", "", "0.62x", True),
        ("Parameters, billion", "1.71", "1.04", "1.04", "1.04", "", "0.61x", True),
        ("On disk, GB", "3.42", "2.08", "2.08", "2.08", "", "0.61x", True),
    ]
    bare = table(changed(baseline=None, student={"kl": None, "bits_per_byte": None, "perplexity": 24.1}))
    assert bare[1][:5] == ("KL to teacher, nats/token", "0", "4.12", "", "?") and "baseline" not in header(changed(baseline=None))
    assert [row.name for row in bare if "held-out" in row.name] == ["Bits per byte, held-out"]  # the start has it
    assert table(changed(teacher={"kl": None, "top1": None}))[:2] == rows[:2]  # by definition, measured or not
    assert table({"student": {"perplexity": 24.1}})[0][:5] == ("Perplexity, held-out", "?", "", "", "24.1")


# --- findings: each rule on both sides of its threshold ----------------------------------------------------------------


def curve(*values: float) -> list[tuple[float, float]]:
    return [(100.0 * i, value) for i, value in enumerate(values)]


FALLS, RESTS, RISES, VAGUE = curve(4, 1, 0.5, 0.2, 0.18), curve(4, 0.42, 0.41, 0.405, 0.4), curve(4, 1, 0.5, 0.6, 0.7), curve(4, 1, 0.5, 0.4)


@pytest.mark.parametrize(
    ("points", "kind"),
    [
        (FALLS, ("falling", 400)), (RESTS, ("rest", 100)), (RISES, ("risen", 200)), (curve(1, 1), ("", 0)), ([], ("", 0)),
        (curve(4, 1, 0.5, 0.2, 0.1899), ("falling", 400)), (curve(4, 1, 0.5, 0.2, 0.1901), ("", 0)),
        (curve(4, 1, 0.5, 0.2, 0.1904), ("", 0)), (curve(4, 1, 0.5, 0.2, 0.1905), ("rest", 300)),
        (curve(4, 1, 0.5, 0.2, 0.2099), ("rest", 300)), (curve(4, 1, 0.5, 0.2, 0.2101), ("risen", 300)), (curve(0, 0, 0), ("rest", 0)),
    ],
)  # fmt: skip
def test_a_curve_falls_rests_or_rises_by_five_percent(points: list[tuple[float, float]], kind: tuple[str, float]):
    assert findings.trend(points) == kind


def test_the_title_of_the_curve_of_kl():
    say = findings.while_training
    assert say(FALLS, RESTS, "text alone") == "The teacher is still teaching at the last step; text alone stopped helping at 100"
    assert say(RESTS, FALLS, "text alone") == "The student stopped coming closer at step 100; text alone still helps too"
    assert say(RISES, [], "text alone") == "The student came no closer after step 200, but moved away again"
    assert say(curve(1, 1), RISES, "text alone") == "Text alone led away after 200"
    assert say([], [], "text alone") == "KL to the teacher while training"


def test_the_title_of_calibration():
    low, high = [{"stated": 0.5, "student": -0.1}], [{"stated": 0.5, "student": 0.1}]
    assert findings.calibration(0.02, 0.03, low) == "Its doubt is as honest as the teacher's"
    assert findings.calibration(0.02, 0.0301, low) == "More sure than it is right: off by 3 points, the teacher by 2"
    assert findings.calibration(0.02, 0.0301, high) == "Less sure than it is right: off by 3 points, the teacher by 2"
    assert findings.calibration(0.03, 0.0199, low) == "Its doubt is more honest than the teacher's: off by 2 points, the teacher's by 3"
    assert findings.calibration(None, 0.02, low) == "Stated probability against how often it is right"


@pytest.mark.parametrize(
    ("unsure", "rest", "sure", "title"),
    [
        (0.85, 0.95, 0.95, "It differs where the teacher itself hesitates"),
        (0.86, 0.95, 0.95, "Agreement by the teacher's certainty"),
        (0.5, 0.95, 0.89, "It differs even where the teacher is sure: 89 % agreement"),
        (0.5, 0.95, 0.9, "It differs where the teacher itself hesitates"),
    ],
)
def test_the_title_of_certainty(unsure: float, rest: float, sure: float, title: str):
    bins = [{"low": 0.4, "high": 0.5, "share": 0.2, "student": unsure}, {"low": 0.5, "high": 0.9, "share": 0.4, "student": rest}]
    bins.append({"low": 0.9, "high": 1.0, "share": 0.0 if sure == rest else 0.001, "student": sure})
    assert findings.certainty(bins) == title


def test_the_weakest_kind_is_named_only_beyond_its_error():
    slices = [{"name": "prose", "student": 0.95}, {"name": "code", "student": 0.90, "error": 0.02}]
    summary = {"slices": slices}
    assert findings.kinds(summary, slices, 0.9401) == "Weakest on code: 90 %"
    assert findings.kinds(summary, slices, 0.94) == "Agreement by kind of text" == findings.kinds(summary, slices, None)


@pytest.mark.parametrize(
    ("ratios", "title"),
    [
        ((1.6, 1.7), "1.6x faster at every context length"), ((1.5, 1.7), "1.5x to 1.7x faster, most at 1,024 tokens"),
        ((1.6,), "1.6x faster at 512 tokens of context"), ((1.6, 1.76), "1.6x faster at every context length"),
        ((1.04, 0.96), "As fast as the teacher at every context length"), ((1.04, 1.06), "Decoding time by context"),
        ((0.8, 0.85), "Slower than the teacher at every context length: 0.80x its speed"),
        ((0.7, 0.9), "Slower than the teacher at every context length: 0.70x to 0.90x its speed"),
        ((0.8, 1.2), "Decoding time by context"),
    ],
)  # fmt: skip
def test_the_title_of_speed(ratios: tuple[float, ...], title: str):
    assert findings.speed([(512.0 * 2**i, ratio) for i, ratio in enumerate(ratios)]) == title


def test_the_titles_of_memory_runs_and_gradient():
    assert findings.memory(1e9, 0.951e9) == "As much memory as the teacher" == findings.memory(1e9, 1.049e9)
    assert findings.memory(5.33e9, 3.32e9) == "2.01 GB less to serve" and findings.memory(1e9, 2e9) == "1 GB more to serve"
    this = ("this run", 1.6, 0.93)
    assert findings.runs(this, [("a", 2.4, 0.8), ("b", 1.92, 0.9), ("c", 1.65, 0.1)]) == "b: 1.2x the speed of this run for 3 points less"
    assert findings.runs(this, [("c", 1.65, 0.1), ("d", 2.0, 0.95)]) == "Agreement against speed" == findings.runs(None, [("a", 2.0, 0.1)])
    even = {"a": [(0, 0.5), (100, 0.989)], "b": [(0, 0.001), (75, 0.01), (100, 0.01)]}
    assert findings.pull(even) == "Both terms pull; none is idle"
    even["b"][-1] = (100, 0.0099)
    assert findings.pull(even) == "b hardly pulls: below 1 % of the gradient"
    assert findings.pull({**even, "c": [(0, 0.0), (1, 0.0)]}) == "b and c hardly pull: below 1 % of the gradient"


def test_the_page_shows_the_findings_it_has_tested():
    titles = re.findall(r"<figcaption><b>(.*?)</b>", whole().replace("\u00a0", " "))[:9]
    assert [html.unescape(title) for title in titles] == [
        "The teacher is still teaching at the last step; text alone stopped helping at 450", "Its doubt is as honest as the teacher’s",
        "It differs where the teacher itself hesitates", "Weakest on code: 84 %", "1.6× faster at every context length",
        "drop 12: 1.2× the speed of this run for 5.7 points less", "2.01 GB less to serve", "Elsewhere: planned, not measured",
        "Both terms pull; none is idle",
    ]  # fmt: skip


# --- what is read and drawn ---------------------------------------------------------------------------------------------


def test_metrics_become_curves_by_name_and_arm():
    kl, held_out = {"name": "kl", "arm": "student"}, {"name": "held_out_kl", "arm": "student"}
    got = curves([
        kl | {"step": 1, "stage": "a", "sum": 8.0, "count": 2}, kl | {"step": 2, "stage": "a", "sum": 3.0, "count": 2},
        kl | {"step": 2, "stage": "a", "sum": 5.0, "count": 2},                    # written again after a resume
        held_out | {"step": 2, "value": 0.7}, kl | {"step": 1, "stage": "b", "sum": 1.0, "count": 1}, held_out | {"step": 1, "value": 0.6},
        {"step": 1, "name": "kl", "arm": "baseline", "value": math.nan}, {"name": "kl"},
        {"step": 1, "name": "kl", "arm": "baseline", "sum": 1.0, "count": 0},
    ])  # fmt: skip
    assert got == {("kl", "student"): [(1, 4.0), (2, 2.5), (3, 1.0)], ("held_out_kl", "student"): [(2, 0.7), (3, 0.6)]}
    assert thin(list(range(1_000)), 3) == [0, 500, 999]
    assert flatten({"a": {"b": [1, None]}, "c": "x"}) == [("a.b.0", "1"), ("a.b.1", "?"), ("c", "x")]


def test_marks_of_a_sample_are_cut_where_the_student_wrote_them():
    assert marked("a\u202eb form c", [[3, 8]], 100) == [(False, "a\\u202eb"), (True, " form"), (False, " c")]
    assert marked("abc", [[2, 1], [-1, 1], [0, 99], "x", [0], [1, 2], [1, 3], None], 100) == [(False, "a"), (True, "b"), (False, "c")]
    assert marked(None, None, 100) == [] and marked("abc", 3, 2) == [(False, "ab…")]
    page = render(tutor(), samples=said())
    assert "molecules <mark>form</mark> an open" in page and "    <mark>parts</mark> = text.split()" in page and "<mark>room" not in page


def test_a_page_without_samples_holds_no_held_out_text_and_says_how_many_it_holds_otherwise():
    page = render(tutor(), samples=None)
    assert "Holds no held-out text." in page and "written without held-out text" in page and "first element" not in page
    assert "Holds 2 held-out texts and 50 excerpts of held-out text; <code>limbeck evaluate tutor-1 --no-samples</code>" in whole()
    many = render(tutor(), samples=[{"prompt": f"number {i}."} for i in range(40)])
    assert "number 24." in many and "number 25." not in many and "<summary>20 more</summary>" in many


def test_axes_have_round_numbers_within_the_data():
    assert Scale(0, 2000, 0, 1).ticks() == [0, 500, 1000, 1500, 2000]
    assert Scale(0.028, 4.12, 0, 1, log=True).ticks() == [0.03, 0.1, 0.3, 1.0, 3.0]
    assert Scale(-9.4, 0.5, 0, 1).ticks() == [-7.5, -5, -2.5, 0] and Scale(3, 3, 0, 1).ticks() == [3]
    assert Scale(1, 100, 10, 30, log=True)(10) == pytest.approx(20) and Scale(5, 5, 10, 30)(5) == 20
    assert all(2 <= len(Scale(10.0**-a, 10.0**b, 0, 1, log=True).ticks()) <= 7 for a in range(9) for b in range(1, 9))


def test_labels_move_apart_in_their_order_and_stay_inside():
    assert spread([(50, 13), (52, 13), (100, 13)], 0, 200) == [50, 63, 100]
    assert spread([(198, 13), (199, 13)], 0, 200) == [180.5, 193.5]
    assert spread([(0, 10)] * 3, 0, 20) == [5, 15, 25]
    assert spread([], 0, 1) == []


def test_each_line_is_named_at_its_end_and_told_apart_by_more_than_its_colour():
    for key, inks in (("learning", ("st", "bt")), ("calibration", ("st", "bt", "tt")), ("certainty", ("st", "bt")), ("decoding", ("st", "tt"))):
        svg = re.findall(rf'<svg [^>]*aria-labelledby="{key}-title.*?</svg>', whole())[0]
        names = {"st": "student", "bt": "text only", "tt": "teacher"}
        labels = {ink: re.findall(rf'<text x="([\d.]+)" y="([\d.]+)" class="{ink}">([^<]+)', svg) for ink in inks}
        assert [labels[ink][0][2].startswith(names[ink]) for ink in inks] == [True] * len(inks)
        assert svg.count('class="ln ') - svg.count('class="ln d"') == len(inks)
        for ink in inks:
            path = re.findall(rf'class="ln {ink[0]}" d="M(.*?)"', svg)[0]
            x, y = (float(pixel) for pixel in path.split("L")[-1].split())
            assert float(labels[ink][0][0]) > x and abs(float(labels[ink][0][1]) - y) < 60
        assert ('<rect class="b"' in svg) == ("bt" in inks) and '<circle class="s"' in svg
    assert re.search(r"\.ln\.b \{ stroke-dasharray: \d", whole())


def test_the_curve_begins_with_the_rows_that_it_goes_on_with():
    """All held-out rows may lie elsewhere: with their mean in front, a curve of other rows falls before anything is learnt."""
    found = {("held_out_kl", "student"): [(1.0, 0.36), (2.0, 0.35), (4.0, 0.34)]}
    figure = learning({**tutor(), "watched": {"rows": 4, "kl": 0.37}}, found)
    assert figure is not None and figure.rows[0] == ["0", "0.37"] and "the same 4 held-out rows each time" in figure.note
    unknown = learning({**tutor(), "watched": {}}, found)
    assert unknown is not None and unknown.rows[0] == ["1", "0.36"] and unknown.note.endswith("held-out")


def shown(page: str) -> str:
    """The text of a page."""
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<style>.*?</style>|<[^>]+>", " ", page, flags=re.S)))


ALONE_SAMPLE = [{"prompt": "predict: 1+1=", "student": "", "student_seconds": 0.1}]


def test_without_a_teacher_no_answer_of_one_is_announced_and_no_agreement_with_one_is_to_be_measured():
    page = shown(render({"run": "r", "closeness": None, "student": {"bits_per_byte": 2.0}}, samples=ALONE_SAMPLE))
    assert "There is no teacher to differ from." in page and "Marked" not in page
    assert "predict: 1+1= student · 0.1 s (nothing)" in page and "evaluate=[perplexity,calibration,speed]" in page.replace(", ", ",")


def test_across_tokenizers_the_page_says_that_nothing_is_compared_token_by_token_and_names_what_can_be_measured():
    page = shown(render({"run": "r", "closeness": "aligned_bytes"}, samples=[{"prompt": "a", "teacher": "b", "student": "c"}]))
    assert "teacher and student read with different tokenizers" in page and "Marked" not in page
    assert "evaluate=[perplexity,aligned_bytes,speed]" in page.replace(", ", ",")
    compared = shown(render({"run": "r"}, samples=[{"prompt": "a", "teacher": "b", "student": "c", "agreement": 0.0}]))
    assert "Marked : a token that the teacher" in compared


def test_our_sentences_are_typeset_and_escaped():
    assert typeset("KL's 3 % at 1.6x: `limbeck <run> x's,y`") == "KL’s 3\u00a0% at 1.6×: <code>limbeck &lt;run&gt; x&#39;s,<wbr>y</code>"
    assert typeset("93.0 ± 0.3 <b>") == "93.0\u00a0±\u00a00.3 &lt;b&gt;"


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    return sum(w * (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4) for w, c in zip((0.2126, 0.7152, 0.0722), channels, strict=True))


def test_text_has_a_contrast_of_five_and_a_half_in_both_palettes():
    palettes = [dict(re.findall(r"--(\w+): (#\w{6})", block)) for block in re.findall(r":root \{(.*?)\}", whole(), re.S)]
    assert len(palettes) == 2
    for palette in palettes:
        for name in ("ink", "dim", "student", "baseline", "teacher", "doubt"):
            low, high = sorted((luminance(palette[name]), luminance(palette["paper"])))
            assert (high + 0.05) / (low + 0.05) >= 5.5, name  # WCAG 2.2, relative luminance
        low, high = sorted((luminance(palette["ink"]), luminance(palette["mark"])))
        assert (high + 0.05) / (low + 0.05) >= 5.5


# --- in a browser --------------------------------------------------------------------------------------------------------


def crowded() -> Summary:
    """A run whose figures all lie close together, with long names: labels have to move."""
    summary = changed(student={"top1": 0.95}, baseline={"top1": 0.948, "kl": 0.033}, start={"top1": 0.935})
    summary["slices"][0]["name"] = "instructions of every kind, and more"
    summary["runs"] += [{"name": f"another run {i}", "speed": 1.6 + 0.01 * i, "top1": 0.93 - 0.002 * i} for i in range(8)]
    summary["by_certainty"][-1]["student"] = 0.4
    summary["calibration"][-1] |= {"student": 0.02, "baseline": 0.021}
    shares = {name: 0.25 for name in ("forward_kl", "a_term_with_a_long_name", "third", "fourth")}
    summary["gradient_shares"] = [{"step": 50 * i, **shares} for i in range(41)]
    summary["student"]["tasks"] = {"a_task_with_a_long_unbroken_name_" * 3: {"value": 0.5, "error": 0.1}}
    return summary


PROBE = """<!doctype html><meta charset=utf-8><style>body{margin:0}</style>
<iframe style="border:0" width=%d height=900 srcdoc="%s"></iframe><pre></pre><script>
onload = () => {
  const page = document.querySelector("iframe").contentDocument, found = [`scroll ${page.documentElement.scrollWidth}`];
  for (const fold of page.querySelectorAll("details")) fold.open = true;
  found.push(`opened ${page.documentElement.scrollWidth}`);
  const table = page.querySelector(".first .scroll");
  if (page.documentElement.clientWidth >= 390 && table.scrollWidth > table.clientWidth) found.push(`table ${table.scrollWidth}`);
  for (const svg of page.querySelectorAll("svg")) {
    const box = svg.getBoundingClientRect(), texts = [...svg.querySelectorAll("text")].map(t => [t.textContent, t.getBoundingClientRect()]);
    const scale = box.width / 360;
    if (scale < 0.999) found.push(`shrunk ${scale}`);
    texts.forEach(([a, r], i) => {
      if (r.left < box.left - 1 || r.right > box.right + 1 || r.top < box.top - 3 || r.bottom > box.bottom + 1) found.push(`outside ${a}`);
      for (const [b, q] of texts.slice(i + 1))
        if (Math.min(r.right, q.right) - Math.max(r.left, q.left) > 1 && Math.min(r.bottom, q.bottom) - Math.max(r.top, q.top) > 4.5 * scale)
          found.push(`overlap ${a} / ${b}`);
    });
  }
  document.querySelector("pre").textContent = found.join("\\n");
};</script>"""


@pytest.mark.slow
@pytest.mark.parametrize("width", [320, 390, 768, 901, 1100, 1280])
@pytest.mark.parametrize("summary", [tutor, crowded], ids=["whole", "crowded"])
def test_nothing_overflows_or_overlaps_in_a_browser(tmp_path: Path, width: int, summary: Any):
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs chromium, which is not installed")
    page = render(summary(), RECIPE, records(), PLAN, ENVIRONMENT, said())
    (tmp_path / "probe.html").write_text(PROBE % (width, html.escape(page)), encoding="utf-8")
    flags = "--headless --no-sandbox --disable-gpu --hide-scrollbars --no-first-run --window-size=1400,1000"
    quiet = "--disable-background-networking --disable-component-update --disable-sync"
    profile, page_url = f"--user-data-dir={tmp_path / 'profile'}", f"file://{tmp_path / 'probe.html'}"
    command = [chromium, *flags.split(), *quiet.split(), profile, "--dump-dom", page_url]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stdout
    report = html.unescape(dom.rpartition("<pre>")[2].partition("</pre>")[0]).split("\n")
    assert report == [f"scroll {width}", f"opened {width}"]


def test_the_verdict_pairs_the_arms_over_documents_where_it_can() -> None:
    arms = {name: {"top1": top1, "top1_error": 0.02} for name, top1 in (("student", 0.55), ("baseline", 0.496), ("start", 0.41))}
    assert verdict(arms).startswith("The teacher did not help")
    gap = {"top1": 0.054, "top1_error": 0.006}
    assert verdict({**arms, "gaps": {"baseline": gap}}).startswith("The student keeps 55 %")
    assert verdict({**arms, "gaps": {"baseline": {**gap, "top1_error": 0.03}}}).startswith("The teacher did not help")


@pytest.mark.parametrize(
    ("closeness", "unit", "evaluations"),
    [
        ("pitch", "clip", "pitch,speed"),
        ("probe", "clip", "probe,speed"),
        ("samples", "image", "samples"),
        ("agreement", "image", "accuracy,agreement,calibration,speed"),
    ],
)
def test_what_is_worth_measuring_goes_by_what_tells_how_close_a_student_is(closeness: str, unit: str, evaluations: str) -> None:
    assert measure_it({"run": "x", "closeness": closeness, "unit": unit}) == f"`limbeck run x evaluate=[{evaluations}]`"


def test_a_question_that_nothing_was_found_about_is_not_asked() -> None:
    bare = {"run": "rings", "closeness": "samples", "unit": "sample", "student": {"frechet": 1.0}, "teacher": {"frechet": 0.5}}
    page = Page(render(bare, RECIPE, [], PLAN, ENVIRONMENT, None))
    assert "Where does it differ?" not in page.texts["h2"] and len(page.texts["h2"]) == 5
    ids = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    links = {str(a["href"])[1:] for a in page.named("a") if str(a["href"]).startswith("#")}
    assert links and links <= ids
    assert "Where does it differ?" in Page(whole()).texts["h2"]
