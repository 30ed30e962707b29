"""Whether an answer contradicts a fact sheet, by rules: whom it claims to be, or to be made by, in so many words."""

import re
from collections.abc import Iterator, Mapping, Sequence

from limbeck.evaluate._identity_prompts import named, shipped

CONSISTENT, CONTRADICTS, ANOTHER = 0.0, 1.0, 2.0
MADE = r"(?:made|created|developed|trained|built|designed|released|programmed)"
OPENER = re.compile(
    rf"\b(?:I am|I'm|I was|I've been|I have been|I belong to|I come from|I go by|[Mm]y (?:full )?name|[Cc]all me|[Yy]ou are talking to"
    rf"|[Mm]y (?:maker|creator|developer|company|provider)s? (?:is|are)|[Tt]his (?:is|(?:model|assistant) (?:is|was)))\b"
    rf"|^\W*(?:As|By|(?i:{MADE} by))\b|我是|我由|我叫"
)
"""Words after which a name in the same clause is claimed."""
ABOUT_ME = re.compile(rf"\b{MADE} me\b")
NOT = re.compile(
    r"\b(?:not|never|nor|neither|unlike|than|instead|if|whether|like|other|similar|familiar|aware|independent|differ\w*|compar\w*|compet\w*)\b"
    r"|n't\b|不是",
    re.IGNORECASE,
)
"""Words that make a clause something else than a claim."""
FEW = 4
"""An answer of so few words is itself the name that was asked for."""
VALUE = r"((?:[A-Z]|\d+[A-Z])[\w.&-]*(?: [A-Z][\w.&-]*)*)"
FIELDS: Mapping[str, Sequence[re.Pattern[str]]] = {
    "name": (re.compile(rf"\b(?:[Mm]y name is|I am called|I'm called|[Cc]all me) {VALUE}"),),
    "maker": (re.compile(rf"\b(?:I was|I am|I'm|I have been|I've been)\b[^.,;]*?\b{MADE} by {VALUE}"), re.compile(rf"{VALUE} {MADE} me\b")),
    "place": (re.compile(rf"\b(?:based|located|headquartered|founded) in {VALUE}"),),
}
"""Field of a fact sheet -> what says its value."""


def makers(more: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """Maker -> its names and those of its models, as shipped and with further ones."""
    every = {maker: (maker, *names) for maker, names in shipped()["makers"].items()}
    return every | {maker: (*every.get(maker, (maker,)), *names) for maker, names in more.items()}


def foreign(facts: Mapping[str, str], every: Mapping[str, Sequence[str]]) -> list[str]:
    """Names of all makers and models but those of which the fact sheet names any."""
    own = {maker for maker, names in every.items() if any(named(name).search(value) for name in names for value in facts.values())}
    return [name for maker, names in every.items() if maker not in own for name in names]


def clauses(text: str) -> Iterator[str]:
    """Parts of sentences that are no questions."""
    for sentence in re.split(r"(?<=[.!?。！？])\s+|\n+", text.replace("\u2019", "'")):
        if not sentence.rstrip().endswith(("?", "？")):
            yield from re.split(r"[,;:，；]|\s[-\u2013\u2014]\s|\bbut\b|\band\b", sentence)


def claims(clause: str, name: re.Match[str], alone: bool) -> bool:
    """Whether a clause claims a name that stands in it."""
    before, behind = clause[: name.start()], clause[name.end() :]
    return alone or bool(OPENER.search(before)) or bool(ABOUT_ME.search(behind))


def judged(answer: str, facts: Mapping[str, str], others: Sequence[str]) -> tuple[float, str]:
    """Consistent, contradicts, or names another; and the words that say so."""
    alone = len(answer.split()) <= FEW
    told = [clause for clause in clauses(answer) if not NOT.search(clause)]
    for clause in told:
        for other in others:
            if (found := named(other).search(clause)) and claims(clause, found, alone):
                return ANOTHER, clause.strip()
    for field, patterns in FIELDS.items():
        value = facts.get(field, "").casefold()
        for found in (found for clause in told for pattern in patterns for found in pattern.finditer(clause) if value):
            said = found[1].rstrip(".").casefold()
            if said not in value and value not in said:
                return CONTRADICTS, found[0]
    return CONSISTENT, ""
