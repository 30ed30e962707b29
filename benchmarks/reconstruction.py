"""How near does a student come by least squares alone, before any step? Held-out KL of SmolLM2 without some blocks or channels, before and after.

The quickstart's student on 32, 128 and 512 rows of 128 tokens, each ridge once, and other cuts on 128 rows.
"""

import sys
import time
from typing import Any

import torch
from record import record

from limbeck.evaluate._scoring import score
from limbeck.job import Job
from limbeck.model.base import Models, Role
from limbeck.recipe import load
from limbeck.student.base import Surgery
from limbeck.student.drop_blocks import DropBlocks
from limbeck.student.keep_width import KeepWidth
from limbeck.tell import Quiet
from limbeck.train.reconstruct import Reconstruct
from limbeck.workspace import begin, runs_folder

MIDDLE = {24: range(12, 18), 20: range(10, 20)}
"""Blocks kept -> a run of blocks in the middle that goes."""


def without(gone: range) -> DropBlocks:
    return DropBlocks(keep=tuple(i for i in range(30) if i not in gone))


def main() -> None:
    torch.set_num_threads(1)
    recipe = load("quickstart", ["student.surgery=[]", "baseline=[]", "evaluate=[]", "export=[]", "train.0.steps=1"])
    folder = runs_folder() / "benchmark-reconstruction"
    folder.mkdir(parents=True, exist_ok=True)
    job = Job(recipe, folder, Quiet(), begin(folder, recipe, "."))
    job.open()
    greedy = load("quickstart").student.surgery[0]

    def told(role: Role) -> dict[str, float]:
        table = score(role, job.rows.held_out, job.examiner.answers)
        return {
            "kl": float(table.kl.double().mean()),
            "top1": float((table.best == table.teacher_best).double().mean()),
            "perplexity": float(table.label_logprob.double().mean().neg().exp()),
        }

    arms: list[tuple[str, Surgery, Reconstruct]] = [
        *((f"20 blocks, greedy, {rows} rows", greedy, Reconstruct(rows=rows)) for rows in (128, 32, 512)),
        *((f"20 blocks, greedy, ridge {ridge:g}", greedy, Reconstruct(ridge=ridge)) for ridge in (0.01, 1.0)),
        *((f"{kept} blocks, middle gone", without(gone), Reconstruct()) for kept, gone in MIDDLE.items()),
        ("MLP of 1,024 of 1,536 channels", KeepWidth(mlp=1024), Reconstruct()),
    ]
    found: list[dict[str, Any]] = []
    for name, surgery, how in arms:
        student = surgery(job.cast.fresh())
        before, began = told(student), time.perf_counter()
        rows = job.rows.draw(0, how.rows, job.streams)
        how(Models({"student": student, "teacher": job.teacher}), rows, "train.0")
        row = {"arm": name, "rows": how.rows, "ridge": how.ridge, "seconds": time.perf_counter() - began, "before": before, "after": told(student)}
        found.append(row)
        print(row, file=sys.stderr, flush=True)
    record("reconstruction", {"seed": 0, "held_out_targets": len(score(job.teacher, job.rows.held_out, job.examiner.answers).row), "arms": found})


if __name__ == "__main__":
    main()
