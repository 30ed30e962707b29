"""Logits over the ids that both models know."""

from dataclasses import replace
from typing import Literal

from pydantic import Field

from limbeck.align.base import Align
from limbeck.signals import Logits


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
    num: int | None = Field(None, gt=0)
    """Ids kept, from 0 on; none: as many as the tokenizer of the student has."""

    def settle(self, models):
        return self if self.num is not None else SharedVocab(num=len(models["student"].tokenizer))

    def __call__(self, role, said, batch):
        if "logits" not in said.values:
            return said
        logits, num = said.values["logits"], self.num
        if isinstance(logits, Logits):
            cut = Logits(logits.hidden, lambda hidden: logits.head(hidden)[..., :num], logits.learns)
        else:
            cut = logits[..., :num]
        return replace(said, values={**said.values, "logits": cut})
