"""Which blocks can go? Held-out KL to the whole model, before any training, of drop patterns of equal size."""

import functools
import sys
from collections.abc import Callable, Collection, Iterable

import torch
from record import record

from limbeck.evaluate._scoring import score
from limbeck.job import CALIBRATION_ROWS, Job
from limbeck.recipe import load
from limbeck.student.drop_blocks import DropBlocks
from limbeck.tell import Quiet
from limbeck.workspace import begin, runs_folder

SIZES = (6, 10)
"""Blocks that go: 24 and 20 of 30 stay."""
Cost = Callable[[Collection[int]], float]
"""Of dropping some blocks: KL on calibration rows."""


def given(keep: Iterable[int]) -> DropBlocks:
    return DropBlocks(keep=tuple(keep), choose="given")


def retraced(drop: int, candidates: Collection[int], cost: Cost) -> list[int]:
    """The first blocks that a greedy search drops, out of those that it is known to drop in the end: any other candidate has lost already."""
    gone: list[int] = []
    for _ in range(drop):
        gone.append(min((i for i in candidates if i not in gone), key=lambda i: cost([*gone, i])))
    return gone


def main() -> None:
    torch.set_num_threads(2)
    recipe = load("quickstart", ["student.surgery=[]", "baseline=[]", "evaluate=[]", "export=[]", "train.0.steps=1"])
    folder = runs_folder() / "benchmark-drop-patterns"
    folder.mkdir(parents=True, exist_ok=True)
    job = Job(recipe, folder, Quiet(), begin(folder, recipe, "."))
    job.open()
    found, total = [], job.cast.fresh().num_layers
    known = set(range(total)) - set(load("quickstart").student.surgery[0].keep)  # what `choose: greedy` has found, with ten to drop

    @functools.cache
    def measured(gone: tuple[int, ...]) -> float:
        return job.score(given(i for i in range(total) if i not in gone)(job.cast.fresh()))

    def cost(gone: Collection[int]) -> float:
        return measured(tuple(sorted(gone)))

    influence = sorted(range(total), key=lambda i: cost([i]))
    for drop in SIZES:
        every = total // drop
        patterns = {
            "uniform": set(range(total)) - set(DropBlocks(drop=drop, choose="uniform").settle(job.cast.fresh(), job.score).keep),
            f"every {every}th": [i for i in range(total) if i % every == 1],
            "late": range(total - drop, total),
            "late but the last two": range(total - drop - 2, total - 2),
            "contiguous": min((range(i, i + drop) for i in range(total - drop + 1)), key=cost),
            "influence": influence[:drop],
            "greedy": retraced(drop, known, cost),
        }
        for name, gone in patterns.items():
            settled = given(i for i in range(total) if i not in gone)
            table = score(settled(job.cast.fresh()), job.rows.held_out, job.examiner.answers)
            row = {
                "keep": total - drop,
                "pattern": name,
                "dropped": sorted(gone),
                "kl": float(table.kl.double().mean()),
                "top1": float((table.best == table.teacher_best).double().mean()),
                "perplexity": float(table.label_logprob.double().mean().neg().exp()),
            }
            found.append(row)
            print(row, file=sys.stderr, flush=True)
    record("drop_patterns", {"held_out_targets": len(table.row), "calibration_rows": CALIBRATION_ROWS, "patterns": found})


if __name__ == "__main__":
    main()
