"""Does a student in NVFP4 that was taught by its original predict the text no worse than one that was rounded? The arms of the claim of `qad`, each
at its best rate, with perplexity measured too; the claim's three seeds."""

import json
import sys
from typing import Any

from record import record

from limbeck.claims import changes, claim_of, record_of
from limbeck.recipe import find
from limbeck.start import run

ARMS = ("rounded", "qad", "weights_rounded", "weights_qad")


def main() -> None:
    claim, known = claim_of("qad"), record_of("qad")
    assert known is not None, "measure the claim first: its best rates are taken"
    for key, plain in claim.prepare.items():
        run(plain, name=f"claim-qad-{key}", base=find("qad").parent)
    found: dict[str, dict[str, list[float]]] = {}
    for arm in ARMS:
        rate = float(known["best"][arm])
        for seed in claim.seeds:
            words = [*changes(claim, arm, rate, seed), 'evaluate=["agreement", "perplexity"]']
            summary: dict[str, Any] = run("qad", *words, name=f"rounded-perplexity-{arm}-{seed}").summary
            for name, value in (("kl", summary["student"]["kl"]), ("perplexity", summary["student"]["perplexity"])):
                found.setdefault(arm, {}).setdefault(name, []).append(value)
            found.setdefault("original", {"perplexity": []})["perplexity"].append(summary["teacher"]["perplexity"])
            print(json.dumps({arm: found[arm]}), file=sys.stderr, flush=True)
    record("rounded_perplexity", {"seeds": list(claim.seeds), "rates": {arm: known["best"][arm] for arm in ARMS}, "arms": found})


if __name__ == "__main__":
    main()
