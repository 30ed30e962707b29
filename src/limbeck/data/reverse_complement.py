"""Reads some sequences of a window from the other strand."""

from dataclasses import replace
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from limbeck.data._sequences import one_text, pieces, rows_of, spellings
from limbeck.data.base import Place, Step
from limbeck.errors import Refused
from limbeck.signals import Batch, Row
from limbeck.text.nucleotides import ALPHABET, COMPLEMENT, check_letters


class ReverseComplement(Step):
    r"""Turns a sequence of a window into its reverse complement, or not: DNA says the same on both strands.

    $$ x_1 \dots x_n \;\mapsto\; \bar x_n \dots \bar x_1, \qquad \bar A = T,\; \bar C = G,\; \bar G = C,\; \bar T = A,\; \bar N = N $$

    Every role reads the turned sequence anew: with tokens of several bases, it is cut elsewhere. Each row is drawn by its own key and the window's
    number. It stands before `mask`. Leave it out where the strand means something, as in transcripts. A cached teacher has never seen the
    turned rows, and is refused.

    Example:
        >>> turned("AACGN")
        'NCGTT'

    References:
        Shrikumar, Greenside and Kundaje, Reverse-complement parameter sharing improves deep learning models for genomics, 2017, bioRxiv 103663.
    """

    kind: Literal["reverse_complement"] = "reverse_complement"
    inputs: ClassVar[tuple[str, ...]] = ("ids",)
    probability: Annotated[float, Field(gt=0, le=1)] = 0.5
    """How often a row is turned."""

    def window(self, batch: Batch, place: Place, memory: object) -> Batch:
        draws = [place.streams.number("reverse_complement", place.window, key) % 2**20 < self.probability * 2**20 for key in batch.keys]
        if not any(draws):
            return batch
        spelled = spellings(batch, place, "reverse_complement")
        if any("original" in view.inputs for view in batch.views.values()):
            raise Refused("data", "data reverse_complement", "whole sequences", "some letters are hidden", "write it before mask")
        read = {role: rows_of(view) for role, view in batch.views.items()}
        rows = []
        for i, (key, turn) in enumerate(zip(batch.keys, draws, strict=True)):
            text = one_text([b"".join(pieces(read[role][i], spelled[role])) for role in read], list(read), key, "reverse_complement").decode()
            check_letters(text, frozenset(ALPHABET), f"data reverse_complement  row {key}")
            rows.append(Row(f"{key}/turned" if turn else key, {"text": turned(text) if turn else text}))
        views = {role: place.models[role].view(rows) for role in batch.views}
        return replace(batch, views=views, keys=tuple(row.key for row in rows))


def turned(text: str) -> str:
    """The other strand of a sequence, in its own direction."""
    return text.translate(COMPLEMENT)[::-1]
