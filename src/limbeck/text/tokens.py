"""What limbeck asks of a tokenizer: ids, the characters they stand for, and which tokenizer it is."""

import hashlib
import json
from collections.abc import Sequence
from itertools import product
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from limbeck.errors import Refused
from limbeck.text.bytes_tokenizer import ByteTokenizer

KINDS = ("a", "Bc", "é", "日", "1", "٣", " ", "  ", "\n", "\t", ".", "'s", "_", "🙂")
PROBES = (
    *("Hello world", " two  spaces\n\n\tand a tab", "3.14159 and 12345", "Straße, ﬁn, naïve", "日本語 🙂", "def f(x):\n    return x ** 2", ""),
    "".join(map("".join, product(KINDS, repeat=3))),
)
"""Texts on which tokenizers differ, though their vocabularies may not; the last has each kind of character between any two."""
MARKS: WeakKeyDictionary[Any, tuple[Any, str]] = WeakKeyDictionary()
"""Tokenizer -> its state when asked, and its fingerprint."""


class Tokens(NamedTuple):
    """Ids of a text, and the characters each stands for. Bytes of one character have the same start and end."""

    ids: Sequence[int]
    starts: Sequence[int]
    ends: Sequence[int]


def encoded(text: str, tokenizer: Any, special: bool = False) -> list[int]:
    """Ids of a text, with the tokenizer's own begin and end if `special`."""
    quiet = {"verbose": False} if getattr(tokenizer, "is_fast", False) else {}  # else transformers warns of rows that are cut later
    return list(tokenizer.encode(text, add_special_tokens=special, **quiet))


def specials(tokenizer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids that a tokenizer itself puts before and after a text."""
    bare, whole = encoded("a", tokenizer), encoded("a", tokenizer, special=True)
    for at in range(len(whole) - len(bare) + 1):
        if whole[at : at + len(bare)] == bare:
            return tuple(whole[:at]), tuple(whole[at + len(bare) :])
    return (), ()


def tokens(text: str, tokenizer: Any) -> Tokens:
    """Ids of a text without begin and end, each with its characters."""
    if isinstance(tokenizer, ByteTokenizer):
        places = [i for i, character in enumerate(text) for _ in range(len(character.encode("utf-8", "surrogatepass")))]
        return Tokens(encoded(text, tokenizer), places, [i + 1 for i in places])
    if not getattr(tokenizer, "is_fast", False):
        raise Refused(
            "tokenizer",
            type(tokenizer).__name__,
            "a tokenizer that says which characters each id stands for",
            "one that does not",
            "save the model with its fast tokenizer (tokenizer.json)",
        )
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return Tokens(found["input_ids"], [start for start, _ in found["offset_mapping"]], [end for _, end in found["offset_mapping"]])


def shortened(text: str, tokenizer: Any, most: int) -> str:
    """The beginning of a text, of at most so many tokens."""
    if len(text.encode("utf-8", "surrogatepass")) <= most:  # a token is a byte at least
        return text
    found = tokens(text, tokenizer)
    if len(found.ids) <= most:
        return text
    between = most
    while between and found.starts[between] < found.ends[between - 1]:  # bytes of one character stay together
        between -= 1
    return text[: found.ends[between - 1]] if between else ""


def state(tokenizer: Any) -> tuple[Any, ...]:
    """What of a tokenizer may be changed after it was loaded."""
    return (
        len(tokenizer),
        str(getattr(tokenizer, "chat_template", None)),
        getattr(tokenizer, "add_bos_token", None),
        getattr(tokenizer, "add_eos_token", None),
    )


def fingerprint(tokenizer: Any) -> str:
    """A name for a tokenizer by what it does, equal for two loads of the same one: vocabulary, special tokens, template, probes."""
    known = MARKS.get(tokenizer)
    if known is None or known[0] != state(tokenizer):
        added = {
            str(i): [token.content, token.lstrip, token.rstrip, token.single_word, token.normalized, token.special]
            for i, token in getattr(tokenizer, "added_tokens_decoder", {}).items()
        }
        roles = [getattr(tokenizer, name, None) for name in ("bos_token_id", "eos_token_id", "unk_token_id")]  # padding changes no ids
        probes = [encoded(text, tokenizer, special=True) for text in PROBES]
        facts = [tokenizer.get_vocab(), added, roles, getattr(tokenizer, "chat_template", None), probes]
        known = state(tokenizer), hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        MARKS[tokenizer] = known
    return known[1]
