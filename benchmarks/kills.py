"""Does a run that is killed three times end like one that was not? The quickstart with a few steps, and three real SIGKILLs."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from record import record

from limbeck.store import sha256_file

CHANGES = ("train.0.steps=24", "train.0.checkpoint={every: 5}", "evaluate=[agreement]")


def start(runs: Path) -> subprocess.Popen[bytes]:
    """Begins the run, or goes on with it: the same command."""
    command = [sys.executable, "-m", "limbeck", "run", "quickstart", *CHANGES]
    return subprocess.Popen(command, env={**os.environ, "LIMBECK_RUNS": str(runs)}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def steps(runs: Path, arm: str) -> int:
    path = runs / "quickstart-1" / "metrics.jsonl"
    lines = path.read_text().splitlines()[:-1] if path.is_file() else []
    return len({r["step"] for r in map(json.loads, lines) if r["arm"] == arm})


def kill(runs: Path, when: Callable[[], bool]) -> None:
    process = start(runs)
    while not when():
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()


def result(runs: Path) -> dict[str, object]:
    """Hash of the exported weights, all metrics but clocks, and what lies in the run's folder."""
    folder = runs / "quickstart-1"
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {
        "weights": sha256_file(folder / "student" / "model.safetensors"),
        "metrics": [r for r in records if "seconds" not in r["name"]],
        "files": sorted(str(path.relative_to(folder)) for path in folder.rglob("*")),
    }


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        whole, killed = Path(place) / "whole", Path(place) / "killed"
        assert start(whole).wait() == 0
        kill(killed, lambda: steps(killed, "student") >= 8)
        kill(killed, lambda: steps(killed, "student") >= 17)
        kill(killed, lambda: steps(killed, "text_only") >= 7)
        assert start(killed).wait() == 0
        a, b = result(whole), result(killed)
    found = {"kills": 3, "records": len(a["metrics"]), **{f"same_{name}": a[name] == b[name] for name in a}}  # type: ignore[arg-type]
    found["files_of_one_only"] = sorted(set(a["files"]) ^ set(b["files"]))  # type: ignore[call-overload]
    print(found)
    record("kills", found)


if __name__ == "__main__":
    main()
