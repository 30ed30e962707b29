"""How alike two texts are, without a judge: each measure is 1 for equal texts, and 0 where nothing is shared."""

import re
from collections.abc import Sequence

GRAM = 4
"""Characters of a gram."""
ALONE = "\u3040-\u30ff\u3400-\u9fff"
"""Characters that stand for a word or a part of one: Japanese and Chinese are written without spaces."""
WORD = re.compile(rf"[{ALONE}]|[^\W_{ALONE}]+")
FIRST = re.compile(r"\w+|[^\w\s]")


def ngram_jaccard(a: str, b: str) -> float:
    """Shared 4-grams of characters over all of both: |A and B| / |A or B|; a shorter text is one gram."""
    grams = [{text[i : i + GRAM] for i in range(max(len(text) - GRAM + 1, 1))} for text in (a, b)]
    return len(grams[0] & grams[1]) / len(grams[0] | grams[1])


def rouge_l(a: str, b: str) -> float:
    """F-measure of the longest common subsequence of words, in lower case and without marks: 2 LCS / (words of both)."""
    if a == b:
        return 1.0
    one, other = (WORD.findall(text.lower()) for text in (a, b))
    return 2 * common(one, other) / max(len(one) + len(other), 1)


def first_token(a: str, b: str) -> float:
    """Whether both begin with the same word or mark, whatever the tokenizers."""
    one, other = (FIRST.search(text) for text in (a, b))
    return float((one and one[0]) == (other and other[0]))


def common(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence: a whole row of the usual table in the bits of one number."""
    places: dict[str, int] = {}
    for i, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << i
    every = row = (1 << len(a)) - 1
    for word in b:
        same = row & places.get(word, 0)
        row = (row + same | row - same) & every
    return len(a) - row.bit_count()


MEASURES = {"ngram_jaccard": ngram_jaccard, "rouge_l": rouge_l, "first_token": first_token}
