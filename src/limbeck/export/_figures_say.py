"""What models answer, as tables: how alike the answers are, and whom they say they are."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from limbeck.export._table import header
from limbeck.export._verdict import ARMS, entries, word
from limbeck.text.show import finite, number, percent, visible

MEASURES = {
    "judged": "likeness by a judge, 1 to 5",
    "judged_style": "of style",
    "judged_structure": "of structure",
    "judged_content": "of content",
    "rouge_l": "shared words in the same order (ROUGE-L)",
    "ngram_jaccard": "shared pieces of 4 characters",
    "first_token": "the same first word",
    "js_divergence": "distance of probabilities (JS), bits; 0 is a copy",
}
"""Measure -> what it is called, in the order in which it is told."""
RATES = {
    "loose": "contradicts the facts about it",
    "strict": "claims another maker or its models",
    "hard": "the same, though the question named none",
}
WHO = {"teacher": "the teacher", "student": "the student", "start": "the student before training", "text_only": "the student without the teacher"}
SHARES = frozenset({"rouge_l", "ngram_jaccard", "first_token"})


class Grid(NamedTuple):
    """A table with a finding above it and remarks below."""

    title: str
    note: str
    head: list[str]
    rows: list[list[str]]


def part(summary: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = summary.get(name)
    return found if isinstance(found, Mapping) else {}


def columns(summary: Mapping[str, Any], there: Iterable[str]) -> dict[str, str]:
    """Who was measured, arms first, and the titles of their columns."""
    arms, there = header(summary), list(there)
    return {**{x: arms[x] for x in arms if x in there}, **{x: visible(x, 24) for x in there if x not in ARMS}}


def shown(figure: Any, share: bool, whole: bool = False) -> str:
    """A figure, with its interval if `whole`."""
    value, low, high = (finite(figure.get(key)) if isinstance(figure, Mapping) else None for key in ("value", "low", "high"))
    texts = [percent(x, 1) if share else number(x) for x in (value, low, high)]
    return f"{texts[0]} ({texts[1].removesuffix(' %')} to {texts[2].removesuffix(' %')})" if whole and low is not None else texts[0]


def alike(summary: Mapping[str, Any]) -> Grid | None:
    """How alike the answers are to those of the reference, beside the control's."""
    found = part(summary, "similarity")
    measures = {x["name"]: x for x in entries(found, "measures") if word(x, "name") in MEASURES}
    if not measures:
        return None
    every = dict.fromkeys(k for x in measures.values() for k, v in x.items() if isinstance(v, Mapping) and k != "closer")
    who, main, control = columns(summary, every), word(found, "student"), word(found, "control")
    reference, of_control = word(found, "reference"), columns(summary, ["baseline" if control == "text_only" else control]) if control else {}
    aside = next(iter(of_control.values()), "")
    rows = []
    for name in (name for name in MEASURES if name in measures):
        x, share = measures[name], name in SHARES
        beside = [shown(x.get("closer"), share, True)] if aside else []
        rows.append([MEASURES[name], *(shown(x.get(one), share, one == main) if one in x else "" for one in who), *beside])
    best = next(measures[name] for name in MEASURES if name in measures)
    doubt = "only the last column tells." if aside else "no model that was not distilled was measured."
    note = f"{number(found.get('prompts'))} prompts; in brackets, what holds 95 % over documents."
    note += f" Answers may be alike because the texts or the right answers are the same: {doubt}"
    head = ["", *who.values(), *([f"{who.get(main, main)} closer than {aside}"] if aside else [])]
    return Grid(nearer(best, main, reference, control), note, head, rows)


def nearer(best: Mapping[str, Any], main: str, reference: str, control: str) -> str:
    """What the first measure says."""
    closer = best.get("closer")
    low, high = (finite(closer.get(key)) if isinstance(closer, Mapping) else None for key in ("low", "high"))
    whose = f"{WHO.get(reference, reference)}'s"
    if low is None or high is None:
        return f"Answers beside {whose}"
    ours, theirs = f"The answers of {WHO.get(main, main)} are", f"those of {WHO.get(control, control)}"
    if low > 0:
        return f"{ours} closer to {whose} than {theirs}: it shows whom it learnt from"
    return f"{ours} {'further from' if high < 0 else 'no closer to'} {whose} than {theirs}"


def preference(summary: Mapping[str, Any]) -> Grid | None:
    """How much closer each model is to the first reference than to another one."""
    found = part(summary, "similarity")
    rows = [x for x in entries(found, "preference") if word(x, "name") in MEASURES]
    if not rows:
        return None
    every = dict.fromkeys(k for x in rows for k, v in x.items() if isinstance(v, Mapping))
    who = columns(summary, every)
    each = [(x, [shown(x.get(one), x["name"] in SHARES, True) if one in x else "" for one in who]) for x in rows]
    cells = [[MEASURES[x["name"]], word(x, "reference"), *figures] for x, figures in each]
    first = word(found, "reference")
    title = f"How much closer to {WHO.get(first, first)} than to others"
    return Grid(title, "Above 0: closer to the first; in brackets, what holds 95 % over documents.", ["", "than to", *who.values()], cells)


def named(summary: Mapping[str, Any]) -> Grid | None:
    """Who says that it is another model."""
    found = part(summary, "identity")
    there = {x: found[x] for x in found if isinstance(found[x], Mapping) and "strict" in found[x]}
    if not there:
        return None
    who, judge = columns(summary, there), part(found, "judge")
    rows = [[title, *(shown(there[x].get(rate), True, x == "student") for x in who)] for rate, title in RATES.items()]
    rows.append(["answers that were judged", *(number(there[x].get("judged")) for x in who)])
    by = f"by {word(judge, 'model')}" if judge else "by rules, which find what is claimed in plain English"
    note = f"{number(found.get('prompts'))} questions, of which {number(found.get('cues'))} name another model; judged {by}."
    main = there.get("student", next(iter(there.values())))
    rate = finite(part(main, "strict").get("value"))
    title = f"Says that it is another model: {percent(rate, 1)} of the answers" if rate else "Never says that it is another model"
    return Grid(title, f"{note} Shares are of the answers that were judged.", ["", *who.values()], rows)


def judges(summary: Mapping[str, Any]) -> list[str]:
    """How far the judges can be relied on."""
    lines = []
    for name in ("similarity", "identity"):
        judge = part(part(summary, name), "judge")
        followed, traps = finite(judge.get("followed")), number(judge.get("traps"))
        if followed:
            does = f"did what the text in front of it asked for in {number(followed)} of {traps} traps"
            lines.append(f"The judge {word(judge, 'model')} {does}: nothing that it says is told.")
        elif finite(judge.get("asked")):
            none, gap = finite(judge.get("no_verdict")) or 0, finite(judge.get("order_gap"))
            why = ", ".join(f"{number(num)} {visible(str(reason), 40)}" for reason, num in part(judge, "reasons").items())
            left = f"; {number(none)} without a verdict count nowhere ({why})" if none else ""
            moves = f" The other order moves a mark by {number(gap, 2)}." if gap is not None else ""
            lines.append(f"{word(judge, 'model')} was asked about {number(judge.get('asked'))} pairs in both orders{left}.{moves}")
    return lines
