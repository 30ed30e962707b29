"""How well does a small cross-encoder rank paragraphs for real questions, against its teacher, its start, and the same student from labels alone?

`python benchmarks/question_ranking.py xquad.en.json.gz`: the recipe rank_distillm (contrast on labels, then the order of all-MiniLM-L6-v2) on a file
in the format of SQuAD; XQuAD's English part has 240 paragraphs and 1,190 questions, a tenth of which is held out. Candidates are the 16 first of
BM25. Three seeds; runs go to LIMBECK_RUNS, else ./runs, and finished ones are not made again. On one core about 25 minutes.
"""

import json
import os
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from record import record

from limbeck.start import run

SEEDS, STEPS, DEPTH = (0, 1, 2), 60, 16
FIGURES = ("ndcg", "ndcg_error", "mrr")


def words(path: Path, seed: int) -> list[str]:
    """What is changed in the recipe."""
    source = {"kind": "squad_rankings", "path": str(path.resolve()), "depth": DEPTH, "query_length": 24, "document_length": 96, "split": 0.1}
    changed: dict[str, Any] = {
        "data": [{**source, "negatives": "sampled", "group": 8}],
        "train.1.data": [{**source, "without_relevant": "keep"}],
        "train.*.steps": STEPS,
        "train.0.batch": 2,
        "train.1.batch": 1,
        "seed": seed,
        "export": [],
        "threads": torch.get_num_threads(),
    }
    return [f"{name}={json.dumps(value)}" for name, value in changed.items()]


def main(path: Path) -> None:
    found = []
    for seed in SEEDS:
        done = run("rank_distillm", *words(path, seed), name=f"question-ranking-{seed}", runs=Path(os.environ.get("LIMBECK_RUNS", "runs")))
        found.append({name: {k: of[k] for k in FIGURES if k in of} for name, of in done.summary.items() if isinstance(of, dict) and "ndcg" in of})
        print(seed, json.dumps(found[-1]), file=sys.stderr, flush=True)
    mean = {name: statistics.fmean(each[name]["ndcg"] for each in found) for name in found[0]}
    gains = [each["student"]["ndcg"] - each["baseline"]["ndcg"] for each in found]
    record("question_ranking", {"file": path.name, "steps": 2 * STEPS, "depth": DEPTH, "seeds": found, "mean_ndcg": mean, "over_labels_alone": gains})


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 2)))
    main(Path(sys.argv[1]))
