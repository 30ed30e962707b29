"""Words of two texts beside each other."""

import re
import unicodedata
from collections.abc import Sequence

INSIDE = re.compile(r"(?<=\w)['’](?=\w)")
"""An apostrophe within a word: what stands around it is one word."""


def normalised(text: str) -> str:
    """Lower case, without punctuation and symbols; digits stay digits, `Mr.` stays `mr`."""
    text = INSIDE.sub("", unicodedata.normalize("NFKC", text).casefold())
    return " ".join("".join(" " if unicodedata.category(letter)[0] in "PSZC" else letter for letter in text).split())


def edits(one: Sequence[str], other: Sequence[str]) -> int:
    """The fewest entries that are put in, taken away or replaced to make one sequence of the other."""
    before = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        now = [i]
        for j, b in enumerate(other, 1):
            now.append(min(before[j] + 1, now[j - 1] + 1, before[j - 1] + (a != b)))
        before = now
    return before[-1]
