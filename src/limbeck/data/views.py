"""Several tasks of one row, each with a prefix that names it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Literal

from pydantic import Field

from limbeck.component import Document, short
from limbeck.data.base import Part, Place, Rows, Step, key_of
from limbeck.errors import Refused
from limbeck.signals import Row


class Task(Document):
    """One thing to learn from a row."""

    prefix: str
    """Put before the row's prompt, here and when the student is used."""
    target: str
    """Name of the field that is to be answered."""


class Views(Step):
    r"""Makes several tasks of each row: label and rationale, each asked for by a prefix of its own.

    A row with a prompt x becomes one row a view: its prompt is prefix + x, its answer the field `target`, its tag the name of the
    view. They are drawn together. One `cross_entropy` a tag then gives
    $\alpha\,\mathrm{CE}_\mathrm{label} + (1 - \alpha)\,\mathrm{CE}_\mathrm{rationale}$, each a mean over its own tokens, so that
    long rationales do not outweigh short labels. A row without a target (missing, no text, or blank) lacks that view only: nothing
    is taught in its place. Held-out rows get the first view alone, the one that the student is used for. Rows without a prompt stay
    as they are. Choose it where a further task teaches more than the answer alone; where the student should write its
    reasons before it answers, put both into the answer instead.

    Example:
        >>> Views(views={"predict": {"prefix": "predict: ", "target": "label"}, "explain": {"prefix": "explain: ", "target": "rationale"}}).kind
        'views'

    References:
        Hsieh et al., Distilling step-by-step! Outperforming larger language models, 2023, arXiv:2305.02301.
    """

    kind: Literal["views"] = "views"
    views: dict[str, Task] = Field(min_length=1)
    """Name -> prefix and target; the first is the task that the student is used for."""

    @classmethod
    def example(cls) -> "Views":
        return cls(views={"predict": Task(prefix="predict: ", target="answer"), "again": Task(prefix="explain: ", target="prompt")})

    def rows(self, rows: Rows, place: Place) -> Rows:
        first = next(iter(self.views))
        parts = tuple(Part(tuple(self.seen(part.rows, self.views)), part.share) for part in rows.parts)
        held = tuple(self.seen(rows.held_out, {first: self.views[first]}))
        asked = [row for row in rows.train if "prompt" in row.content]
        lacking = {name: sum(target(row, task) is None for row in asked) for name, task in self.views.items()}
        for name, task in self.views.items():
            if rows.train and lacking[name] == len(asked):
                there = sorted({field for row in rows.train for field in row.content})
                got = f"{short(task.target)}, which no row with a prompt has; fields: {short(', '.join(there), 200)}"
                raise Refused("data", f"data views  views.{name}.target", "a field of the rows", got, "correct target, or keep that field")
        notes = [f"views: {num:,} of {len(asked):,} rows have no {self.views[name].target} for {name}" for name, num in lacking.items() if num]
        if other := len(rows.train) - len(asked):
            notes.append(f"views: {other:,} rows have no prompt, and are as they were")
        if lost := len(rows.held_out) - len(held):
            notes.append(f"views: {lost:,} held-out rows have no {self.views[first].target}, and are left out")
        return replace(rows, parts=tuple(part for part in parts if part.rows), held_out=held, notes=(*rows.notes, *notes))

    def seen(self, rows: Sequence[Row], views: Mapping[str, Task]) -> Iterator[Row]:
        """One row a view that has a target."""
        for row in rows:
            if "prompt" not in row.content:
                yield row
                continue
            for name, task in views.items():
                if (answer := target(row, task)) is not None:
                    content = {"prompt": task.prefix + row.content["prompt"], "answer": answer}
                    yield replace(row, key=key_of(row.key, name, *content.values()), content=content, tag=name, group=row.group or row.key)


def target(row: Row, task: Task) -> str | None:
    """What is to be answered, or None: a blank one would teach to say nothing."""
    value = row.content.get(task.target)
    return value if isinstance(value, str) and value.strip() else None
