"""What every form of answer comes to: entries of each token, checked, of the tokens that were sent and no others."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from limbeck.endpoint.vocabulary import Vocabulary
from limbeck.errors import Failed

SAME = 1e-3
"""Two statements about one log-probability may lie so far apart."""


class Scores(NamedTuple):
    """What a server says about the tokens of one text."""

    entries: list[dict[int, float]]
    """Of each token but the first; empty where nothing is said."""
    names: list[tuple[int, str]]
    """What it calls some ids."""


class Unsaid(Exception):
    """The answer does not say what was asked for, in this form."""


def lists(given: Mapping[str, Any], where: str) -> tuple[list[Any], list[Any], list[Any]]:
    """Tokens of a completion, what is said of each, and the best entries beside it."""
    tokens, own, top = given["tokens"], given["token_logprobs"], given["top_logprobs"]
    if len({len(tokens), len(own), len(top), len(given.get("text_offset") or tokens)}) != 1:
        raise Failed("answer", where, "one entry a token", "lists of different lengths", "look at the server's version")
    return tokens, own, top


def by_name(given: Mapping[str, Any], vocabulary: Vocabulary, where: str) -> dict[int, float]:
    """Entries whose text stands for one id; those of others are mass of the tail."""
    return {i: number(value, where) for name, value in given.items() if (i := vocabulary.id(name)) is not None}


def beside(one: Mapping[int, float], own: Any, i: int, alone: bool, at: int, where: str) -> dict[int, float]:
    """Entries with that of the token they stand beside, which is one of the best or no better than those.

    Args:
        own: what is said of that token, id `i`.
        alone: its name stands for no other id.
        at: its place, for the error.
    """
    stands, lowest = number(own, where), min(one.values(), default=0.0)
    if abs(one.get(i, stands) - stands) > SAME or alone and i not in one and stands > lowest + SAME:
        raise Failed("answer", where, "entries of the token they stand beside", f"others, at token {at}", "look at the server's version")
    return {**one, i: stands}


def differs(ours: list[str], theirs: list[str], tokens: list[Any], where: str) -> None:
    """Refuses tokens that are not those that were sent; what the server writes after them is none of it."""
    num = len(ours)
    if theirs[1 : num + 1] == ours or [theirs[0], *ours] == theirs[: num + 1]:
        raise other_tokens(where, num, f"{num + 1:,}: it puts {ascii(str(tokens[0])[:40])} in front")
    if len(theirs) < num:
        if len(theirs) <= 1 and num > 2:
            raise Unsaid  # only what it wrote itself: nothing is echoed
        raise other_tokens(where, num, f"{len(theirs):,} tokens")
    at = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), num)
    got = f"{len(theirs):,} tokens" if at == num else f"other tokens, first {ascii(theirs[at][:40])} in place of {ascii(ours[at][:40])}, token {at}"
    raise other_tokens(where, num, got)


def other_tokens(where: str, num: int, got: str) -> Failed:
    no_bos = "without automatic BOS (llama.cpp: --kv_overrides tokenizer.ggml.add_bos_token=bool:false)"
    do = f"start the server {no_bos}, and with the tokenizer that teacher.tokenizer names"
    return Failed("echo", where, f"the server scores exactly the {num:,} ids we send", got, do)


def number(value: Any, where: str) -> float:
    """A log-probability.

    Raises:
        Failed: `nan` or `answer`, for what is none.
    """
    if type(value) not in (int, float):
        raise Failed("answer", where, "log-probabilities", ascii(str(value))[:60], "look at the server's version")
    if math.isnan(value) or value == math.inf:
        raise Failed("nan", where, "log-probabilities that are numbers", str(value), "look at the server: its model does not compute", code=5)
    return float(value)
