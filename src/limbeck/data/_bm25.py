"""A first search by words: BM25 over a collection that fits into memory."""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping

from limbeck.data._overlap import WORD
from limbeck.data._ranked import Hit

SATURATION, LENGTH = 1.2, 0.75
"""k1 and b, as they are usually set."""


def search(documents: Mapping[str, str], queries: Mapping[str, str], depth: int) -> dict[str, list[Hit]]:
    r"""The first hits of each query; what shares no word with it is no hit, and equal scores are ordered by document id.

    $\sum_{w \in q} \log\left(1 + \frac{N - n_w + 0.5}{n_w + 0.5}\right) \frac{f_w (k_1 + 1)}{f_w + k_1 (1 - b + b |d| / \overline{|d|})}$
    (Robertson and Zaragoza, The Probabilistic Relevance Framework, 2009), with w counted as often as it is asked for.
    """
    words = {name: WORD.findall(text.casefold()) for name, text in documents.items()}
    mean = sum(map(len, words.values())) / max(len(words), 1)
    places: dict[str, list[tuple[str, float]]] = defaultdict(list)
    for name, found in words.items():
        rest = SATURATION * (1 - LENGTH + LENGTH * len(found) / max(mean, 1e-9))
        for word, times in Counter(found).items():
            places[word].append((name, times * (SATURATION + 1) / (times + rest)))
    out = {}
    for query, text in queries.items():
        scores: Counter[str] = Counter()
        for word in WORD.findall(text.casefold()):
            there = places.get(word, ())
            weight = math.log(1 + (len(words) - len(there) + 0.5) / (len(there) + 0.5))
            for name, value in there:
                scores[name] += weight * value  # type: ignore[assignment]
        best = sorted(scores.items(), key=lambda item: (-item[1], item[0]))[:depth]
        out[query] = [Hit(name, rank, float(score)) for rank, (name, score) in enumerate(best, 1)]
    return out
