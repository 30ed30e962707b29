"""The table of a run's figures, as the terminal prints it and the report shows it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from limbeck.export._verdict import ARMS, alone, arm, closeness, word
from limbeck.text.show import NOT_MEASURED, finite, number, percent, plus_minus, times, visible

MAX_ROWS = 20
"""Rows for tasks, and as many for other metrics; all of them are in `summary.json`."""


class Row(NamedTuple):
    """One figure of all arms, ready to be shown; an empty cell belongs to an arm that the run does not have, `?` was not measured."""

    name: str
    teacher: str
    start: str
    baseline: str
    student: str
    error: str = ""
    """Of the student's figure, as `± 0.3`."""
    times: str = ""
    """The student's figure over the teacher's, as `1.6x`; for speed and size."""
    same: bool = False
    """True where start and baseline are the student itself before and without its training: speed and size."""


def table(summary: Mapping[str, Any]) -> list[Row]:
    """The rows that somebody has measured, closeness first, then speed and size; `header` names the columns."""
    unit = word(summary, "unit", "token")
    rows = [
        figure_row(summary, "Right, %", ("accuracy",), ("accuracy_error",), share=True),
        figure_row(summary, "Right among the five best, %", ("top5_accuracy",), ("top5_accuracy_error",), share=True),
        figure_row(summary, "Top-1 agreement, %", ("top1",), ("top1_error",), share=True),
        figure_row(summary, f"KL to teacher, nats/{unit}", ("kl",), ("kl_error",)),
        figure_row(summary, f"KL to teacher in its own text, nats/{unit}", ("on_policy_kl",), ("on_policy_kl_error",)),
        figure_row(summary, "Gap to the teacher's log-probability, nats/stretch", ("chunk_gap",), ("chunk_gap_error",)),
        figure_row(summary, "Bits per byte, held-out", ("bits_per_byte",), ("bits_per_byte_error",)),
    ]
    unit_word = "row" if unit in ("token", "position") else unit
    if rows[-1] is None and unit == "token":
        rows.append(figure_row(summary, "Perplexity, held-out", ("perplexity",), ("perplexity_error",)))
    compared = summary.get("similarity")
    whose = word(compared, "reference", "teacher") if isinstance(compared, Mapping) else "teacher"
    rows += [
        figure_row(summary, "Bytes that the teacher's tokens cut out alike, %", ("aligned_bytes",), (), share=True),
        figure_row(summary, f"Answers like those of {whose}, ROUGE-L, %", ("rouge_l",), (), share=True),
        figure_row(summary, f"Answers like those of {whose}, by a judge, 1 to 5", ("judged",), ()),
        figure_row(summary, "Says that it is another model, %", ("identity_strict",), (), share=True),
    ]
    for group in ("tasks", "metrics"):
        names = dict.fromkeys(name for x in ARMS if isinstance(arm(summary, x, group), Mapping) for name in arm(summary, x, group))
        for name in list(names)[:MAX_ROWS]:
            unit = next((u for x in ARMS if isinstance(u := arm(summary, x, group, name, "unit"), str) and u), "")
            title = visible(str(name), 60) + (f", {visible(unit, 20)}" if unit else "")
            rows.append(figure_row(summary, title, (group, name, "value"), (group, name, "error")))
    most, disk = largest(summary, "parameters"), ("GB", 1e9) if largest(summary, "disk_bytes") >= 1e8 else ("MB", 1e6)
    word_of, scale = ("billion", 1e9) if most >= 1e9 else ("million", 1e6) if most >= 1e6 else ("thousand", 1e3)
    context = finite(summary.get("memory_context"))
    at = f" at {number(int(context)) if context % 1024 else f'{context / 1024:.0f}k'} context" if context else ""
    rows += [
        size_row(summary, "Decoding, tokens/s", "decode_tokens_per_second", 1.0),
        size_row(summary, "Prefill, tokens/s", "prefill_tokens_per_second", 1.0),
        size_row(summary, f"Forward pass, {unit_word}s/s", "forward_rows_per_second", 1.0),
        size_row(summary, f"Memory{at}, GB", "memory_bytes", 1e9),
        size_row(summary, f"Parameters, {word_of}", "parameters", scale),
        size_row(summary, f"On disk, {disk[0]}", "disk_bytes", disk[1]),
    ]
    return [row for row in rows if row is not None]


def header(summary: Mapping[str, Any]) -> dict[str, str]:
    """The arms of this run in the terminal's order, each with the title of its column."""
    titles = {"teacher": "teacher", "start": "before", "baseline": f"{what} only" if (what := alone(summary)) else "no teacher", "student": "student"}
    always = ("student",) if closeness(summary) is None else ("teacher", "student")
    return {x: title for x, title in titles.items() if x in always or isinstance(summary.get(x), Mapping) and summary[x]}


def cells(summary: Mapping[str, Any], shown: Mapping[str, str]) -> list[str]:
    """What is shown of each arm, empty where the run has no such arm."""
    return [shown[x] if x in header(summary) else "" for x in ARMS]


def figure_row(summary: Mapping[str, Any], title: str, path: tuple[str, ...], error_path: tuple[str, ...], share: bool = False) -> Row | None:
    """Any figure with its error; a share between 0 and 1 in percent. None where no arm but the teacher has it."""
    values = {x: finite(arm(summary, x, *path)) for x in ARMS}
    if all(values[x] is None for x in ARMS[1:]):
        return None
    shown = {x: percent(value, 1).removesuffix(" %") if share else number(value) for x, value in values.items()}
    error, note = finite(arm(summary, "student", *error_path)), ""
    if error and values["student"] is not None:
        scale = 100 if share else 1
        shown["student"], _, note = plus_minus(scale * values["student"], scale * error).partition(" ")
    return Row(title, *cells(summary, shown), error=note)


def largest(summary: Mapping[str, Any], key: str) -> float:
    """The largest figure of any arm; 0 where none was measured."""
    return max((value for x in ARMS if (value := finite(arm(summary, x, key))) is not None), default=0.0)


def size_row(summary: Mapping[str, Any], title: str, key: str, scale: float) -> Row | None:
    """Speed or size, with the student's over the teacher's; the student before and without its training is as fast and as big."""
    values = {x: finite(arm(summary, x, key)) for x in ARMS}
    student, teacher = values["student"], values["teacher"]
    if student is None and teacher is None:
        return None
    own = {x: student if value is None and x in ("start", "baseline") else value for x, value in values.items()}
    shown = {x: NOT_MEASURED if value is None else number(value / scale) for x, value in own.items()}
    ratio = times(student / teacher) if student and teacher else ""
    return Row(title, *cells(summary, shown), times=ratio, same=shown["start"] == shown["baseline"] == shown["student"])
