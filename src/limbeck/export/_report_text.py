"""Sentences of the report beside the plots, each made of figures that were measured; commands stand in backticks."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from limbeck.export import _findings as findings
from limbeck.export._report_data import Curves
from limbeck.export._verdict import alone, arm, closeness, entries, measure, other_baseline, sources, word
from limbeck.text.show import duration, finite, number, percent, times

MONTHS = "January February March April May June July August September October November December".split()
EVALUATIONS = {"image": "accuracy,agreement,calibration,speed", "candidate": "ranking,speed", "position": "probe,speed", "clip": "probe,speed"}
"""What is worth measuring, by what one prediction is; of text more."""
BY_CLOSENESS = {"samples": "samples", "pitch": "pitch,speed", "aligned_bytes": "perplexity,aligned_bytes,speed"}
"""The same, where what tells how close a student is says more."""
APART = {
    "": "There is no teacher to differ from.",
    "aligned_bytes": "Not compared token by token: teacher and student read with different tokenizers.",
}
"""Why nothing is compared one by one, by what tells how close a student is."""
FIGURE = re.compile(r"(?<=\d) (?=%|GB|MB|h\b|min\b|s\b)|(?<=±) | (?=±)")
FIGURES = {"student": (Markup("<b>"), Markup("</b>")), "baseline": (Markup("<em>"), Markup("</em>"))}
TIMES = re.compile(r"(?<=\d)x\b")


def typeset(text: str) -> Markup:
    """One of our sentences as HTML: commands as code, no line break within a figure, a true times sign and apostrophe."""
    out = Markup()
    for i, piece in enumerate(text.split("`")):
        if i % 2:
            out += Markup("<code>") + Markup(",<wbr>").join(piece.split(",")) + Markup("</code>")
        else:
            piece = TIMES.sub("×", FIGURE.sub("\u00a0", piece)).replace("'", "’")
            out += Markup('<span class="nb">top-1</span>').join(Markup.escape(x) for x in piece.split("top-1"))
    return out


def headline(pieces: Sequence[tuple[str, str]]) -> Markup:
    """The verdict with the figures of student and baseline in their colours."""
    return Markup().join(FIGURES.get(of, ("", ""))[0] + typeset(text) + FIGURES.get(of, ("", ""))[1] for of, text in pieces)


def measure_it(summary: Mapping[str, Any]) -> str:
    """The command that measures what this run left out."""
    usual = EVALUATIONS.get(word(summary, "unit", "token"), "agreement,perplexity,calibration,speed")
    by = closeness(summary)
    some = BY_CLOSENESS.get(by or "", usual if by else usual.replace("agreement,", ""))
    some = f"{by or 'perplexity'},transcription,speed" if word(summary, "sources") == "clips" else some
    return f"`limbeck run {word(summary, 'run', 'RUN')} evaluate=[{some}]`"


def kick(summary: Mapping[str, Any]) -> str:
    """What this is, when, and on what."""
    day = re.fullmatch(r"(\d{4})-(\d{2})-(\d{2})", word(summary, "date"))
    date = f"{int(day[3])} {MONTHS[int(day[2]) - 1]} {day[1]}" if day and 1 <= int(day[2]) <= 12 else word(summary, "date")
    seconds, machine = finite(summary.get("wall_seconds")), word(summary, "machine")
    where = " on ".join(x for x in (duration(seconds) if seconds is not None else "", machine) if x)
    return " · ".join(x for x in ("limbeck report", word(summary, "run"), date, where) if x)


def close(summary: Mapping[str, Any], found: Curves) -> list[str]:
    """How far KL fell, whether more steps may help, and on what it was measured."""
    unit, run, lines = word(summary, "unit", "token"), word(summary, "run", "RUN"), []
    start, end = (finite(arm(summary, x, "kl")) for x in ("start", "student"))
    points = found.get(("held_out_kl", "student"), [])
    if end is not None:
        moved = f"KL {'fell' if end < start else 'rose'} from {number(start)} to {number(end)}" if start is not None else f"KL is {number(end)}"
        kind, at = findings.trend(points)
        tail = {"falling": " and was still falling: more steps may bring it closer.", "rest": f" and came to rest at step {number(int(at))}."}
        line = f"{moved} nats per {unit}{tail.get(kind, '.')}"
        steps = finite(summary.get("steps"))
        if kind == "falling" and steps and summary.get("num_stages", 1) == 1:
            line += f" `limbeck run {run} train.0.steps={round(1.5 * steps)}`"
        lines.append(line)
    elif measure(summary) is None:
        lines.append(f"Agreement and KL were not measured. {measure_it(summary)}")
    if finite(arm(summary, "student", "calibration_error")) is None and not entries(summary, "calibration") and end is not None:
        lines.append(f"Calibration was not measured. {measure_it(summary)}")
    held = summary.get("held_out")
    if isinstance(held, Mapping) and finite(held.get("documents")):
        documents, targets, dropped = (finite(held.get(x)) for x in ("documents", "targets", "overlap_dropped"))
        whole = sources(summary)
        line = f"Measured on {number(int(documents or 0))} held-out {whole}"
        line += (f", {number(int(targets))} {unit}s" if targets and whole != f"{unit}s" else "") + "."
        line = f"Measured against {number(int(targets or 0))} held-out {unit}s." if closeness(summary) == "samples" else line
        line += f" ± is the standard error over {whole}." if has_error(summary) else ""
        lines.append(line + (f" {number(int(dropped))} that overlap the training data were left out." if dropped else ""))
    return lines


def has_error(summary: Mapping[str, Any]) -> bool:
    """Whether any figure of the student carries an error."""
    own = any(finite(arm(summary, "student", f"{key}_error")) for key in ("accuracy", "top1", "kl", "bits_per_byte", "perplexity"))
    metrics = arm(summary, "student", "metrics")
    return own or isinstance(metrics, Mapping) and any(finite(arm(summary, "student", "metrics", name, "error")) for name in metrics)


def where(summary: Mapping[str, Any]) -> list[str]:
    """What the student keeps where the teacher is sure."""
    lines = []
    bins = [x for x in entries(summary, "by_certainty") if all(finite(x.get(k)) is not None for k in ("low", "high", "student"))]
    sure = findings.mean([x for x in bins if x["low"] >= findings.SURE - 1e-9])
    if sure is not None:
        line = f"Of the choices that the teacher makes with over {percent(findings.SURE)} certainty, the student keeps {percent(sure, 1)}."
        share = sum(finite(x.get("share")) or 0.0 for x in bins if x["low"] >= findings.SURE - 1e-9)
        lines.append(line + f" These are {percent(share)} of all.")
    if not bins and not entries(summary, "slices"):
        by = closeness(summary)
        if by == "agreement":
            lines.append(f"Not measured by certainty or kind of text. {measure_it(summary)}")
        elif (by or "") in APART and not entries(summary, "rankings"):
            lines.append(APART[by or ""])
    elif finite(arm(summary, "student", "top1")) is not None and "baseline" not in getattr(measure(summary), "values", {}):
        against = f"{what} alone" if (what := alone(summary)) else "the same student without the teacher"
        lines.append(f"Not compared with {against}. `limbeck run {word(summary, 'run', 'RUN')} baseline=[{other_baseline(summary)}]`")
    return lines


def fast(summary: Mapping[str, Any]) -> list[str]:
    """Size and speed of the student against the teacher's."""
    ratios = {}
    for key in ("parameters", "decode_tokens_per_second", "forward_rows_per_second", "memory_bytes", "disk_bytes"):
        student, teacher = (finite(arm(summary, x, key)) for x in ("student", "teacher"))
        ratios[key] = student / teacher if student and teacher else None
    lines = []
    if ratios["parameters"] and ratios["decode_tokens_per_second"]:
        lines.append(f"{percent(ratios['parameters'])} of the parameters, {times(ratios['decode_tokens_per_second'])} the tokens per second.")
    elif ratios["parameters"]:
        lines.append(f"{percent(ratios['parameters'])} of the parameters.")
    for name in ("student", "teacher"):
        low, high = (finite(arm(summary, name, f"decode_{x}")) for x in ("low", "high"))
        if low is not None and high is not None:
            middle = number(arm(summary, name, "decode_tokens_per_second"))
            lines.append(f"Decoding, {name}: {middle} tokens/s; 10 to 90 % of the repeats lie between {number(low)} and {number(high)}.")
    if (faster := finite(arm(summary, "student", "times_faster"))) is not None:
        lines.append(f"Samples in its fewest steps take the student {times(1 / faster)} as long as the teacher takes in many.")
    elif ratios["decode_tokens_per_second"] is None and ratios["forward_rows_per_second"] is None and not entries(summary, "decode_by_context"):
        lines.append(f"Speed was not measured. {measure_it(summary)}")
    if ratios["disk_bytes"]:
        lines.append(f"On disk it takes {percent(ratios['disk_bytes'])} of the teacher's space.")
    return lines


def footer(summary: Mapping[str, Any], num_samples: int | None, others: Mapping[str, int] = {}) -> str:
    """How many held-out texts the file holds, and others by what they are called, and how to have it without."""
    excerpts = len(entries(summary, "worst_tokens")) if num_samples is not None else 0
    every = {"held-out texts": num_samples or 0, **others, "excerpts of held-out text": excerpts}
    said = [f"{number(n)} {what}" for what, n in every.items() if n]
    without = f"; `limbeck evaluate {word(summary, 'run', 'RUN')} --no-samples` writes this page without them" if said else ""
    return f"Holds {' and '.join(said) or 'no held-out text'}{without}. One file, no scripts, no requests."
