"""Which blocks can go? Held-out KL to the whole model, before any training, of drop patterns of equal size."""

import sys
from collections.abc import Iterable

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


def given(keep: Iterable[int]) -> DropBlocks:
    return DropBlocks(keep=tuple(keep), choose="given")


def main() -> None:
    torch.set_num_threads(2)
    recipe = load("quickstart", ["student.surgery=[]", "baseline=[]", "evaluate=[]", "export=[]", "train.0.steps=1"])
    folder = runs_folder() / "benchmark-drop-patterns"
    folder.mkdir(parents=True, exist_ok=True)
    job = Job(recipe, folder, Quiet(), begin(folder, recipe, "."))
    job.open()
    found, total = [], job.cast.fresh().num_layers
    greedy: tuple[int, ...] = tuple(range(total))  # the blocks that the greedy search has kept so far: a larger cut goes on from a smaller one
    for drop in SIZES:
        every = total // drop
        patterns = {
            "uniform": DropBlocks(drop=drop, choose="uniform"),
            f"every {every}th": given(i for i in range(total) if i % every != 1),
            "late": given(range(total - drop)),
            "late but the last two": given((*range(total - drop - 2), total - 2, total - 1)),
            "contiguous": DropBlocks(drop=drop, choose="contiguous"),
            "influence": DropBlocks(drop=drop, choose="influence"),
        }
        smaller = job.cast.fresh() if len(greedy) == total else given(greedy)(job.cast.fresh())
        rest = DropBlocks(drop=drop - (total - len(greedy)), choose="greedy").settle(smaller, job.score)
        greedy = tuple(greedy[i] for i in rest.keep)
        for name, pattern in {**patterns, "greedy": given(greedy)}.items():
            settled = pattern.settle(job.cast.fresh(), job.score)
            table = score(settled(job.cast.fresh()), job.rows.held_out, job.examiner.answers)
            row = {
                "keep": total - drop,
                "pattern": name,
                "dropped": sorted(set(range(total)) - set(settled.keep)),
                "kl": float(table.kl.double().mean()),
                "top1": float((table.best == table.teacher_best).double().mean()),
                "perplexity": float(table.label_logprob.double().mean().neg().exp()),
            }
            found.append(row)
            print(row, file=sys.stderr, flush=True)
    record("drop_patterns", {"held_out_targets": len(table.row), "calibration_rows": CALIBRATION_ROWS, "patterns": found})


if __name__ == "__main__":
    main()
