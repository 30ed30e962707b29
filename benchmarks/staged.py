"""Do Llamba's three stages beat the last one alone where two blocks are converted? 300 steps: 60, 90 and 150 in the three stages.

`small`: two of the four blocks of the small model; else as the claim of `llamba`, which converts all of them; three rates of all stages, three
seeds.
`smollm2`: two of the 30 blocks of SmolLM2-135M-Instruct; the recipe as it stands but for steps, one row of 64 tokens a step, the first two stages
on the converted blocks alone, and the two rates that the paper has for the last stage, of which each arm keeps the better one of the first of
two seeds.
"""

import json
import statistics
import sys
from typing import Any

import yaml
from record import record

from limbeck.claims import claim_of
from limbeck.recipe import find
from limbeck.start import run

STEPS = (60, 90, 150)
SEEDS = {"small": (0, 1, 2), "smollm2": (0, 1)}
BLOCKS = {"small": [1, 2], "smollm2": [10, 20]}
RATES = {"small": (1e-3, 3e-3, 1e-2), "smollm2": (5e-5, 1e-5)}
Stages = list[dict[str, Any]]


def arms(which: str) -> tuple[dict[str, Any], dict[str, Stages]]:
    """What both arms change in the recipe, and the stages of each."""
    if which == "small":
        shared = claim_of("llamba").setting
        train = shared["train"]
    else:
        shared = {"baseline": [], "evaluate": ["agreement"], "export": [], "data.0.split": 0.04, "data.1.length": 64, "data.1.shortest": 32}
        train = [{**stage, "batch": 1} for stage in yaml.safe_load(find("llamba").read_text())["train"]]
        for stage in train[:-1]:
            stage["objective"] = [{**stage["objective"][0], "layers": BLOCKS[which]}]
    staged = [{**stage, "steps": steps} for stage, steps in zip(train, STEPS, strict=True)]
    return {**shared, "student.surgery.0.layers": BLOCKS[which], "claim": None}, {"staged": staged, "end_alone": [{**train[-1], "steps": sum(STEPS)}]}


def at_rate(which: str, stages: Stages, rate: float) -> Stages:
    """In the small model the rate of all stages, as in the claim; else of the last one."""
    return [{**s, "optimiser": {**s["optimiser"], "lr": rate}} if which == "small" or s is stages[-1] else s for s in stages]


def measure(which: str, arm: str, rate: float, seed: int) -> float:
    """Held-out KL of one run; one that is there is not made again."""
    shared, stages_of = arms(which)
    changed = {**shared, "train": at_rate(which, stages_of[arm], rate), "seed": seed}
    words = [f"{key}={json.dumps(value)}" for key, value in changed.items()]
    summary = run("llamba", *words, name=f"staged-{which}-{arm}-{rate}-{seed}").summary
    print(arm, rate, seed, summary["start"]["kl"], "->", summary["student"]["kl"], file=sys.stderr, flush=True)
    return summary["student"]["kl"]


def main(which: str = "small") -> None:
    for key, plain in claim_of("llamba").prepare.items() if which == "small" else ():
        run(plain, name=f"claim-llamba-{key}", base=find("llamba").parent)
    kl = {arm: {rate: [measure(which, arm, rate, SEEDS[which][0])] for rate in RATES[which]} for arm in arms(which)[1]}
    for arm, table in kl.items():
        rates = list(table) if which == "small" else [min(table, key=lambda rate, table=table: table[rate][0])]
        for rate in rates:
            table[rate] += [measure(which, arm, rate, seed) for seed in SEEDS[which][1:]]
    means = {arm: {rate: statistics.fmean(values) for rate, values in table.items() if len(values) == len(SEEDS[which])} for arm, table in kl.items()}
    best = {arm: min(table, key=lambda rate, table=table: table[rate]) for arm, table in means.items()}
    name = "staged" if which == "small" else f"staged_{which}"
    record(name, {"steps": STEPS, "blocks": BLOCKS[which], "seeds": SEEDS[which], "kl": kl, "best_rate": best})


if __name__ == "__main__":
    main(*sys.argv[1:])
