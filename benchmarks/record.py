"""Writes a benchmark's result with where and how it was measured."""

import datetime
import json
import os
import platform
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers


def record(name: str, found: dict[str, Any]) -> None:
    """Prints and keeps a result."""
    where = {
        "date": datetime.date.today().isoformat(),
        "command": " ".join(["python", *sys.argv]),
        "machine": f"{os.cpu_count()} CPU cores, {platform.machine()}",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }
    path = Path(__file__).parent / "results" / f"{name}-{where['date']}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({**where, **found}, indent=1) + "\n")
    print(f"wrote {path}")


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and greatest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "n": len(values)}
