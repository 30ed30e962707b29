"""Several data sets, each with its share of the draws."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field

from limbeck.component import Document
from limbeck.data.base import BLOCK, AnyStep, Part, Place, Rows, Step
from limbeck.errors import Refused
from limbeck.signals import Needs


class MixPart(Document):
    """One of the data sets of a mixture."""

    data: Annotated[tuple[AnyStep, ...], Field(min_length=1)]
    """Steps that make the rows, as in a recipe's own `data`."""
    share: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """Share of the draws, against those of the other parts."""
    tag: str = ""
    """What the rows are, where they do not say it themselves."""


class Mix(Step):
    r"""Draws from several data sets in fixed shares, whatever their sizes.

    Of every 1,024 draws each part gets its share, rounded to whole draws; a small part is passed through more often. A draw
    is a row, a group, or after `pack` a bin. The parts together count as many draws as they have groups against sources
    that stand outside of the mixture.

    Example:
        >>> text = MixPart(data=("python_topics",), share=3)
        >>> chats = MixPart(data=({"kind": "chat", "path": "lessons/*.jsonl"},), share=1)
        >>> len(Mix(parts=(text, chats)).parts)
        2

    References:
        Xie et al., DoReMi: Optimizing Data Mixtures Speeds Up Language Model Pretraining, 2023, arXiv:2305.10429.
    """

    kind: Literal["mix"] = "mix"
    parts: Annotated[tuple[MixPart, ...], Field(min_length=1)]
    """The data sets."""

    @classmethod
    def example(cls) -> "Mix":
        return cls.model_validate({"parts": [{"data": ["python_topics"], "share": 3, "tag": "docs"}, {"data": ["python_topics"]}]})

    @property
    def needs(self) -> Needs:
        every = [step.needs for part in self.parts for step in part.data]
        return {role: tuple(dict.fromkeys(name for needs in every for name in needs.get(role, ()))) for needs in every for role in needs}

    def rows(self, rows: Rows, place: Place) -> Rows:
        made = [self.made(part, i, place) for i, part in enumerate(self.parts)]
        refuse_classes(made)
        total, groups = sum(part.share for part in self.parts), sum(len(part.groups) for some in made for part in some.parts)
        mixed: list[Part] = []
        for part, some in zip(self.parts, made, strict=True):
            shares = [len(p.groups) if p.share is None else p.share for p in some.parts]
            mixed += [Part(p.rows, groups * part.share / total * share / sum(shares)) for p, share in zip(some.parts, shares, strict=True)]
        if not all(Rows(tuple(mixed)).in_block):
            raise Refused(
                "value",
                "data mix  parts",
                f"shares that are drawn once in {BLOCK:,} draws",
                f"{min(part.share for part in self.parts)} of {total}",
                "raise the smallest share, or remove its part",
            )
        return replace(
            rows,
            parts=(*rows.parts, *mixed),
            held_out=(*rows.held_out, *(row for some in made for row in some.held_out)),
            provenance=(*rows.provenance, *(facts for some in made for facts in some.provenance)),
            notes=(*rows.notes, *(note for some in made for note in some.notes)),
        )

    def made(self, part: MixPart, number: int, place: Place) -> Rows:
        """The rows of one part."""
        found = Rows()
        for i, step in enumerate(part.data):
            if type(step).window is not Step.window:
                where = f"data mix  parts.{number}.data.{i}"
                raise Refused("key", where, "a step that makes rows", "one that changes windows", "write it after the mix")
            found = step.rows(found, place)
        if not found.train:
            raise Refused("data", f"data mix  parts.{number}", "rows to train on", "none", "add a source, or remove the part")
        return found.each(lambda rows: [row if row.tag else replace(row, tag=part.tag) for row in rows])


def refuse_classes(made: Sequence[Rows]) -> None:
    """Refuses parts whose images count their classes otherwise: one number would stand for two things."""
    names: dict[int, tuple[str, int]] = {}
    for i, some in enumerate(made):
        for row in (*some.train, *some.held_out):
            if not {"pixels", "label"} <= row.content.keys() or not row.tag:  # of images the tag is the name of the class
                continue
            name, first = names.setdefault(int(row.content["label"]), (row.tag, i))
            if name != row.tag and first != i:
                got = f"{row.content['label']}: {name} in parts.{first}, {row.tag} in parts.{i}"
                do = "name the same classes in the same order at each source"
                raise Refused("label", "data mix  parts", "one list of classes for all parts", got, do)
