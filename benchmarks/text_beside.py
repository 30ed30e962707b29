"""Can a student be as near to its teacher as likeness alone makes it, and predict the text as well as text alone? Cross-entropy beside forward KL,
for a student that begins with its blocks dropped and not fitted."""

import sys
from pathlib import Path

from record import record

from limbeck.start import run

STEPS, WEIGHTS = 70, (0.0, 0.3, 1.0, 3.0, 10.0)


def main() -> None:
    found = []
    for weight in WEIGHTS:
        objective = f"[forward_kl, {{kind: cross_entropy, weight: {weight}}}]"
        words = [f"train.0.steps={STEPS}", f"train.0.objective={objective}", "train.0.reconstruct=null"]
        words += ["baseline=[]", "evaluate=[agreement, perplexity]", "export=[]"]
        student = run("quickstart", *words, name=f"text-beside-{weight}", runs=Path("runs")).summary["student"]
        found.append({"cross_entropy_weight": weight, **{name: student[name] for name in ("kl", "top1", "perplexity")}})
        print(found[-1], file=sys.stderr, flush=True)
    record("text_beside", {"seed": 0, "steps": STEPS, "arms": found})


if __name__ == "__main__":
    main()
