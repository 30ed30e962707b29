"""What does the quickstart reach? Three seeds; the text-only baseline gets the best of three learning rates, the student the recipe's."""

import os
import resource
import sys
from pathlib import Path

from record import record, spread

from limbeck.start import run

SEEDS, RATES = (0, 1, 2), ("1.0e-4", "3.0e-4", "6.0e-4")


def main() -> None:
    steps = os.environ.get("STEPS", "auto")
    fixed = [] if steps == "auto" else [f"train.0.steps={steps}"]
    runs, found = Path("runs"), []
    for seed in SEEDS:
        done = run("quickstart", f"seed={seed}", *fixed, runs=runs)
        count = done.summary["steps"]
        arms = {"3.0e-4": done.summary["baseline"]["perplexity"]}
        for rate in (r for r in RATES if r not in arms):
            other = run(
                "quickstart",
                f"seed={seed}",
                f"train.0.steps={count}",
                f"train.0.optimiser.lr={rate}",
                "train.0.objective=[cross_entropy]",
                "train.0.reconstruct=null",
                "baseline=[]",
                "evaluate=[agreement, perplexity]",
                "export=[]",
                runs=runs,
            )
            arms[rate] = other.summary["student"]["perplexity"]
        summary = done.summary
        found.append(
            {
                "seed": seed,
                "steps": count,
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
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    record(
        f"quickstart-{steps}",
        {"seeds": found, "kl_after_over_before": spread([f["student_kl"] / f["start_kl"] for f in found]), "peak_resident_gib": peak},
    )


if __name__ == "__main__":
    main()
