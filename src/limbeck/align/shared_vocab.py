"""Logits over the ids that both models know."""

from dataclasses import replace
from typing import Any, Literal

from pydantic import Field

from limbeck.align.base import Align
from limbeck.errors import Refused
from limbeck.signals import Head, Logits
from limbeck.text.tokens import fingerprint


def same(one: Any, other: Any) -> bool:
    """Whether two tokenizers give every text the same ids."""
    return one is other or fingerprint(one) == fingerprint(other)


class SharedVocab(Align):
    """Cuts padded vocabularies of one tokenizer to the ids they share, before the softmax.

    Families pad their heads to different multiples; the added columns mean nothing, and a softmax over them would give
    them mass. This is for one tokenizer: models with different tokenizers are refused, whatever the sizes.

    Example:
        >>> SharedVocab(num=49152).num
        49152

    References:
        (numerics rule 4)
    """

    kind: Literal["shared_vocab"] = "shared_vocab"
    num: int | None = Field(default=None, gt=0)
    """Ids kept, from 0 on; none: those of the tokenizer that all heads have."""

    def settle(self, models):
        speaking = {name: models[name] for name in models if models[name].tokenizer is not None}
        (first, one), *others = speaking.items()
        for name, role in others:
            if not same(one.tokenizer, role.tokenizer):
                raise Refused(
                    "tokenizer",
                    "align.shared_vocab",
                    f"one tokenizer for {first} and {name}",
                    f"{len(one.tokenizer):,} and {len(role.tokenizer):,} ids, which mean different text",
                    "start from a model with the same tokenizer",
                )
        num = min(len(one.tokenizer), *(role.vocab or len(one.tokenizer) for role in speaking.values()))
        if self.num is not None and self.num > num:
            raise Refused("vocab", "align.shared_vocab.num", f"at most {num:,}, the ids that all models have", f"{self.num:,}", "leave num out")
        return SharedVocab(num=self.num or num)

    def __call__(self, role, said, batch):
        num = self.num
        assert num is not None, "settled before it is used"
        return replace(said, values={name: cut(x, num) if name in ("logits", "patch_logits") else x for name, x in said.values.items()})


def cut(logits: Any, num: int) -> Any:
    """The logits of the first so many ids, lazy ones as lazy ones."""
    if not isinstance(logits, Logits):
        return logits[..., :num]
    head = logits.head.cut(num) if isinstance(logits.head, Head) else lambda hidden: logits.head(hidden)[..., :num]
    return replace(logits, head=head)
