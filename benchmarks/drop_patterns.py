"""Which blocks can go? Held-out KL to the whole model, before any training, of drop patterns of equal size."""

import sys

import torch
from record import record

from limbeck.evaluate._scoring import score
from limbeck.job import CALIBRATION_ROWS, Job
from limbeck.recipe import load
from limbeck.student.drop_blocks import DropBlocks
from limbeck.tell import Quiet
from limbeck.workspace import begin, runs_folder

SIZES = (6, 10)


def main() -> None:
    torch.set_num_threads(2)
    recipe = load("quickstart", ["student.surgery=[]", "baseline=[]", "evaluate=[]", "export=[]", "train.0.steps=1"])
    folder = runs_folder() / "benchmark-drop-patterns"
    folder.mkdir(parents=True, exist_ok=True)
    job = Job(recipe, folder, Quiet(), begin(folder, recipe, "."))
    job.open()
    found = []
    for drop in SIZES:
        total = job.cast.fresh().num_layers
        patterns = {
            "uniform": DropBlocks(drop=drop, choose="uniform"),
            "every third" if drop == 10 else "every fifth": None,
            "late": DropBlocks(keep=tuple(range(total - drop)), choose="given"),
            "late but the last two": DropBlocks(keep=(*range(total - drop - 2), total - 2, total - 1), choose="given"),
            "contiguous": DropBlocks(drop=drop, choose="contiguous"),
            "influence": DropBlocks(drop=drop, choose="influence"),
            "greedy": DropBlocks(drop=drop, choose="greedy"),
        }
        step = total // drop
        for name, pattern in patterns.items():
            pattern = pattern or DropBlocks(keep=tuple(i for i in range(total) if i % step != 1), choose="given")
            settled = pattern.settle(job.cast.fresh(), job.score)
            role = settled(job.cast.fresh())
            table = score(role, job.rows.held_out, job.examiner.answers)
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
