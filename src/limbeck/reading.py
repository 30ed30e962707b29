"""All rows of a run, and those that a stage brings itself."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from limbeck.data._overlap import drop_overlap
from limbeck.data.base import Place, Rows, Step
from limbeck.model.base import Models
from limbeck.planning.refusals import refuse_own
from limbeck.recipe import Recipe
from limbeck.signals import Row
from limbeck.store import read_json, write_text
from limbeck.train.stage import Stage


def read(steps: Sequence[Step], place: Place) -> Rows:
    """Every data step, once; held-out text that stands in the training text too is left out."""
    rows = Rows()
    for step in steps:
        rows = step.rows(rows, place)
    return drop_overlap(rows)


def aligned(recipe: Recipe, rows: Rows, readers: Models) -> Rows:
    """The rows, with what alignments have to say of those that stages of a recipe train on, each once."""
    every = (align for stage in recipe.train if stage.data is None for turn in stage.turn for align in turn.align)
    notes = dict.fromkeys(note for align in every for note in align.notes(rows.train, readers))
    return replace(rows, notes=(*rows.notes, *notes))


def own_rows(stage: Stage, number: int, place: Place, held_out: Sequence[Row], path: Path) -> Rows:
    """Rows of a stage that brings its own data, without held-out ones of the run; what its models have written is kept at `path`: they
    write it once.

    Raises:
        Refused: `data`, `tag`, `context`, for rows that the stage cannot learn from.
    """
    steps = stage.data or ()
    written = any(step.needs for step in steps)
    if written and path.is_file():
        return Rows.of(read_json(path))
    rows = read(steps, place).without(held_out)
    refuse_own(stage, number, rows, place.models)
    if written:
        path.parent.mkdir(exist_ok=True)
        write_text(path, json.dumps(rows.plain()))
    return rows
