"""What does merging three checkpoints cost, in memory and in time? Three sets of weights the size of SmolLM2-135M in float32 (random, as changes of
one another), as a run keeps them, one embedding shared by its two ends. `python benchmarks/merging.py`, one thread.

Memory: each merge in a process of its own, its peak less what stood there before, beside the bound: 1.3 times the largest group (the same tensor of
all that is read) and 200 MiB. Time: the same, once, with reading and writing.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from memory import apart, extra
from record import record

from limbeck.component import find
from limbeck.merge.base import Merge, merge
from limbeck.store import load_state, save_state

WIDTH, MLP, BLOCKS, VOCAB, KEYS = 576, 1536, 30, 49_152, 192
KINDS = ("average", "slerp", "task_arithmetic", "ties", "dare", "sce", "arcee_fusion")
MIB = 1 << 20


def write(folder: Path) -> None:
    """A start and three models."""
    shapes = {"embed": (VOCAB, WIDTH), "norm": (WIDTH,)}
    for i in range(BLOCKS):
        square = {f"{i}.q": (WIDTH, WIDTH), f"{i}.k": (KEYS, WIDTH), f"{i}.v": (KEYS, WIDTH), f"{i}.o": (WIDTH, WIDTH)}
        shapes |= {**square, f"{i}.gate": (MLP, WIDTH), f"{i}.up": (MLP, WIDTH), f"{i}.down": (WIDTH, MLP), f"{i}.norm": (WIDTH,)}
    random = torch.Generator().manual_seed(0)
    start = {name: torch.randn(shape, generator=random) * 0.02 for name, shape in shapes.items()}
    for model in range(4):
        state = start if not model else {name: x + 1e-3 * torch.randn(x.shape, generator=random) for name, x in start.items()}
        (folder / str(model)).mkdir()
        save_state(folder / str(model), "state", {**state, "head": state["embed"]})


def merged(kind: str, folder: Path) -> None:
    """As a run merges: each tensor is read, merged and written before the next."""
    how = find(Merge, kind)()  # type: ignore[type-abstract]
    start, *models = (load_state(folder / str(model), "state", later=True) for model in range(4))
    with tempfile.TemporaryDirectory(dir=folder) as out:
        save_state(out, "state", merge(how, models[: 2 if how.pair else 3], start))


def bound(kind: str) -> int:
    """Bytes that its peak may take beyond what stood there before."""
    how = find(Merge, kind)  # type: ignore[type-abstract]
    return int(1.3 * 4 * VOCAB * WIDTH * ((2 if how.pair else 3) + how.needs_base)) + 200 * MIB


def main() -> None:
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, sys.argv[0], "write", folder], check=True)
        for kind in KINDS:
            began = time.perf_counter()
            peak = apart(kind, folder)
            found[kind] = {"extra_bytes": peak, "bound_bytes": bound(kind), "seconds": time.perf_counter() - began}
            print(kind, json.dumps(found[kind]), flush=True)
    record("merging", {"parameters": "134.5 M", "models": 3, "merges": found})


if __name__ == "__main__":
    torch.set_num_threads(1)
    if len(sys.argv) > 2 and sys.argv[1] == "write":
        write(Path(sys.argv[2]))
    elif len(sys.argv) > 2:
        print(extra(lambda: merged(sys.argv[1], Path(sys.argv[2]))))
    else:
        main()
