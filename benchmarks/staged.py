"""Do Llamba's three stages beat the last one alone where two of four blocks are converted? The small model, 300 steps, three seeds, three rates.

As the claim of `llamba`, which converts all blocks, but for the number of blocks and of steps: 60, 90 and 150 in the three stages.
"""

import json
import statistics
import sys
from typing import Any

from record import record

from limbeck.claims import claim_of
from limbeck.recipe import find
from limbeck.start import run

STEPS, BLOCKS, RATES, SEEDS = (60, 90, 150), [1, 2], (1e-3, 3e-3, 1e-2), (0, 1, 2)


def words(stages: list[dict[str, Any]], rate: float, seed: int) -> list[str]:
    """What one run changes in the recipe."""
    claim = claim_of("llamba")
    train = [{**stage, "optimiser": {**stage["optimiser"], "lr": rate}} for stage in stages]
    changed = {**claim.setting, "student.surgery.0.layers": BLOCKS, "train": train, "seed": seed, "claim": None}
    return [f"{key}={json.dumps(value)}" for key, value in changed.items()]


def main() -> None:
    claim = claim_of("llamba")
    staged = [{**stage, "steps": steps} for stage, steps in zip(claim.setting["train"], STEPS, strict=True)]
    alone = [{**staged[-1], "steps": sum(STEPS)}]
    for key, plain in claim.prepare.items():
        run(plain, name=f"claim-llamba-{key}", base=find("llamba").parent)
    found: dict[str, dict[str, list[float]]] = {}
    for arm, stages in {"staged": staged, "end_alone": alone}.items():
        for rate in RATES:
            for seed in SEEDS:
                summary = run("llamba", *words(stages, rate, seed), name=f"staged-{arm}-{rate}-{seed}").summary
                found.setdefault(arm, {}).setdefault(str(rate), []).append(summary["student"]["kl"])
                print(arm, rate, seed, summary["student"]["kl"], file=sys.stderr, flush=True)
    best = {arm: min(table, key=lambda rate, table=table: statistics.fmean(table[rate])) for arm, table in found.items()}
    record("staged", {"steps": STEPS, "blocks": BLOCKS, "seeds": SEEDS, "kl": found, "best_rate": best})


if __name__ == "__main__":
    main()
