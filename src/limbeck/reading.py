"""All rows of a run, and those that a stage brings itself."""

import json
from collections.abc import Sequence
from pathlib import Path

from limbeck.data._overlap import drop_overlap
from limbeck.data.base import Place, Rows, Step
from limbeck.signals import Row
from limbeck.store import read_json, write_text


def read(steps: Sequence[Step], place: Place) -> Rows:
    """Every data step, once; held-out text that stands in the training text too is left out."""
    rows = Rows()
    for step in steps:
        rows = step.rows(rows, place)
    return drop_overlap(rows)


def own_rows(steps: Sequence[Step], place: Place, held_out: Sequence[Row], path: Path) -> Rows:
    """Rows of a stage that brings its own data, without held-out ones of the run; what its models have written is kept at `path`: they
    write it once."""
    written = any(step.needs for step in steps)
    if written and path.is_file():
        return Rows.of(read_json(path))
    rows = read(steps, place).without(held_out)
    if written:
        path.parent.mkdir(exist_ok=True)
        write_text(path, json.dumps(rows.plain()))
    return rows
