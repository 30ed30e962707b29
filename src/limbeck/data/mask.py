"""Hides some tokens of each row."""

from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field

from limbeck.data._sequences import one_text, pieces, rows_of, spans, spellings
from limbeck.data.base import Place, Step
from limbeck.errors import Refused
from limbeck.model.base import Models
from limbeck.model.loading import named_tokenizer, tokenizer_names
from limbeck.signals import Batch, View
from limbeck.text.bytes_of import Spelling, exact
from limbeck.text.tokens import encoded


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
    by: str = "teacher"
    """The role whose tokens are chosen, or a tokenizer that limbeck brings, such as kmer6, which then cuts the rows for this alone. Where there is
    no teacher, as in a baseline, the student's own tokens are chosen."""
    spare: tuple[str, ...] = ()
    """Texts of tokens that are never chosen, such as N, an unknown base."""
    unseen: tuple[str, ...] = ()
    """Roles in which attention and mixers also pass over hidden positions, so that the model works on what is visible alone."""

    def window(self, batch: Batch, place: Place, memory: object) -> Batch:
        if not len(batch.keys):
            return batch
        if any("original" in view.inputs for view in batch.views.values()):
            raise Refused("data", "data mask", "whole rows", "some tokens are hidden already", "write mask once")
        spelled = spellings(batch, place, "mask")
        read = {role: rows_of(view) for role, view in batch.views.items()}
        chooser, tokenizer = self.chooser(batch, place.models)
        if tokenizer is not None:
            first = next(iter(batch.views))
            texts = [b"".join(pieces(ids, spelled[first])).decode() for ids in read[first]]
            read[chooser], spelled[chooser] = [encoded(text, tokenizer) for text in texts], exact(tokenizer, f"data mask  by: {self.by}")
        hidden: dict[str, list[bool]] = {role: [] for role in batch.views}
        names: list[str] = []
        for i, key in enumerate(batch.keys):
            where = {role: spans(read[role][i], spelled[role]) for role in read}
            text = one_text([b"".join(pieces(read[role][i], spelled[role])) for role in read], list(read), key, "mask")
            chosen = self.chosen(read[chooser][i], spelled[chooser], place.streams("mask", place.window, key))
            gone = covered(where, len(text), chooser, chosen)
            names.append(f"{key}/{digest(gone[chooser])}")
            for role in batch.views:
                hidden[role] += gone[role]
        views = {role: self.masked(role, view, hidden[role], place.models) for role, view in batch.views.items()}
        return replace(batch, views=views, keys=tuple(names))

    def chooser(self, batch: Batch, models: Models) -> tuple[str, Any]:
        """Whose tokens are chosen, and the tokenizer, where that is no role's."""
        ours = self.by in tokenizer_names() and self.by not in models
        for role in (self.by, *self.unseen):
            if role not in (*models, "teacher") and not (ours and role == self.by):
                expected = f"one of {', '.join((*models, *tokenizer_names()))}" if role == self.by else f"one of {', '.join(models)}"
                raise Refused("role", "data mask", expected, role, "change by, or unseen")
        if ours:
            return f"tokenizer {self.by}", named_tokenizer(self.by)
        return (self.by if self.by in batch.views else "student"), None

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
        inputs = {**view.inputs, "ids": ids.masked_fill(gone, mask), "original": ids, **unseen}
        return replace(view, inputs=inputs, asked=gone)


def covered(where: dict[str, list[tuple[int, int]]], length: int, chooser: str, chosen: Sequence[int]) -> dict[str, list[bool]]:
    """Which tokens of each role are hidden: all that share a byte with what is hidden, until nothing more is."""
    gone = bytearray(length)
    for place in chosen:
        start, end = where[chooser][place]
        gone[start:end] = b"\1" * (end - start)
    before = -1
    while (now := sum(gone)) != before:
        before = now
        for each in where.values():
            for start, end in each:
                if any(gone[start:end]):
                    gone[start:end] = b"\1" * (end - start)
    return {role: [any(gone[start:end]) for start, end in each] for role, each in where.items()}


def digest(hidden: Sequence[bool]) -> str:
    """A short name of a mask."""
    return sha256(bytes(hidden)).hexdigest()[:8]
