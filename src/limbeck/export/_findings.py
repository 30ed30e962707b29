"""Titles of plots: each is a finding chosen by a rule with a threshold, or neutral where no rule holds."""

from collections.abc import Mapping, Sequence
from typing import Any

from limbeck.export._verdict import STANDARD_ERRORS, weakest, word
from limbeck.text.show import finite, number, percent, size, times, visible

FALLING = 0.05
"""KL still falls if it lost more than this share in the last quarter of the steps; it rests from where it is this close to its end."""
RISEN = 0.05
"""KL rose again if it ends more than this share above its lowest point."""
POINT = 0.01
"""Calibration errors of student and teacher that lie no further apart are called equal."""
SURE, KEPT = 0.9, 0.9
"""The teacher is sure from this probability on; a student that agrees less often than `KEPT` there differs where the teacher is sure."""
HESITATES = 0.10
"""Agreement that is lower by this where the teacher gives its choice less than one half."""
FASTER, EVEN = 1.05, 1.10
"""A ratio of speeds counts from `FASTER` on; ratios no further apart than `EVEN` are one number."""
LESS = 0.05
"""Memory counts as less or more from this share on."""
IDLE = 0.01
"""A term of the objective is idle below this share of the gradient."""

Points = Sequence[tuple[float, float]]


def trend(points: Points) -> tuple[str, float]:
    """`falling`, `rest` or `risen` with the step from which it is so; nothing where no rule holds."""
    if len(points) < 3:
        return "", 0.0
    (last, end), low = points[-1], min(value for _, value in points)
    if end > low * (1 + RISEN) and end > 0:
        return "risen", next(step for step, value in points if value == low)
    before = [value for step, value in points if step <= 0.75 * last]
    if before and end < before[-1] * (1 - FALLING):
        return "falling", last
    start = next(step for step, value in points if value <= end * (1 + FALLING))
    return ("rest", start) if start <= 0.75 * last else ("", 0.0)


def while_training(student: Points, baseline: Points, alone: str) -> str:
    """What the two curves of held-out KL say."""
    (taught, step), (other, at) = trend(student), trend(baseline)
    first = {
        "falling": "The teacher is still teaching at the last step",
        "rest": f"The student stopped coming closer at step {number(int(step))}",
        "risen": f"The student came no closer after step {number(int(step))}, but moved away again",
    }.get(taught)
    second = {
        "falling": f"{alone} still helps too",
        "rest": f"{alone} stopped helping at {number(int(at))}",
        "risen": f"{alone} led away after {number(int(at))}",
    }.get(other)
    if first and second:
        return f"{first}; {second}"
    return first or (second and second[0].upper() + second[1:]) or "KL to the teacher while training"


def calibration(teacher: float | None, student: float | None, bins: Sequence[Mapping[str, Any]]) -> str:
    """Whether the student's stated probabilities are as close to what happens as the teacher's; errors are shares."""
    if teacher is None or student is None:
        return "Stated probability against how often it is right"
    if abs(student - teacher) <= POINT + 1e-12:
        return "Its doubt is as honest as the teacher's"
    if student < teacher:
        return f"Its doubt is more honest than the teacher's: off by {number(100 * student, 2)} points, the teacher's by {number(100 * teacher, 2)}"
    gaps = [gap for x in bins if (gap := finite(x.get("student"))) is not None]
    side = "More sure than it is right" if sum(gaps) < 0 else "Less sure than it is right" if gaps else "Its doubt is less honest than the teacher's"
    return f"{side}: off by {number(100 * student, 2)} points, the teacher by {number(100 * teacher, 2)}"


def certainty(bins: Sequence[Mapping[str, Any]]) -> str:
    """Where the student differs: where the teacher hesitates, or also where it is sure. Bins with low, share, student."""
    sure = mean([x for x in bins if x["low"] >= SURE - 1e-9])
    if sure is not None and sure < KEPT:
        return f"It differs even where the teacher is sure: {percent(sure)} agreement"
    unsure, rest = mean([x for x in bins if x["low"] < 0.5 - 1e-9]), mean([x for x in bins if x["low"] >= 0.5 - 1e-9])
    if unsure is not None and rest is not None and rest - unsure >= HESITATES - 1e-9:
        return "It differs where the teacher itself hesitates"
    return "Agreement by the teacher's certainty"


def mean(bins: Sequence[Mapping[str, Any]]) -> float | None:
    """Agreement over some bins, by their shares of the predictions."""
    total = sum(finite(x.get("share")) or 0.0 for x in bins)
    return sum((finite(x.get("share")) or 0.0) * x["student"] for x in bins) / total if total > 0 else None


def kinds(summary: Mapping[str, Any], slices: Sequence[Mapping[str, Any]], overall: float | None) -> str:
    """The weakest kind of text, if it lies below the whole by more than its error."""
    worst = min(slices, key=lambda x: x["student"])
    error = finite(worst.get("error")) or 0.0
    if overall is not None and overall - worst["student"] > STANDARD_ERRORS * error and weakest(summary):
        return f"Weakest on {word(worst, 'name')}: {percent(worst['student'])}"
    return "Agreement by kind of text"


def speed(contexts: Points) -> str:
    """How much faster the student decodes; points are (tokens of context, teacher's time over the student's)."""
    ratios = [ratio for _, ratio in contexts]
    low, high = min(ratios), max(ratios)
    everywhere = " at every context length" if len(ratios) > 1 else f" at {number(int(contexts[0][0]))} tokens of context"
    if 1 / FASTER < low and high < FASTER:
        return f"As fast as the teacher{everywhere}"
    if low >= FASTER:
        where = max(contexts, key=lambda x: x[1])[0]
        if high <= EVEN * low:
            return f"{times(low)} faster{everywhere}"
        return f"{times(low)} to {times(high)} faster, most at {number(int(where))} tokens"
    if high <= 1 / FASTER:
        return f"Slower than the teacher{everywhere}: {times(low)}" + (f" to {times(high)}" if high > EVEN * low else "") + " its speed"
    return "Decoding time by context"


def memory(teacher: float, student: float) -> str:
    """What serving the student saves; bytes."""
    if abs(student - teacher) < LESS * teacher:
        return "As much memory as the teacher"
    return f"{size(abs(teacher - student))} {'less' if student < teacher else 'more'} to serve"


def runs(this: tuple[str, float, float] | None, others: Sequence[tuple[str, float, float]]) -> str:
    """What the next faster run costs in agreement; runs are (name, times the teacher's speed, agreement as a share)."""
    faster = sorted((x for x in others if this and x[1] > FASTER * this[1] and x[2] < this[2]), key=lambda x: x[1])
    if not this or not faster:
        return "Agreement against speed"
    name, pace, agreement = faster[0]
    return f"{visible(name, 40)}: {times(pace / this[1])} the speed of this run for {number(100 * (this[2] - agreement), 2)} points less"


def pull(terms: Mapping[str, Points]) -> str:
    """Whether every term of the objective moves the student; shares of the gradient, over the last quarter of the steps."""
    idle = []
    for name, points in terms.items():
        late = [share for step, share in points if step >= 0.75 * points[-1][0]]
        if sum(late) / len(late) < IDLE:
            idle.append(name)
    if idle:
        return f"{' and '.join(idle)} hardly pull{'s' if len(idle) == 1 else ''}: below {percent(IDLE)} of the gradient"
    return f"{'Both' if len(terms) == 2 else f'All {len(terms)}'} terms pull; none is idle"
