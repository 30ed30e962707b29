"""What the ids of a tokenizer are called: servers name tokens by id, or by their text, in more than one spelling."""

from collections.abc import Sequence
from typing import Any

from limbeck.text.tokens import encoded


class Vocabulary:
    """Ids of a tokenizer, and what each stands for within a text."""

    def __init__(self, tokenizer: Any, size: int):
        self.tokenizer, self.size = tokenizer, size
        self.anchor = encoded("a", tokenizer)[-1:]
        self.before = self.decode(self.anchor)
        self.known: dict[str, int | None] = {}
        self.bos: int | None = getattr(tokenizer, "bos_token_id", None)
        self.special: tuple[int, ...] = tuple(tokenizer.all_special_ids)

    def decode(self, ids: Sequence[int]) -> str:
        plain = {"clean_up_tokenization_spaces": False} if getattr(self.tokenizer, "is_fast", False) else {}
        return self.tokenizer.decode(list(ids), **plain)

    def text(self, i: int) -> str:
        """What an id adds to a text; many tokenizers drop a space where a text begins."""
        return self.decode([*self.anchor, i]).removeprefix(self.before)

    def id(self, text: str) -> int | None:
        """The one id of a text, or None where there are none or several."""
        if not self.known:
            known: dict[str, int | None] = {}
            for i in range(min(self.size, len(self.tokenizer))):
                name = bare(self.text(i))
                known[name] = None if name in known else i
            self.known = {**known, "": None}  # at once: other threads read it
        return self.known.get(bare(text))

    @property
    def shared(self) -> int:
        """How many ids have no text of their own."""
        self.id("")
        return self.size - sum(i is not None for i in self.known.values())

    def whole(self, ids: Sequence[int]) -> str | None:
        """The text of some ids, if it is read as the same ids again."""
        text = self.decode(ids)
        return text if encoded(text, self.tokenizer) == list(ids) else None


def bare(text: str) -> str:
    """A token's text in one spelling: pieces of characters are shown in different ways, or not at all."""
    return text.replace("\u2581", " ").replace("\u0120", " ").replace("\ufffd", "")
