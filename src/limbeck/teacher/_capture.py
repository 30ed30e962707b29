"""Asks a cached teacher once about each row, in shards that any run may use again."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from limbeck.component import canonical
from limbeck.errors import Failed
from limbeck.model.base import Role
from limbeck.signals import Row
from limbeck.store import Cache, load_tensors, save_tensors
from limbeck.teacher.base import Teacher

SHARD_ROWS = 64
"""Rows a shard: what a killed capture loses at most."""


def capture(
    teacher: Teacher,
    role: Role,
    rows: Sequence[Row],
    cache: Cache,
    identity: Mapping[str, Any],
    rows_at_once: int = 8,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, dict[str, Tensor]]:
    """Row key -> what the teacher said about it, read from the cache where it is there, and added to it where not.

    Args:
        rows: in the order in which they are needed; the same order gives the same shards.
        identity: of the model and its tokenizer: what the answers depend on besides teacher and rows.
        tell: is called with rows done and rows in all.
    """
    kept: dict[str, dict[str, Tensor]] = {}
    done, total = 0, len({row.key for row in rows})
    for key, shard in shards(teacher, rows, cache, identity):

        def build(folder: Path, shard: list[Row] = shard) -> None:
            parts = [teacher.capture(shard[i : i + rows_at_once], role) for i in range(0, len(shard), rows_at_once)]
            said = {f"{key}/{name}": x for part in parts for key, tensors in part.items() for name, x in tensors.items()}
            bad = next((name for name, x in said.items() if x.is_floating_point() and not torch.isfinite(x).all()), None)
            if bad:
                where = f"teacher {', '.join(teacher.references)}"
                raise Failed("nan", where, "finite answers", f"{bad} is not", "look at the row, or at the teacher's dtype", code=5)
            save_tensors(folder / "said.safetensors", said)

        folder = cache.make(key, {"step": "capture", "teacher": list(teacher.references), "rows": len(shard)}, build)
        for name, x in load_tensors(folder / "said.safetensors").items():
            row, _, signal = name.partition("/")
            kept.setdefault(row, {})[signal] = x
        done += len(shard)
        tell(done, total)
    return kept


def shards(teacher: Teacher, rows: Sequence[Row], cache: Cache, identity: Mapping[str, Any]) -> Iterator[tuple[str, list[Row]]]:
    """Rows by shard, each once, with the key of the shard in the cache."""
    rows = list({row.key: row for row in rows}.values())
    for first in range(0, len(rows), SHARD_ROWS):
        shard = rows[first : first + SHARD_ROWS]
        yield cache.key({"step": "capture", "teacher": canonical(teacher), "identity": identity, "rows": [row.key for row in shard]}), shard
