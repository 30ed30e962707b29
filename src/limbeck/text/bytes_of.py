"""A tokenizer as bytes: what each id spells, so that texts of different tokenizers can be laid side by side."""

import json
import re
from itertools import product
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from limbeck.errors import Refused
from limbeck.text.bytes_tokenizer import BYTES, ByteTokenizer
from limbeck.text.nucleotides import letters_of
from limbeck.text.tokens import PROBES, encoded, state

SPACE = "▁"
"""How tokenizers after SentencePiece write a space."""
ONE_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
"""A token that stands for one byte: spelled exactly so, else `<?>` would be one."""
TEXTS = (*PROBES, "CAPITALS", "e\u0301 and a\u0308", "\ttabs\r\nand lines\n", "\x00\x7f")
"""Texts that a tokenizer must keep byte by byte."""


class Spelling(NamedTuple):
    """Bytes by id."""

    bytes: tuple[bytes, ...]
    """What each id spells; marks (begin, end, turns of a chat) spell nothing."""
    marks: dict[int, str]
    """What a mark is for: `begin`, `end`, or else its own name."""
    prefix: bool
    """The tokenizer itself puts a space in front of a text."""

    def led(self, i: int) -> bool:
        """Whether the first byte of an id is the space that was put in front, where it begins a text."""
        return self.prefix and self.bytes[i].startswith(b" ")


def letters() -> dict[str, int]:
    """Byte-level tokenizers write every byte as one printable character: those that are printable as themselves, the others from 256 on."""
    plain = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [i for i in range(256) if i not in plain]
    return {chr(i): i for i in plain} | {chr(256 + n): i for n, i in enumerate(others)}


LETTERS = letters()
KNOWN: WeakKeyDictionary[Any, tuple[Any, Spelling]] = WeakKeyDictionary()
"""Tokenizer -> its state when asked, and its bytes, found to be exact."""
BOUNDARIES: WeakKeyDictionary[Any, tuple[Spelling, tuple[int, ...]]] = WeakKeyDictionary()
"""Tokenizer -> its bytes when asked, and the ids that begin with a boundary."""


def spelling(tokenizer: Any) -> Spelling | None:
    """Bytes of each id of a tokenizer, by the way its decoder writes bytes; None for one that does not say."""
    if isinstance(tokenizer, ByteTokenizer):
        every = (*(bytes([i]) for i in range(BYTES)), *(b"" for _ in range(len(tokenizer) - BYTES)))
        return Spelling(every, roles(tokenizer, {}), False)
    if tokenizer is None or not getattr(tokenizer, "is_fast", False) or (decoder := tokenizer.backend_tokenizer.decoder) is None:
        return None
    steps = kinds(json.loads(decoder.__getstate__()))
    if not steps & {"ByteLevel", "Metaspace", SPACE} and letters_of(tokenizer) is None:
        return None
    added, vocabulary = tokenizer.added_tokens_decoder, tokenizer.get_vocab()
    found = [b""] * (max(vocabulary.values(), default=-1) + 1)
    for token, i in vocabulary.items():
        if i in added:
            found[i] = b"" if added[i].special else added[i].content.encode()
        elif "ByteLevel" in steps:
            found[i] = bytes(LETTERS[c] for c in token) if all(c in LETTERS for c in token) else token.encode("utf-8", "surrogatepass")
        else:
            byte = ONE_BYTE.fullmatch(token)
            found[i] = bytes([int(byte[1], 16)]) if byte else token.replace(SPACE, " ").encode("utf-8", "surrogatepass")
    marks = roles(tokenizer, {i: token.content for i, token in added.items() if token.special})
    for i in marks:
        if i < len(found):
            found[i] = b""
    first = tokenizer.tokenize("a", add_special_tokens=False)[:1]
    return Spelling(tuple(found), marks, "ByteLevel" not in steps and letters_of(tokenizer) is None and first != ["a"])


def roles(tokenizer: Any, names: dict[int, str]) -> dict[int, str]:
    """Mark -> what it is for; two tokenizers spell their end of text differently, and mean the same."""
    every = dict.fromkeys(tokenizer.all_special_ids, "") | names
    known = {tokenizer.eos_token_id: "end"} | ({} if tokenizer.bos_token_id == tokenizer.eos_token_id else {tokenizer.bos_token_id: "begin"})
    return {i: known.get(i) or name or f"id {i}" for i, name in every.items()}


def kinds(decoder: Any) -> set[str]:
    """Names of the steps of a decoder; one that turns `▁` into a space is named so."""
    found = {SPACE} if decoder.get("type") == "Replace" and SPACE in str(decoder.get("pattern")) else {str(decoder.get("type"))}
    return found.union(*(kinds(step) for step in decoder.get("decoders", ())))


def exact(tokenizer: Any, where: str) -> Spelling:
    """The bytes of a tokenizer that keeps every byte.

    Raises:
        Refused: `tokenizer`, for one whose ids do not say their bytes, or do not spell the text that they were made from; it says what is lost.
    """
    if tokenizer is not None and (known := KNOWN.get(tokenizer)) is not None and known[0] == state(tokenizer):
        return known[1]
    found = spelling(tokenizer)
    if found is None:
        do = "use a model with a byte-level or SentencePiece tokenizer (tokenizer.json)"
        raise Refused("tokenizer", where, "a tokenizer whose ids say their bytes", type(tokenizer).__name__, do)
    for text in texts(tokenizer):
        ids = encoded(text, tokenizer)
        spelled, whole = b"".join(found.bytes[i] for i in ids), text.encode()
        if ids and found.led(ids[0]) and spelled != whole:
            spelled = spelled[1:]
        if spelled != whole:
            got = f"{text!r} comes back as {spelled.decode('utf-8', 'replace')!r}: what differs is lost"
            raise Refused("tokenizer", where, "a tokenizer that keeps every byte", got, "use a model whose tokenizer does not normalise text")
    KNOWN[tokenizer] = state(tokenizer), found
    return found


def texts(tokenizer: Any) -> tuple[str, ...]:
    """Texts that show whether a tokenizer keeps every byte: of its own letters, where it has no others."""
    known = letters_of(tokenizer)
    return TEXTS if known is None else (*sorted(known), "".join(map("".join, product(sorted(known), repeat=4))))


def spelled_alike(one: Spelling, other: Spelling) -> tuple[tuple[int, int], ...]:
    """Ids of both sides that spell the same bytes, or are marks of one purpose, in the order of the first side.

    Of several ids with one spelling the last counts: pieces for single bytes come first, and are written only where nothing else will do;
    added tokens come last, and win.
    """
    ours, theirs = (
        {b: i for i, b in enumerate(side.bytes) if b} | {mark: i for i, mark in side.marks.items() if mark != f"id {i}"} for side in (one, other)
    )
    return tuple(sorted((i, theirs[what]) for what, i in ours.items() if what in theirs))


def boundaries(tokenizer: Any, where: str) -> tuple[int, ...]:
    """Ids that can only stand where a word has ended: their first byte is a space, a tab or a line feed, or they are marks.

    Raises:
        Refused: `tokenizer`, as `exact` does.
    """
    spelled, known = exact(tokenizer, where), BOUNDARIES.get(tokenizer)
    if known is None or known[0] is not spelled:
        begins = (i for i, b in enumerate(spelled.bytes) if b[:1] in (b" ", b"\t", b"\n"))
        known = spelled, tuple(sorted({*begins, *spelled.marks}))
        BOUNDARIES[tokenizer] = known
    return known[1]
