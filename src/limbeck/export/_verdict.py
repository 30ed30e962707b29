"""The result of a run in one sentence and a list of doubts: the same words in terminal, report and model card."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from limbeck.text.show import duration, finite, number, percent, plus_minus, times, visible

ARMS = ("teacher", "start", "baseline", "student")
TEXT_UNITS = ("token", "byte", "character", "word", "chunk")
SHARES = ("top1", "right")
"""Figures that are shown in percent."""
STANDARD_ERRORS = 2.0
"""Two figures are told apart if they lie further apart than this many standard errors of their difference."""

LEADS = {
    "no_help": "The teacher did not help: the",
    "behind": "The teacher did not help: the",
    "worse": "Worse than at the start: the",
    "unmoved": "Training changed nothing that could be measured: the",
}


class Measure(NamedTuple):
    """The figure by which a run is judged: what it is called, and what each arm reached."""

    name: str
    values: dict[str, float]
    errors: dict[str, float]
    unit: str
    sign: int
    """1 where more is better, -1 where less is."""
    paired: Mapping[str, float] = {}
    """Standard error of the student's difference from an arm, over documents that both have seen; where it is not known, errors are added up."""

    def told_apart(self, other: str) -> int:
        """1 if the student is ahead of another arm by more than the error, -1 if behind, 0 if they cannot be told apart."""
        ahead = self.sign * (self.values["student"] - self.values[other])
        margin = STANDARD_ERRORS * self.paired.get(other, math.hypot(self.errors["student"], self.errors[other]))
        return (ahead > margin) - (ahead < -margin)


def entries(record: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    """The mappings in a list of the summary; empty where there is none."""
    found = record.get(key)
    return [x for x in found if isinstance(x, Mapping)] if isinstance(found, Sequence) and not isinstance(found, str) else []


def arm(summary: Mapping[str, Any], name: str, *path: str) -> Any:
    """What the summary says of an arm, or None; the teacher agrees with itself by definition."""
    place: Any = summary.get(name)
    for key in path:
        place = place.get(key) if isinstance(place, Mapping) else None
    return {"top1": 1.0, "kl": 0.0, "chunk_gap": 0.0}.get(path[0]) if place is None and name == "teacher" else place


def word(summary: Mapping[str, Any], key: str, default: str = "") -> str:
    """A name from the summary, fit to be shown."""
    found = summary.get(key)
    return visible(found, 80).replace("`", "'") if isinstance(found, str) and found else default


def sources(summary: Mapping[str, Any]) -> str:
    """What errors are over, in the plural: where one prediction is a piece of something larger, that."""
    unit = word(summary, "unit", "token")
    return word(summary, "sources") or {"token": "documents", "position": "documents", "candidate": "queries"}.get(unit, f"{unit}s")


def of_text(summary: Mapping[str, Any]) -> bool:
    """Whether rows are text and nothing else; a model that cannot write without an image learns from labels."""
    return word(summary, "unit", "token") in TEXT_UNITS and summary.get("writes") is not False


def text_only(summary: Mapping[str, Any]) -> bool:
    """Whether the baseline learns from text alone; of any other it is only said that it has no teacher."""
    name = arm(summary, "baseline", "name")
    return of_text(summary) and (not isinstance(name, str) or "text" in name)


def alone(summary: Mapping[str, Any]) -> str:
    """What the baseline learns from, in place of the teacher: text, or labels; nothing where that is not known."""
    name = arm(summary, "baseline", "name")
    return "text" if text_only(summary) else "labels" if isinstance(name, str) and "label" in name else ""


def other_baseline(summary: Mapping[str, Any]) -> str:
    """The baseline that this run could have had."""
    return "text_only" if of_text(summary) or word(summary, "unit") == "position" else "labels_only"


def closeness(summary: Mapping[str, Any]) -> str | None:
    """The evaluator that tells how close this student is to its teacher; None where there is no teacher."""
    return None if "closeness" in summary and summary["closeness"] is None else word(summary, "closeness", "agreement")


def measure(summary: Mapping[str, Any]) -> Measure | None:
    """The figure by which this run is judged: agreement, else KL, else the gap between tokenizers, else the first metric the student has,
    and without a teacher how well text is predicted; None if there is none."""
    first = next(iter(arm(summary, "student", "metrics") or {}), "") if isinstance(arm(summary, "student", "metrics"), Mapping) else ""
    less = arm(summary, "student", "metrics", first, "lower_is_better") is True
    unit = arm(summary, "student", "metrics", first, "unit")
    figures = [("right", ("accuracy",), 1, ""), ("top1", ("top1",), 1, ""), ("kl", ("kl",), -1, ""), ("chunk_gap", ("chunk_gap",), -1, "")]
    figures += [(first, ("metrics", first, "value"), -1 if less else 1, unit)]
    figures += [("bits_per_byte", ("bits_per_byte",), -1, "")] if closeness(summary) is None else []
    for name, path, sign, of in figures:
        errors = (*path[:-1], "error") if len(path) > 1 else (f"{path[0]}_error",)
        values = {x: value for x in ARMS if (value := finite(arm(summary, x, *path))) is not None}
        if "student" in values:
            paired = ("accuracy_gaps", "accuracy_error") if name == "right" else ("gaps", f"{name}_error")
            gaps = {x: error for x in ARMS if (error := finite(arm(summary, paired[0], x, paired[1]))) is not None}
            return Measure(name, values, {x: finite(arm(summary, x, *errors)) or 0.0 for x in ARMS}, of if isinstance(of, str) else "", sign, gaps)
    return None


def outcome(found: Measure | None) -> str:
    """`unmeasured`, `worse` or `unmoved` against the start, `behind` or `no_help` against the baseline, `alone` without one, else `clear`."""
    if found is None:
        return "unmeasured"
    if "start" in found.values and (moved := found.told_apart("start")) < 1:
        return "worse" if moved < 0 else "unmoved"
    if "baseline" not in found.values:
        return "alone"
    return {1: "clear", 0: "no_help", -1: "behind"}[found.told_apart("baseline")]


def shown(found: Measure, arms: Sequence[str], with_error: bool) -> dict[str, str]:
    """The figures of some arms, with as many digits as it takes to tell them apart."""
    there = {x: found.values[x] for x in arms if x in found.values}
    if found.name in SHARES and with_error and found.errors["student"]:
        return {x: f"{plus_minus(100 * value, 100 * found.errors[x])} %" for x, value in there.items()}
    out: dict[str, str] = {}
    for digits in range(3):
        out = {x: percent(value, digits) if found.name in SHARES else number(value, 3 + digits) for x, value in there.items()}
        if len(set(out.values())) == len(set(there.values())):
            break
    if found.name in SHARES:
        return out
    unit = {"%": " %", "": ""}.get(found.unit, f" {visible(found.unit, 20)}")
    return {x: (plus_minus(found.values[x], found.errors[x]) if with_error and found.errors[x] else text) + unit for x, text in out.items()}


def phrase(summary: Mapping[str, Any], found: Measure) -> tuple[str, list[tuple[str, str]]]:
    """The verb before the student's figure, and what stands behind it."""
    verb, of, whose = "reaches", f" in {visible(found.name, 40)}", "the teacher's"
    if found.name == "right":
        teacher = f" (the teacher {shown(found, ('teacher',), False)['teacher']})" if "teacher" in found.values else ""
        verb, of = "gets", f" of the held-out {word(summary, 'unit', 'token')}s right{teacher}"
    elif found.name == "top1":
        verb, of, whose = "keeps", " of the teacher's top-1 choices", "its"
    elif found.name == "kl":
        of, whose = f" nats per {word(summary, 'unit', 'token')} in KL to the teacher", "its"
    elif found.name == "chunk_gap":
        verb, of, whose = "comes within", " nats of the teacher's log-probability of a stretch of text", "its"
    elif found.name == "bits_per_byte":
        of = " bits per byte of held-out text"
    elif "teacher" in found.values:
        of += f" (the teacher {shown(found, ('teacher',), False)['teacher']})"
    for pace, what in (("decode_tokens_per_second", "decoding speed"), ("forward_rows_per_second", "speed")):
        student, teacher = (finite(arm(summary, x, pace)) for x in ("student", "teacher"))
        if student and teacher:
            return verb, [("", f"{of} at "), ("student", times(student / teacher)), ("", f" {whose} {what}")]
    return verb, [("", of)]


def parts(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The verdict in pieces; the figure of an arm is marked with its name, all else with an empty one."""
    found, run = measure(summary), word(summary, "run", "RUN")
    result = outcome(found)
    by = closeness(summary)
    if found is None:
        what = "How close the student comes to the teacher" if by else "What the student can do"
        return [("", f"{what} was not measured (`limbeck run {run} evaluate=[{by or 'perplexity'}]`).")]
    figure = shown(found, ("student", "baseline", "start"), result in ("no_help", "unmoved"))
    verb, of = phrase(summary, found)
    out = [("", f"{LEADS.get(result, 'The')} student {verb} "), ("student", figure["student"]), *of]
    if result in ("worse", "unmoved") or by is None and "start" in figure:
        out += [("", ", "), ("start", figure["start"]), ("", " before training")]
    without = f"on {what} alone" if (what := alone(summary)) else "without the teacher"
    same = f"the same student trained {without} for as many steps"
    if "baseline" in figure:
        join = {"no_help": f", and {same} {verb} ", "behind": f", and {same} is ahead with "}.get(result, f"; {same} {verb} ")
        return [*out, ("", join), ("baseline", figure["baseline"]), ("", ".")]
    if by in (None, "samples") or word(summary, "unit") == "clip":  # a denoiser without a teacher is the teacher, an encoder has nothing to learn
        return [*out, ("", ".")]
    against = "text alone" if text_only(summary) else "the same student without the teacher"
    seconds = finite(summary.get("baseline_seconds"))
    cost = f"{duration(seconds)}: " if seconds else ""
    return [*out, ("", f"; not compared with {against} ({cost}`limbeck run {run} baseline=[{other_baseline(summary)}]`).")]


def verdict(summary: Mapping[str, Any]) -> str:
    """The result in one sentence, made of the summary's figures by one template an outcome; plain text, commands in backticks."""
    return "".join(text for _, text in parts(summary))


def weakest(summary: Mapping[str, Any]) -> str:
    """`Weakest on code: 84 % (3 % of the held-out tokens).`; empty where fewer than two kinds of text, or classes, were measured."""
    slices = [x for x in entries(summary, "classes") or entries(summary, "slices") if finite(x.get("student")) is not None and word(x, "name")]
    if len(slices) < 2:
        return ""
    worst = min(slices, key=lambda x: float(x["student"]))
    share = finite(worst.get("share"))
    of = f" ({percent(share)} of the held-out {word(summary, 'unit', 'token')}s)" if share else ""
    return f"Weakest on {word(worst, 'name')}: {percent(worst['student'])}{of}."


def unmeasured(summary: Mapping[str, Any]) -> list[str]:
    """A line for each thing that nobody has measured, with the command that does."""
    lines = []
    for entry in entries(summary, "not_measured"):
        what, command = (visible(entry[key], 300).replace("`", "'") if isinstance(entry.get(key), str) else "" for key in ("what", "command"))
        if what:
            lines.append(f"Not measured: {what.rstrip('.')}." + (f" `{command}`" if command else ""))
    return lines
