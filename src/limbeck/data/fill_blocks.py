"""Rows filled up to whole blocks."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Field

from limbeck.data.base import Place, Rows, Step, key_of
from limbeck.errors import Refused
from limbeck.signals import Row
from limbeck.text.spans import encode
from limbeck.text.tokens import fingerprint


class FillBlocks(Step):
    r"""Ends every row with as many ends of text as it lacks to a multiple of `length` tokens.

    For chats and answers of any length, before `forward: denoised_blocks`, whose blocks are then all full, as those are that a model
    writes: behind the end of an answer it has learnt to write ends. Documents are better cut to whole blocks by `pack`, with its `shortest`
    as long as its `length`. By the student's tokenizer; others read the text as it was.

    Example:
        >>> FillBlocks(length=32).asked
        True

    References:
        Bie et al., LLaDA2.0: Scaling Up Diffusion Language Models to 100B, 2025, arXiv:2512.15745.
    """

    kind: Literal["fill_blocks"] = "fill_blocks"
    length: Annotated[int, Field(gt=0)] = 32
    """Tokens of a block."""
    asked: bool = True
    """Whether what is added is to be predicted too: whoever learns it stops in time."""

    def rows(self, rows: Rows, place: Place) -> Rows:
        tokenizer = place.models["student"].tokenizer if "student" in place.models else None
        if tokenizer is None or tokenizer.eos_token_id is None:
            expected, do = "a student with a tokenizer that knows an end of text", "remove fill_blocks"
            raise Refused("tokenizer", "data fill_blocks", expected, "one without", do)
        return rows.each(lambda some: self.filled(some, tokenizer))

    def filled(self, rows: Sequence[Row], tokenizer: Any) -> list[Row]:
        """Rows of whole blocks; those that are so already as they were."""
        mark, out = fingerprint(tokenizer), []
        for row in rows:
            ids, asked = encode(row, tokenizer)
            lacks = -len(ids) % self.length
            ends = {"ids": {mark: [*ids, *[tokenizer.eos_token_id] * lacks]}, "asked": {mark: [*asked, *[self.asked] * lacks]}}
            key = key_of(row.key, mark, "fill_blocks", str(self.length), str(self.asked))
            out.append(replace(row, key=key, content={**row.content, **ends}) if lacks else row)
        return out
