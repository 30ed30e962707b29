"""Hides some tokens of each row."""

from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field

from limbeck.data._sequences import one_text, pieces, rows_of, spans, spellings
from limbeck.data.base import Place, Step
from limbeck.errors import Refused
from limbeck.model.base import Models
from limbeck.signals import Batch, View
from limbeck.text.bytes_of import Spelling


class Mask(Step):
    r"""Hides a share of the tokens of each row of a window, and asks for them: masked modelling, with the same letters hidden from every role.

    $$ |C_r| = \max(1, \mathrm{round}(s\, n_r)), \qquad C_r \subset \text{tokens of row } r \text{ that spell something, drawn evenly} $$

    Tokens are chosen of one role, as a rule that with the longest tokens; each other role hides every token that shares a byte with them, and
    where such a token reaches further, so does what is hidden, on all sides: no role sees what another one is asked for. Masks drawn apart
    would leak: of six hidden letters the other side would show some. Marks, such as the begin of a sequence, spell nothing and are never hidden.
    The mask's id stands in the place of each hidden token; what is asked for are the original ones. Each row is drawn by its own key and the
    window's number, before the window is cut. For models that see both sides of a position; a cached teacher has not seen the masks, and is refused.

    Example:
        >>> Mask(spare=("N",)).share
        0.15

    References:
        Devlin et al., BERT: Pre-training of Deep Bidirectional Transformers, 2018, arXiv:1810.04805 (there some chosen tokens stay or are swapped).
        Dalla-Torre et al., Nucleotide Transformer, Nature Methods 22, 2025.
    """

    kind: Literal["mask"] = "mask"
    inputs: ClassVar[tuple[str, ...]] = ("ids",)
    share: Annotated[float, Field(gt=0, lt=1)] = 0.15
    """Share of the tokens of a row that are chosen; at least one is."""
    by: str | None = None
    """The role whose tokens are chosen; none: the teacher, where it reads with a tokenizer of its own, else the student."""
    spare: tuple[str, ...] = ()
    """Texts of tokens that are never chosen, such as N, an unknown base."""
    unseen: tuple[str, ...] = ()
    """Roles in which attention and mixers also pass over hidden positions, so that the model works on what is visible alone."""

    def window(self, batch: Batch, place: Place, memory: object) -> Batch:
        if not len(batch.keys):
            return batch
        spelled = spellings(batch, place, "mask")
        chooser = self.chooser(batch, place.models)
        read = {role: rows_of(view) for role, view in batch.views.items()}
        hidden: dict[str, list[bool]] = {role: [] for role in read}
        for i, key in enumerate(batch.keys):
            where = {role: spans(read[role][i], spelled[role]) for role in read}
            one_text([b"".join(pieces(read[role][i], spelled[role])) for role in read], list(read), key, "mask")
            chosen = self.chosen(read[chooser][i], spelled[chooser], place.streams("mask", place.window, key))
            for role, some in covered(where, chooser, chosen).items():
                hidden[role] += some
        views = {role: self.masked(role, view, hidden[role], place.models) for role, view in batch.views.items()}
        marks = [x.tolist() for x in torch.tensor(hidden[chooser], device="cpu").split(batch.view(chooser).ragged.tolist())]
        return replace(batch, views=views, keys=tuple(f"{key}/{digest(some)}" for key, some in zip(batch.keys, marks, strict=True)))

    def chooser(self, batch: Batch, models: Models) -> str:
        """The role whose tokens are chosen."""
        for role in (*((self.by,) if self.by else ()), *self.unseen):
            if role not in models:
                raise Refused("role", "data mask", f"one of {', '.join(models)}", role, "change by, or unseen")
        asked = self.by or "teacher"
        return asked if asked in batch.views else "student"

    def chosen(self, ids: Sequence[int], spelled: Spelling, stream: torch.Generator) -> list[int]:
        """Places of the chosen tokens of one row."""
        spare = {text.encode() for text in self.spare}
        may = [place for place, piece in enumerate(pieces(ids, spelled)) if piece and piece not in spare]
        order = torch.randperm(len(may), generator=stream, device="cpu").tolist()
        return [may[i] for i in order[: max(1, round(self.share * len(may)))]]

    def masked(self, role: str, view: View, hidden: Sequence[bool], models: Models) -> View:
        """A view with some of its ids hidden."""
        mask = getattr(models[role].tokenizer, "mask_token_id", None)
        if mask is None or view.shift:
            got = "one without" if mask is None else "one that predicts from the left alone"
            do = "use a masked language model, such as bert or modernbert, whose tokenizer has a mask"
            raise Refused("tokenizer", f"data mask  {role}", "a model that sees both sides, and an entry for what is hidden", got, do)
        ids, gone = view.inputs["ids"], torch.tensor(hidden, dtype=torch.bool, device=view.device)
        unseen = {"seen": ~gone} if role in self.unseen else {}
        inputs = {**view.inputs, "ids": ids.masked_fill(gone, mask), "original": view.inputs.get("original", ids), **unseen}
        return replace(view, inputs=inputs, asked=gone)


def covered(where: dict[str, list[tuple[int, int]]], chooser: str, chosen: Sequence[int]) -> dict[str, list[bool]]:
    """Which tokens of each role are hidden: all that share a byte with what is hidden, until nothing more is."""
    length = max((end for spans in where.values() for _, end in spans), default=0)
    gone = bytearray(length)
    for place in chosen:
        start, end = where[chooser][place]
        gone[start:end] = b"\1" * (end - start)
    before = -1
    while (now := sum(gone)) != before:
        before = now
        for spans in where.values():
            for start, end in spans:
                if any(gone[start:end]):
                    gone[start:end] = b"\1" * (end - start)
    return {role: [any(gone[start:end]) for start, end in spans] for role, spans in where.items()}


def digest(hidden: Sequence[bool]) -> str:
    """A short name of a mask."""
    return sha256(bytes(hidden)).hexdigest()[:8]
