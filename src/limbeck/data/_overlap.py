"""Held-out text that is also trained on would be known by heart: it is left out."""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np

from limbeck.data.base import Rows
from limbeck.signals import Row

RUN = 13
"""Words in a row that no two documents share by chance (Brown et al. 2020, arXiv:2005.14165, appendix C)."""
COMMON = 10
"""A run that is in more training documents than this is a phrase of the trade (a licence, an instruction), as there."""
RUNS_AT_ONCE = 1 << 22
"""Runs of held-out text in memory at a time, about 100 bytes each while they are made."""
WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+")
"""A word; or one character where writing has no spaces."""


def drop_overlap(rows: Rows, at_once: int = RUNS_AT_ONCE) -> Rows:
    """Rows without the held-out documents that share a run of 13 words with text to train on; a note says how many.

    A document of fewer words is compared as a whole. Memory is bounded by `at_once`, whatever the size of the training text,
    which is passed through once for every so many held-out runs.
    """
    documents: dict[str, list[Row]] = {}
    for row in rows.held_out:
        documents.setdefault(row.source or row.key, []).append(row)
    shared = {name for some in portions(documents, at_once) for name in overlapping(some, rows)}
    if not shared:
        return rows
    kept = tuple(row for row in rows.held_out if (row.source or row.key) not in shared)
    note = (
        f"overlap: {len(shared):,} of {len(documents):,} held-out documents ({len(rows.held_out) - len(kept):,} rows) left out: "
        f"{RUN} words in a row are also in text to train on"
    )
    return replace(rows, held_out=kept, notes=(*rows.notes, note))


def portions(documents: Mapping[str, Sequence[Row]], at_once: int) -> Iterator[dict[str, np.ndarray]]:
    """Runs by document, so many documents at a time as fit."""
    some: dict[str, np.ndarray] = {}
    for name, parts in documents.items():
        mine = np.unique(np.concatenate([runs(text_of(row)) for row in parts]))
        if some and sum(map(len, some.values())) + len(mine) > at_once:
            yield some
            some = {}
        some[name] = mine
    if some:
        yield some


def overlapping(some: Mapping[str, np.ndarray], rows: Rows) -> list[str]:
    """The documents that share a run with a few training documents, or all their runs with any number."""
    index = np.unique(np.concatenate(list(some.values())))
    count, last, numbers = np.zeros(len(index), dtype=np.int64), np.full(len(index), -1), {}
    for row in (row for part in rows.parts for row in part.rows) if len(index) else ():
        number, mine = numbers.setdefault(row.source or row.key, len(numbers)), runs(text_of(row))
        at = np.searchsorted(index, mine).clip(max=len(index) - 1)
        hit = np.unique(at[index[at] == mine])
        count[hit] += last[hit] != number  # once a document, though it comes in pieces
        last[hit] = number
    return [name for name, mine in some.items() if len(mine) and tells(count[np.searchsorted(index, mine)])]


def tells(count: np.ndarray) -> bool:
    return bool(((count > 0) & (count <= COMMON)).any() or (count > 0).all())


def text_of(row: Row) -> str:
    """All words of a row but those of the system, which many chats share."""
    content = row.content
    if content.keys() & {"pixels", "wave"}:  # of many images and sounds the same is said; what is new is the image, by which rows are parted
        return ""
    if isinstance(content.get("query"), str):  # documents of a collection are searched for by all; what is new is the query
        return content["query"]
    said: list[Any] = [m.get("content") for m in content.get("messages", ()) if m.get("role") not in ("system", "developer")]
    return "\n".join(text for text in (content.get("text"), content.get("prompt"), content.get("answer"), *said) if isinstance(text, str))


def runs(text: str) -> np.ndarray:
    """A number for each 13 words in a row, from the first word on; for fewer words one number."""
    found = WORD.findall(text.casefold())
    if not found:
        return np.zeros(0, dtype=np.uint64)
    values, total = np.array([number_of(word) for word in found], dtype=np.uint64), np.uint64(0)
    run = min(RUN, len(found))
    total = np.zeros(len(found) - run + 1, dtype=np.uint64)
    for i in range(run):  # a polynomial of the words' numbers, modulo 2^64
        total = total * np.uint64(0x9E3779B97F4A7C15) + values[i : i + len(total)]
    return total


@lru_cache(maxsize=1 << 16)
def number_of(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")
