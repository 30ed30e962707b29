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
    torch.set_num_threads(1)  # nothing is timed here
    recipe = load("quickstart", ["student.surgery=[]", "baseline=[]", "evaluate=[]", "export=[]", "train.0.steps=1"])
    folder = runs_folder() / "benchmark-drop-patterns"
    folder.mkdir(parents=True, exist_ok=True)
    job = Job(recipe, folder, Quiet(), begin(folder, recipe, "."))
    job.open()
    found, total = [], job.cast.fresh().num_layers
    alone = {i: job.score(given(j for j in range(total) if j != i)(job.cast.fresh())) for i in range(total)}
    kept = load("quickstart").student.surgery[0].keep  # what `choose: greedy` has found, with ten to drop
    for drop in SIZES:
        every, first = total // drop, (total - drop) // 2
        patterns = {
            "uniform": set(range(total)) - set(DropBlocks(drop=drop, choose="uniform").settle(job.cast.fresh(), job.score).keep),
            f"every {every}th": [i for i in range(total) if i % every == 1],
            "late": range(total - drop, total),
            "late but the last two": range(total - drop - 2, total - 2),
            "contiguous, in the middle": range(first, first + drop),
            "influence": sorted(range(total), key=lambda i: alone[i])[:drop],
            **({"greedy": set(range(total)) - set(kept)} if total - drop == len(kept) else {}),
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
