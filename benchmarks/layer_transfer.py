"""Which signal is best to learn from before a short fit? Outputs, hidden states and relations compared at toy scale, three seeds.

The published comparison (Udagawa et al., 2023, arXiv:2310.08797) puts relations of one upper-middle layer first, hidden states with the
map `uniform_plus_last` second and outputs last. Here: a teacher of 6 blocks and 128 channels trained on Python's help topics, a student of
3 blocks and 64 channels from scratch, so many steps of pure transfer, then a short fit on the text; the held-out loss after it decides.
"""

import json
import math
import tempfile
from pathlib import Path
from typing import Any

import torch
from record import record, spread

from limbeck.start import run

TEACHER_STEPS, TRANSFER_STEPS, FIT_STEPS, SEEDS = 400, 300, 60, (0, 1, 2)
SHAPE = {"model_type": "llama", "max_position_embeddings": 512, "tie_word_embeddings": True, "initializer_range": 0.02, "tokenizer": "bytes"}
TEACHER = {**SHAPE, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 6, "num_attention_heads": 4, "num_key_value_heads": 4}
STUDENT = {**SHAPE, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 4}
DATA = [{"kind": "python_topics", "split": 0.1}, {"kind": "pack", "length": 128}]
OPTIMISER = {"lr": 1e-3, "warm_up": 0.1, "decay": "cosine", "floor": 0.1}
ARMS: dict[str, dict[str, Any]] = {
    "outputs": {"objective": ["forward_kl"]},
    "hidden states": {
        "objective": [{"kind": "hidden_mse", "layers": "all"}],
        "align": [{"kind": "layer_map", "map": "uniform_plus_last"}],
    },
    "relations": {
        "objective": [{"kind": "relations", "layer": 0, "heads": 4}],
        "align": [{"kind": "layer_map", "map": "explicit", "pairs": [[3, 5]]}],
    },
}


def stage(steps: int, **what: Any) -> dict[str, Any]:
    return {"steps": steps, "batch": 16, "optimiser": OPTIMISER, "checkpoint": {"every": 1000}, **what}


def main() -> None:
    torch.set_num_threads(2)
    losses: dict[str, list[float]] = {name: [] for name in ARMS}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for name, config in (("teacher", TEACHER), ("student", STUDENT)):
            (folder / f"{name}.json").write_text(json.dumps({**config, "seed": 0}))
        whole = run(
            {
                "data": DATA,
                "student": {"start": f"config:{folder / 'teacher.json'}"},
                "train": [stage(TEACHER_STEPS, objective=["cross_entropy"])],
                "evaluate": ["perplexity"],
                "export": "safetensors",
            },
            name="teacher",
            runs=folder,
        )
        for seed in SEEDS:
            (folder / f"student-{seed}.json").write_text(json.dumps({**STUDENT, "seed": seed + 1}))
            for name, what in ARMS.items():
                done = run(
                    {
                        "seed": seed,
                        "data": DATA,
                        "teacher": f"path:{whole.path / 'student'}",
                        "student": {"start": f"config:{folder / f'student-{seed}.json'}"},
                        "train": [stage(TRANSFER_STEPS, **what), stage(FIT_STEPS, objective=["cross_entropy"])],
                        "evaluate": ["perplexity"],
                    },
                    name=f"{name.replace(' ', '-')}-{seed}",
                    runs=folder,
                )
                losses[name].append(math.log(done.summary["student"]["perplexity"]))
                print(seed, name, losses[name][-1], flush=True)
    found = {
        "teacher_loss": math.log(whole.summary["student"]["perplexity"]),
        "losses": losses,
        **{name: spread(values) for name, values in losses.items()},
        "hidden states below outputs": [b - a for a, b in zip(losses["hidden states"], losses["outputs"], strict=True)],
        "relations below outputs": [b - a for a, b in zip(losses["relations"], losses["outputs"], strict=True)],
    }
    print(found)
    record("layer_transfer", found)


if __name__ == "__main__":
    main()
