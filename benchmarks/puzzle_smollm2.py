"""SmolLM2 once by Puzzle: blocks chosen by a search for three quarters of its time, beside fewer blocks in as much time, after equal distillation.

The recipe as it stands, one seed. Nine blocks of thirty, spread evenly, have to go for three quarters of the time, since head and embedding stay.
`time_share` is what the student takes for 128 positions read and 128 written, of what its teacher takes in turns with it.
"""

import json
import sys
from pathlib import Path
from typing import Any

from record import record

from limbeck.start import run
from limbeck.store import read_json

DROPPED, BLOCKS, LENGTH = 9, 30, 128


def arms() -> dict[str, list[str]]:
    """Name -> what is changed in the recipe."""

    surgery = json.dumps([{"kind": "drop_blocks", "drop": DROPPED, "choose": "uniform"}])
    return {"chosen": [], "uniform_depth": ["search=null", f"student.surgery={surgery}", f"train.0.objective.1.weight={BLOCKS - DROPPED}"]}


def seconds(speed: dict[str, Any]) -> float:
    """What it takes to read and write `LENGTH` positions each."""
    return LENGTH / speed["prefill_tokens_per_second"] + LENGTH / speed["decode_tokens_per_second"]


def main() -> None:
    found: dict[str, Any] = {}
    for name, changes in arms().items():
        words = [*changes, "baseline=[]", "export=[]"]
        folder = Path("runs") / f"puzzle-smollm2-{name}"
        summary = run("puzzle", *words, name=folder.name, runs=folder.parent).summary
        teacher, student = summary["teacher"], summary["student"]
        found[name] = {key: student[key] for key in ("kl", "top1", "perplexity", "parameters")} | {"time_share": seconds(student) / seconds(teacher)}
        found[name]["start_kl"] = summary["start"]["kl"]
        if "search=null" not in words:
            about = read_json(folder / "search" / "about.json")
            found[name] |= {key: about[key] for key in ("chosen", "score", "foretold", "costs")}
        print(name, found[name], file=sys.stderr, flush=True)
    record("puzzle_smollm2", {"seed": 0, "dropped": DROPPED, "arms": found})


if __name__ == "__main__":
    main()
