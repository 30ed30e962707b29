"""Chats and answers that are too long: their end is cut off, never their middle."""

from collections.abc import Mapping
from typing import Any

from limbeck.signals import Row
from limbeck.text.spans import chat, encode, place_of
from limbeck.text.tokens import Tokens, encoded, fingerprint, specials, tokens


def shorten(row: Row, tokenizer: Any, length: int) -> Mapping[str, Any] | None:
    """Content that ends with the last thing asked for within `length` positions; None if nothing is.

    The tokenizer gets exact ids; others read the same words, and no end of text or turn where the last one is cut.
    """
    ids, asked = encode(row, tokenizer)
    num = max((i + 1 for i in range(1, min(length, len(ids))) if asked[i]), default=0)
    short = ends_in_chat(row, tokenizer, num) if "messages" in row.content else ends_in_answer(row, tokenizer, num)
    if short is None:
        return None
    content, num = short
    mark = fingerprint(tokenizer)
    return {**content, "ids": {mark: ids[:num]}, "asked": {mark: asked[:num]}}


def ends_in_answer(row: Row, tokenizer: Any, num: int) -> tuple[dict[str, Any], int] | None:
    """Content and number of positions of a prompt whose answer is cut."""
    before = len(specials(tokenizer)[0]) + len(encoded(row.content["prompt"], tokenizer))
    answer = tokens(row.content.get("answer", ""), tokenizer)
    kept = whole_characters(answer, min(num - before, len(answer.ids)))
    if kept <= 0:
        return None
    complete = kept == len(answer.ids)
    return {**row.content, "answer": row.content["answer"][: None if complete else answer.ends[kept - 1]], "open": True}, before + kept


def ends_in_chat(row: Row, tokenizer: Any, num: int) -> tuple[dict[str, Any], int] | None:
    """Content and number of positions of a chat that ends with a whole turn of the assistant, or within one."""
    whole, spans = chat(row.content, tokenizer, f"row {row.key}")
    found = tokens(whole, tokenizer)
    num = whole_characters(found, num)
    for i, span in reversed(list(enumerate(spans))):
        if not num or found.ends[num - 1] <= span.start:
            continue
        messages = row.content["messages"][: span.turn + 1]
        if found.ends[num - 1] >= span.end:
            return {**row.content, "messages": messages, "open": False}, num
        start, end = place_of(messages[-1]["content"], whole, span)
        if words := whole[start : min(found.ends[num - 1], end)]:
            return {**row.content, "messages": (*messages[:-1], {**messages[-1], "content": words}), "open": True}, num
        edge = spans[i - 1].end if i else 0  # the template has rewritten this turn: the chat ends with the one before
        num = sum(end <= edge for end in found.ends)
    return None


def whole_characters(found: Tokens, num: int) -> int:
    """At most so many positions, that end where a character ends."""
    while 0 < num < len(found.ids) and found.starts[num] < found.ends[num - 1]:
        num -= 1
    return num
