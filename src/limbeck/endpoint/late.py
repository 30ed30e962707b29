"""llama.cpp's Python server, whose echo pairs tokens with what was predicted after as many tokens of the prompt.

As seen with llama-cpp-python 0.3.36, for a prompt $t_0 \\dots t_{n-1}$ and the model's BOS $b$: it lists $t_0, t_1, \\dots$, or $t_1, t_2, \\dots$ if
$t_0 = b$. The i-th of these comes with the log-probabilities of the token after $t_0 \\dots t_i$, and with that of itself among them. Each b is
then left out with what it came with, and what the first comes with is null. Special tokens, pieces of characters and tokens of more than
32 bytes are shown as nothing. Ids are not taken, `max_tokens: 0` means no limit, and of tokens that are shown alike one entry is left.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from limbeck.endpoint.entries import Scores, beside, by_name, differs, lists
from limbeck.endpoint.vocabulary import Vocabulary, bare


def listed(ids: Sequence[int], bos: int | None) -> dict[int, int]:
    """Place -> the id that is listed there, of those that are not left out."""
    return {i: x for i, x in enumerate(ids[1:] if ids[0] == bos else ids) if x != bos}


def unsaid(ids: Sequence[int], bos: int | None) -> list[int]:
    """Places of a text after which nothing is said, and something follows: what is asked for by itself."""
    said = set(list(listed(ids, bos))[1:])
    return [i for i in range(len(ids) - 1) if i not in said]


def by_late_echo(given: Mapping[str, Any], ids: Sequence[int], vocabulary: Vocabulary, where: str) -> Scores:
    """Entries of an echo: those of the token after each place, as far as they are said."""
    tokens, own, top = lists(given, where)
    places = listed(ids, vocabulary.bos)
    ours = [bare(vocabulary.text(x)) for x in places.values()]
    theirs = [bare(str(token)) or name for token, name in zip(tokens, ours, strict=False)]  # what is not shown may be any
    if theirs != ours:
        differs(ours, theirs, tokens, where)
    entries: list[dict[int, float]] = [{} for _ in ids[1:]]
    for at, (i, x) in list(enumerate(places.items()))[1:]:
        if i < len(entries):
            alone = vocabulary.id(str(tokens[at])) == x
            entries[i] = beside(by_name(top[at], vocabulary, where), own[at], x, alone, i, where)
    return Scores(entries, [])


def by_continuation(given: Mapping[str, Any], ids: Sequence[int], vocabulary: Vocabulary, where: str) -> Scores:
    """Entries of what the server wrote first: those of the token after the whole text."""
    _, _, top = lists(given, where)
    return Scores([*({} for _ in ids[1:]), by_name(top[0], vocabulary, where)], [])
