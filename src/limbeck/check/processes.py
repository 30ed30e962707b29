"""Two processes that train together give the gradient of one: every objective, forward and alignment under DDP with gloo, on this machine.

`python -m limbeck.check.processes RANK FOLDER SEED ROOM.KIND ...` is one of the two; they meet in a file of the folder.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn

from limbeck.check import locate
from limbeck.check.contract import NotClaimed, close
from limbeck.check.models import Trial
from limbeck.check.window import SAME, apart, trial_of
from limbeck.signals import Batch
from limbeck.train.window import count, share

NUM = 2
TIMEOUT_SECONDS = 600


class Share(nn.Module):
    """A part of a window as one module: what DDP wraps must run all that the backward pass will touch, lazy heads too."""

    def __init__(self, trial: Trial):
        super().__init__()
        self.trial, self.models = trial, trial.models
        self.learned = nn.ModuleList(module for module in trial.running.learned if module is not None)

    def forward(self, part: Batch, counts: Sequence[int]) -> Tensor:
        return share(self.trial.running, self.models, part, 0, counts)[0]


def together(names: Sequence[str], seed: int = 0) -> dict[str, str | None]:
    """`room.kind` -> what is wrong with it, "" where nothing is, None where it is not for text models, or for several processes.

    Raises:
        RuntimeError: the processes did not end well, with what they said last.
    """
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **({"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {})}
        environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
        commands = [[sys.executable, "-m", __name__, str(rank), folder, str(seed), *names] for rank in range(NUM)]
        running = [subprocess.Popen(c, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for c in commands]
        try:
            said = [process.communicate(timeout=TIMEOUT_SECONDS) for process in running]
        finally:
            for process in running:
                process.kill()
    for process, (_, error) in zip(running, said, strict=True):
        if process.returncode:
            raise RuntimeError(f"a process of two ended with {process.returncode}: {error.strip()[-500:]}")
    return json.loads(said[0][0].splitlines()[-1])


def held(component: Any, rank: int, seed: int) -> str | None:
    """Runs this rank's part, and compares the common gradient with that of the whole window."""
    try:
        apart(component)
        trial = trial_of(component, seed)
    except NotClaimed:
        return None
    whole, turn = trial.whole[0], trial.running.turn
    with trial.models.turn(turn.trains, turn.only, turn.freeze, turn.through):
        module = nn.parallel.DistributedDataParallel(Share(trial), find_unused_parameters=True)
        total = module(trial.batch.cut(NUM)[rank], count(turn, trial.batch))
        (NUM * total).backward()  # DDP takes the mean over processes, and a window is a sum
        found = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for _, p in trial.parameters()])
    for _, parameter in trial.parameters():
        parameter.grad = None
    try:
        close(found, whole, SAME, "the gradient of two processes against that of one")
    except AssertionError as error:
        return str(error)
    return ""


def main(rank: int, folder: str, seed: int, names: Sequence[str]) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=NUM)
    found = {name: held(locate(name).example(), rank, seed) for name in names}
    distributed.barrier()
    distributed.destroy_process_group()
    print(json.dumps(found))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4:])
