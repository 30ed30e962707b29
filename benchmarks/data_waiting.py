"""How long does a step wait for its data? The seconds that it waits for its window, as a share of the whole step, of a shipped recipe.

`python benchmarks/data_waiting.py ofa` takes the recipe's claim setting, trains for 60 steps, and leaves the first 10 out.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

from record import record, spread

from limbeck.claims import claim_of
from limbeck.recipe import find
from limbeck.start import run

STEPS, WARM = 60, 10
TEACHERS = {
    "ofa": "timm:resnet10t?num_classes=10&in_chans=1&channels=[40,80,160,320]",
    "robust_distiller": "config:models/small_wavlm.json",
}
"""In place of the teacher that a claim prepares: as large, and untrained, since only seconds are looked at."""


def main(name: str) -> None:
    setting = {key: value for key, value in claim_of(name).setting.items() if not key.startswith("prepare")}
    changes = {**setting, "claim": None, "train.0.steps": STEPS, "baseline": [], "evaluate": [], "export": [], "threads": 2}
    changes |= {"teacher": TEACHERS[name]} if name in TEACHERS else {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LIMBECK_RUNS"] = folder
        done = run(name, *[f"{key}={json.dumps(value)}" for key, value in changes.items()], base=find(name).parent)
        lines = [json.loads(line) for line in (Path(done.path) / "metrics.jsonl").read_text().splitlines()]
    waits, steps = ([line["sum"] for line in lines if line.get("name") == name] for name in ("data_seconds", "step_seconds"))
    shares = [wait / step for wait, step in zip(waits, steps, strict=True)][WARM:]
    total = sum(waits[WARM:]) / sum(steps[WARM:])
    print(f"{name}: {total:.1%} of the time of {len(shares)} steps; a step {min(shares):.1%} to {max(shares):.1%}")
    record(f"data_waiting_{name}", {"recipe": name, "share": total, "each": spread(shares), "step_seconds": spread(steps[WARM:])})


if __name__ == "__main__":
    main(*sys.argv[1:])
