"""Peak memory of a process of its own that opens a model's folder and decodes: `python -m limbeck.evaluate._memory FOLDER CONTEXT NEW`."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from limbeck.model.opening import open_pretrained

TIMEOUT_SECONDS = 1800
logger = logging.getLogger(__name__)


def measured(folder: Path, context: int, new_tokens: int) -> dict[str, Any] | None:
    """Memory of opening a folder and writing some tokens after a context; None, with a warning, where that fails.

    `memory_bytes` is the peak; `memory` says how much of it Python and its libraries take before any model is there.
    """
    command = [sys.executable, "-m", __name__, str(folder.absolute()), str(context), str(new_tokens)]
    here = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=True, env={**os.environ, "PYTHONPATH": here})
        peak, before = json.loads(done.stdout.splitlines()[-1])
        return {"memory_bytes": int(peak), "memory": {"libraries": int(before)}}
    except (OSError, subprocess.SubprocessError, ValueError, LookupError, TypeError) as error:
        said = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        logger.warning("memory of %s was not measured: %s", folder.name, " ".join(x.strip() for x in said[-3:]) or "no answer")
        return None


def peak_bytes() -> int:
    """The most memory that this process had at once."""
    status = Path("/proc/self/status")
    if status.exists():  # not getrusage: on Linux it counts the process that started this one, too
        return next(1024 * int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def decode(folder: str, context: int, new_tokens: int) -> tuple[int, int]:
    """Opens a model as it was saved, writes some tokens after a context; says the peak, and what it was before."""
    from transformers import AutoModelForCausalLM, GenerationMixin

    assert AutoModelForCausalLM and GenerationMixin  # imported, so that they count as libraries
    before = peak_bytes()
    module = open_pretrained(f"path:{folder}", dtype="auto").module
    prompt = torch.arange(context)[None] % module.config.vocab_size
    with torch.no_grad():
        module.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            do_sample=False,
            num_beams=1,
            use_cache=True,
            pad_token_id=0,
        )
    return peak_bytes(), before


if __name__ == "__main__":
    sys.stdout.write("\n" + json.dumps(decode(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))) + "\n")
