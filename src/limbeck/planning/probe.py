"""What this machine can do, measured once and kept."""

import os
import platform
import shutil
import time
from dataclasses import asdict, dataclass

import torch

from limbeck.store import home, read_json, write_json
from limbeck.workspace import runs_folder

PROBE_SECONDS = 5.0
ASSUMED_FLOPS = 5e10
"""Where nothing was measured: two cores of a common laptop."""


@dataclass(frozen=True)
class Machine:
    """A machine as the planner sees it."""

    cpus: int
    threads: int
    memory_bytes: int
    flops: float
    """Multiplications and additions a second, in float32 matrix products of the size of a small model's."""
    measured: bool
    accelerator: str = "none"
    accelerator_bytes: int = 0

    @property
    def free_disk_bytes(self) -> int:
        """Where runs are written."""
        folder = runs_folder().absolute()
        return shutil.disk_usage(next(place for place in (folder, *folder.parents) if place.exists())).free


def machine(probe: bool = True) -> Machine:
    """This machine: from the kept probe, from one made now, or with an assumed speed."""
    path, threads = home() / "probe.json", torch.get_num_threads()
    facts = {"host": platform.node(), "cpus": os.cpu_count(), "threads": threads, "torch": torch.__version__}
    if path.is_file() and (kept := read_json(path)).get("facts") == facts:
        return Machine(**kept["machine"])
    cuda = torch.cuda.is_available()
    found = Machine(
        os.cpu_count() or 1,
        threads,
        os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        measured_flops() if probe else ASSUMED_FLOPS,
        probe,
        torch.cuda.get_device_name(0) if cuda else "none",
        torch.cuda.get_device_properties(0).total_memory if cuda else 0,
    )
    if probe:
        write_json(path, {"facts": facts, "machine": asdict(found)})
    return found


def measured_flops(seconds: float = PROBE_SECONDS) -> float:
    """Median over short stretches of matrix products, after a warm-up."""
    a, b = torch.randn(1024, 768), torch.randn(768, 2048)
    rates, end = [], time.perf_counter() + seconds
    a @ b
    while time.perf_counter() < end:
        began = time.perf_counter()
        for _ in range(8):
            a @ b
        rates.append(8 * 2 * 1024 * 768 * 2048 / (time.perf_counter() - began))
    return sorted(rates)[len(rates) // 2]
