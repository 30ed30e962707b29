"""Prompts that ask a model who it is, varied step by step; all are friendly, and the same seed gives the same ones."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from limbeck.numerics import Streams

MOST_CHARACTERS = 240
"""Of a prompt."""
TRIES = 40
"""Variations tried for each prompt that is asked for."""
SENTENCE = re.compile(r"(?<=[.?!])\s+")
Draw = Callable[[Sequence[Any]], Any]
"""One of several, drawn."""


@cache
def shipped() -> Mapping[str, Any]:
    """Makers with their models, prompts and pieces of prompts."""
    return json.loads((Path(__file__).parent / "_identity.json").read_text(encoding="utf-8"))


def named(word: str) -> re.Pattern[str]:
    """A name as it is written, not within a longer word; what follows may be a version: Qwen2.5, GPT-4."""
    return re.compile(rf"(?<![A-Za-z]){re.escape(word)}(?![a-z])")


def sentences(text: str) -> list[str]:
    return SENTENCE.split(text)


def asking(text: str) -> list[str]:
    """Sentences of a prompt but for greetings and the like, which ask nothing."""
    return [sentence for sentence in sentences(text) if sentence not in (*shipped()["openings"], *shipped()["closings"])]


def shorten(text: str, every: Sequence[str], others: Sequence[str], draw: Draw) -> str:
    """The last of its sentences that asks something."""
    return asking(text)[-1]


def expand(text: str, every: Sequence[str], others: Sequence[str], draw: Draw) -> str:
    """A sentence before it, or behind it."""
    return draw((f"{draw(shipped()['openings'])} {text}", f"{text} {draw(shipped()['closings'])}"))


def rephrase(text: str, every: Sequence[str], others: Sequence[str], draw: Draw) -> str:
    """Other words for a phrase in it."""
    known = [(phrase, group) for group in shipped()["phrases"] for phrase in group if phrase in text]
    if not known:
        return text
    phrase, group = draw(known)
    return text.replace(phrase, draw([other for other in group if other != phrase]))


def cross_over(text: str, every: Sequence[str], others: Sequence[str], draw: Draw) -> str:
    """How it begins, and how another one ends."""
    return f"{sentences(text)[0]} {sentences(draw(every))[-1]}"


def similar(text: str, every: Sequence[str], others: Sequence[str], draw: Draw) -> str:
    """The same with another model in it; one that names no model, as a question about one."""
    name = next((name for name in others if named(name).search(text)), None)
    return draw(shipped()["misleading"]).replace("{}", draw(others)) if name is None else text.replace(name, draw(others))


MUTATIONS = (shorten, expand, rephrase, cross_over, similar)


def prompts(num: int, others: Sequence[str], seed: int) -> list[str]:
    """So many prompts, no two alike: first those that are shipped, then variations of all so far, each kind in turn.

    Args:
        others: names of models and makers that the tested one is not; those that a question may mislead with.
    """
    random, others = Streams(seed)("identity prompts"), [name for name in others if name.isascii()]

    def draw(some: Sequence[Any]) -> Any:
        return some[int(torch.randint(len(some), (1,), generator=random, device="cpu"))]

    found = dict.fromkeys(shipped()["prompts"][:num])
    for n in range(TRIES * num):
        if len(found) == num:
            break
        every = list(found)
        new = MUTATIONS[n % len(MUTATIONS)](draw(every), every, others, draw)
        if len(new) <= MOST_CHARACTERS and asking(new) and len(set(sentences(new))) == len(sentences(new)):
            found.setdefault(new)
    return list(found)
