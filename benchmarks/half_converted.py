"""Which half of SmolLM2's blocks should stay attention? Chosen by measured KL, evenly, and twice at random; one seed, equal tokens.

All 30 blocks get a gated delta rule in the place of attention, and learn by layers; then each arm gets 15 of them back, and learns by forward KL.
The arms are branches of one graph, so that what comes before is trained once.
"""

import json
import random
import sys
from pathlib import Path
from typing import Any

from record import record

from limbeck.claims import borrow
from limbeck.recipe import load
from limbeck.start import run
from limbeck.store import read_json

KEPT, BLOCKS, ALIGN, TAUGHT = 15, 30, 20, 20


def arms() -> dict[str, dict[str, Any]]:
    """Name -> how the blocks that stay attention are chosen."""
    at_random = {f"random_{i}": {"choose": "given", "layers": sorted(random.Random(i).sample(range(BLOCKS), KEPT))} for i in (0, 1)}
    return {"guided": {"choose": "restore_one"}, "uniform": {"choose": "uniform"}, **at_random}


def main() -> None:
    plain = load("kl_guided").model_dump(mode="json", exclude_unset=True)
    align, hybrid = plain["train"]
    train = [{**align, "steps": ALIGN}]
    for name, how in arms().items():
        back = {"kind": "restore_attention", "num": KEPT, **how}
        train.append({**hybrid, "name": name, "start": align["name"], "steps": TAUGHT, "surgery": [back]})
    found, folders = {}, []
    for name in arms():
        words = [f"train={json.dumps(train)}", f"result={name}", "baseline=[]", "evaluate=[agreement, perplexity]", "export=[]"]
        folder = Path("runs") / f"half-converted-{name}"
        borrow(folder, load("kl_guided", words), folders)
        summary = run("kl_guided", *words, name=folder.name, runs=folder.parent).summary
        folders.append(folder)
        (settled,) = read_json(folder / "results" / "student" / name / "surgery.json")
        found[name] = {**{key: summary["student"][key] for key in ("kl", "top1", "perplexity")}, "attention_in": settled["layers"]}
        print(name, found[name], file=sys.stderr, flush=True)
    record("half_converted", {"seed": 0, "steps": [ALIGN, TAUGHT], "batch": 4, "kept": KEPT, "arms": found})


if __name__ == "__main__":
    main()
