"""Peak memory of one call, in a process of its own (Linux, glibc)."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from limbeck.evaluate._memory import peak_bytes

RETURNED_BYTES = 1 << 16
"""What is larger goes back to the system when it is freed: else a call could hide in what an earlier one has left."""


def apart(*words: str) -> int:
    """The number that the calling script prints when it is given these words, in a process of its own."""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(RETURNED_BYTES)}
    done = subprocess.run([sys.executable, sys.argv[0], *words], capture_output=True, text=True, check=True, env=environment)
    return int(done.stdout.splitlines()[-1])


def extra(work: Callable[[], Any]) -> int:
    """Bytes of its peak beyond what was there before."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from what is there now
    before = peak_bytes()
    work()
    return peak_bytes() - before
