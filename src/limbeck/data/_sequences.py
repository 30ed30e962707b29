"""Rows of a window whose letters are hidden or changed: as text again, whatever tokenizer has read them."""

from collections.abc import Sequence
from typing import Any

from limbeck.data.base import Place
from limbeck.errors import Refused
from limbeck.signals import Batch, View
from limbeck.text.bytes_of import Spelling, exact


def spellings(batch: Batch, place: Place, kind: str) -> dict[str, Spelling]:
    """Role -> the bytes of its ids, of each view.

    Raises:
        Refused: `tokenizer`, for one that does not keep every byte; `data`, for rows that are no text.
    """
    for view in batch.views.values():
        if "ids" not in view.inputs or "segment" in view.inputs:
            do = f"use a source of text or sequences, or remove {kind}"
            raise Refused("data", f"data {kind}", "rows of text", ", ".join(view.inputs), do)
    return {role: exact(place.models[role].tokenizer, f"data {kind}: tokenizer of {role}") for role in batch.views}


def rows_of(view: View, name: str = "ids") -> list[list[int]]:
    """The ids of each row."""
    return [row.tolist() for row in view.inputs[name].split(view.ragged.tolist())]


def pieces(ids: Sequence[int], spelled: Spelling) -> list[bytes]:
    """What each id spells; one that the tokenizer does not name spells nothing."""
    return [spelled.bytes[i] if i < len(spelled.bytes) else b"" for i in ids]


def spans(ids: Sequence[int], spelled: Spelling) -> list[tuple[int, int]]:
    """The bytes of its text that each id spells; none for marks."""
    out, at = [], 0
    for piece in pieces(ids, spelled):
        out.append((at, at + len(piece)))
        at += len(piece)
    return out


def one_text(texts: Sequence[bytes], roles: Sequence[str], key: str, kind: str) -> bytes:
    """The text that all roles have read.

    Raises:
        Refused: `data`, where two have read unlike ones.
    """
    for role, text in zip(roles, texts, strict=True):
        if text != texts[0]:
            got: Any = f"{roles[0]} and {role} read {len(texts[0]):,} and {len(text):,} bytes, or other ones"
            raise Refused("data", f"data {kind}  row {key}", "one text, read by all roles", got, "let both read plain text, without templates")
    return texts[0]
