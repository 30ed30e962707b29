"""How good is a student that learns from what a cache keeps? Held-out KL to the dense teacher SmolLM2-135M-Instruct, after 200 steps, of a
small student with its tokenizer, from scratch, three seeds. `python benchmarks/cache_students.py`, one thread.

All arms of a seed have the same first weights, rows, order, steps and optimiser: what is kept of the teacher differs, and nothing else.
The dense arm is told the teacher's final states in 32 bits, which is what it says live. Other schemes are those of `cache_gradients.py`.
"""

import functools
import json
import statistics
import time
from typing import Any

import torch
from cache_gradients import MODEL, SCHEMES, Sources, fitted, renormalised
from record import record, spread
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from limbeck.component import validate
from limbeck.data.base import Part, Rows
from limbeck.evaluate._scoring import score
from limbeck.model.anatomy import anatomy
from limbeck.model.base import Models
from limbeck.model.text import Text
from limbeck.numerics import Streams
from limbeck.planning import read
from limbeck.recipe import load
from limbeck.roles import Cast
from limbeck.signals import Logits, Row
from limbeck.store import Cache
from limbeck.teacher._capture import FIRST_ROWS
from limbeck.teacher.cached import Cached
from limbeck.train.loop import Loop, World
from limbeck.train.stage import Stage

STEPS, BATCH, LENGTH, SEEDS, K = 200, 4, 48, (0, 1, 2), 64
TRAIN_ROWS, HELD_OUT_ROWS_A_DOCUMENT = 400, 4
WIDTH, BLOCKS, HEADS = 64, 2, 4
OPTIMISER = {"lr": 3e-3, "warm_up": 0.1, "decay": "cosine", "floor": 0.1}
DENSE, LABELS, SCHEME = "dense teacher", "labels only", "DistillKit's scheme, recommended"


def fresh(seed: int, teacher: Any) -> Text:
    torch.manual_seed(seed)
    sizes = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_hidden_layers": BLOCKS, "vocab_size": teacher.vocab}
    heads = {"num_attention_heads": HEADS, "num_key_value_heads": HEADS, "max_position_embeddings": LENGTH, "tie_word_embeddings": True}
    module = LlamaForCausalLM(LlamaConfig(**sizes, **heads, bos_token_id=None, eos_token_id=None, pad_token_id=None))
    return Text(module, teacher.tokenizer, anatomy(module))


def sources(rows: list[Row], hidden: dict[str, Tensor], role: Any) -> Sources:
    """Arm -> what is kept of each row."""
    found = Sources(rows, hidden, role)
    found.made(DENSE, 4.0 * role.head.weight.shape[-1], lambda row: Logits(hidden[row.key], role.head, False))
    found.kept("hidden states, 8 bits", Cached(model=MODEL, bits=8))
    found.kept(f"top {K} + tail, 8 bits", Cached(model=MODEL, keep="top_k", k=K, bits=8))
    found.made(f"top {K}, renormalised", 4.0 * K, lambda row: renormalised(found.log_p(row), K))
    found.kept(f"{K + 2} draws", Cached(model=MODEL, keep="sampled", k=K + 2, bits=8))
    k, exact, powers, _ = SCHEMES[SCHEME]
    found.made(SCHEME, 2 * k + 2 * exact + 4 * (powers + 1), lambda row: fitted(found.log_p(row), *SCHEMES[SCHEME]))
    found.measure()
    return found


def trained(arm: str, seed: int, rows: tuple[Row, ...], found: Sources) -> tuple[Text, float]:
    """A student, and the median seconds of its steps."""
    student, seconds = fresh(seed, found.role), []
    stage: dict[str, Any] = {"steps": STEPS, "batch": BATCH, "objective": ["cross_entropy"], "optimiser": OPTIMISER}
    world = functools.partial(World, rows=Rows((Part(rows),)), streams=Streams(seed))
    if arm == LABELS:
        loop = Loop(validate(Stage, stage, "benchmark"), world(Models({"student": student})))
    else:
        said = found.said[arm]
        dense = isinstance(next(iter(said.values())), Logits)
        names = {"hidden": "hidden"} if dense else {"ids": "ids", "log_probs": "log_probs", "tail": "tail"}
        kept = {key: {name: getattr(x, field) for name, field in names.items()} for key, x in said.items()}
        teacher = Cached(model=MODEL, keep="hidden" if dense else "top_k")
        found.role.offers = frozenset(teacher.offers)
        stage["objective"] = ["forward_kl"]
        loop = Loop(validate(Stage, stage, "benchmark"), world(Models({"student": student, "teacher": found.role}), teacher=teacher, kept=kept))

    def hear(loop: Loop, records: list[dict[str, Any]]) -> None:
        seconds.extend(record["sum"] for record in records if record["name"] == "step_seconds")

    loop.run(hear)
    return student, statistics.median(seconds)


def main() -> None:
    torch.set_num_threads(1)
    recipe = load("quickstart", [f"data.1.length={LENGTH}", f"data.1.shortest={LENGTH}"])
    cast = Cast(recipe, Cache())
    role: Any = cast.originals["teacher"]
    every = read(recipe, cast, ".")
    by_source: dict[str, list[Row]] = {}
    for row in every.held_out:
        by_source.setdefault(row.source, []).append(row)
    held = [row for rows in by_source.values() for row in rows[:HELD_OUT_ROWS_A_DOCUMENT]]
    shuffled = torch.randperm(len(every.train), generator=torch.Generator().manual_seed(0)).tolist()
    first, rows = shuffled[:FIRST_ROWS], tuple(every.train[i] for i in shuffled[FIRST_ROWS : FIRST_ROWS + TRAIN_ROWS])
    asked, asking, hidden = [*(every.train[i] for i in first), *rows, *held], Cached(model=MODEL), {}
    with torch.no_grad():
        for i in range(0, len(asked), asking.at_once):
            hidden |= {key: said["hidden"] for key, said in asking.capture(asked[i : i + asking.at_once], role).items()}
        found = sources(asked[: FIRST_ROWS + len(rows)], hidden, role)
    print(json.dumps(found.facts, indent=1), flush=True)

    def held_out_kl(student: Text) -> float:
        kl = score(student, held, lambda some, view: Logits(torch.cat([hidden[row.key] for row in some]), role.head, False)).kl
        assert kl is not None
        return float(kl.double().mean())

    losses: dict[str, list[float]] = {}
    seconds: dict[str, list[float]] = {}
    for seed in SEEDS:
        losses.setdefault("before", []).append(held_out_kl(fresh(seed, role)))
        for arm in (*found.said, LABELS):
            began = time.perf_counter()
            student, pace = trained(arm, seed, rows, found)
            losses.setdefault(arm, []).append(held_out_kl(student))
            seconds.setdefault(arm, []).append(pace)
            print(seed, arm, losses[arm][-1], pace, time.perf_counter() - began, flush=True)
    above = {arm: spread([a - b for a, b in zip(kls, losses[DENSE], strict=True)]) for arm, kls in losses.items() if arm != DENSE}
    setting = {"steps": STEPS, "batch": BATCH, "length": LENGTH, "train_rows": len(rows), "width": WIDTH, "blocks": BLOCKS, "optimiser": OPTIMISER}
    sizes = {"student_parameters": sum(p.numel() for p in fresh(0, role).parameters()), "held_out_targets": sum(len(hidden[row.key]) for row in held)}
    kls = {arm: spread(values) for arm, values in losses.items()}
    record("cache_students", {"model": MODEL, **setting, **sizes, "sources": found.facts, "seeds": losses, "kl": kls, "kl_above_dense": above})


if __name__ == "__main__":
    main()
