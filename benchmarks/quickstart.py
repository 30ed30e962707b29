"""What does the quickstart reach? Three seeds; the text-only baseline gets the best of three learning rates, the student the recipe's.

Every run is a process of its own, as on the command line: the peak is that of the largest. `STEPS=200` for longer, `SEEDS=0` for one seed.
"""

import json
import os
import resource
import subprocess
import sys
from typing import Any

from record import record, spread

SEEDS, RATES = os.environ.get("SEEDS", "0 1 2").split(), ("1.0e-4", "3.0e-4", "6.0e-4")


def run(*changes: str) -> dict[str, Any]:
    """The summary of a quickstart."""
    done = subprocess.run([sys.executable, "-m", "limbeck", "run", "quickstart", *changes, "--json"], stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def main() -> None:
    steps = os.environ.get("STEPS", "auto")
    fixed = [] if steps == "auto" else [f"train.0.steps={steps}"]
    found = []
    for seed in SEEDS:
        summary = run(f"seed={seed}", *fixed)
        arms = {"3.0e-4": summary["baseline"]["perplexity"]}
        for rate in (r for r in RATES if r not in arms):
            other = run(
                f"seed={seed}",
                f"train.0.steps={summary['steps']}",
                f"train.0.optimiser.lr={rate}",
                "train.0.objective=[cross_entropy]",
                "train.0.reconstruct=null",
                "baseline=[]",
                "evaluate=[agreement, perplexity]",
                "export=[]",
            )
            arms[rate] = other["student"]["perplexity"]
        found.append(
            {
                "seed": int(seed),
                "steps": summary["steps"],
                "wall_seconds": summary["wall_seconds"],
                "start_kl": summary["start"]["kl"],
                "student_kl": summary["student"]["kl"],
                "student_top1": summary["student"]["top1"],
                "student_perplexity": summary["student"]["perplexity"],
                "teacher_perplexity": summary["teacher"]["perplexity"],
                "text_only_perplexity": arms,
                "text_only_kl": summary["baseline"]["kl"],
                "decode_ratio": summary["student"]["decode_tokens_per_second"] / summary["teacher"]["decode_tokens_per_second"],
            }
        )
        print(found[-1], file=sys.stderr, flush=True)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    record(
        f"quickstart-{steps}",
        {"seeds": found, "kl_after_over_before": spread([f["student_kl"] / f["start_kl"] for f in found]), "peak_resident_gib": peak},
    )


if __name__ == "__main__":
    main()
