"""compare: finished runs side by side, paired over held-out documents."""

import math
from pathlib import Path
from typing import Any

from limbeck.errors import Refused
from limbeck.recipe import load
from limbeck.store import load_tensors, read_json
from limbeck.terminal import columns
from limbeck.text.show import duration, number, percent
from limbeck.workspace import computed, first_difference


def compare(folders: list[Path], anyway: bool) -> dict[str, Any]:
    """What is equal, what differs, and every run's distance to the best, with its standard error over documents.

    Raises:
        Refused: fewer than two runs that looked at the same held-out text.
    """
    found = [entry(folder) for folder in folders]
    first = found[0]
    same = [e for e in found if e["held_out"] == first["held_out"] or anyway]
    left = [e for e in found if e not in same]
    if len(same) < 2:
        raise Refused(
            "compare",
            ", ".join(f.name for f in folders),
            "two finished runs on the same held-out text",
            f"{len(same)}",
            "limbeck list run; --anyway adds them, marked",
        )
    best = min(same, key=lambda e: e["kl"] if e["kl"] is not None else math.inf)
    rows = [["run", "KL to teacher", "top-1, %", "against the best, paired over documents", "time"]]
    for e in sorted(same, key=lambda e: e["kl"] if e["kl"] is not None else math.inf):
        mark = "" if e["held_out"] == first["held_out"] else " (other held-out text)"
        rows.append(
            [
                e["run"] + mark,
                number(e["kl"], 3),
                percent(e["top1"], 1).removesuffix(" %"),
                "best" if e is best else paired(e, best),
                duration(e["seconds"]),
            ]
        )
    differs = [f"{e['run']}: {d}" for e in same[1:] if (d := first_difference(e["recipe"], first["recipe"]))]
    lines = [
        f"comparable: {len(same)} runs; first differences from {first['run']}: {'; '.join(differs) or 'none'}",
        *(f"  {line}" for line in columns(rows, {1, 2})),
    ]
    lines += [f"  left out: {e['run']}, other held-out text; --anyway adds it, marked" for e in left]
    return {
        "schema": "limbeck.compare/1",
        "best": best["run"],
        "runs": [{k: v for k, v in e.items() if k not in ("recipe", "documents")} for e in same],
        "left_out": [e["run"] for e in left],
        "lines": lines,
    }


def entry(folder: Path) -> dict[str, Any]:
    """A finished run's figures, and its KL by held-out document."""
    if not (folder / "summary.json").is_file():
        raise Refused("run", str(folder), "a finished run", "one that was stopped", f"limbeck resume {folder.name}")
    summary, place = read_json(folder / "summary.json"), folder / "tables" / "student"
    if not place.is_dir() or "kl" not in (table := load_tensors(place / "table.safetensors")):
        raise Refused("compare", folder.name, "a run with held-out rows and a teacher", "no KL to a teacher", "leave it out")
    documents: dict[str, list[float]] = {}
    names = read_json(place / "timing.json")["documents"]
    for row, value in zip(table["row"].tolist(), table["kl"].double().tolist(), strict=True):
        documents.setdefault(names[row], []).append(value)
    return {
        "run": folder.name,
        "kl": float(table["kl"].double().mean()),
        "top1": float((table["best"] == table["teacher_best"]).double().mean()),
        "seconds": summary.get("wall_seconds"),
        "seed": summary.get("seed"),
        "held_out": read_json(folder / "steps" / "inputs.json")["held-out rows"],
        "documents": documents,
        "recipe": computed(load(folder / "recipe.yaml")),
    }


def paired(mine: dict[str, Any], best: dict[str, Any]) -> str:
    """Mean difference of KL over documents both have seen, with two standard errors either way; of other texts nothing can be said."""
    if mine["held_out"] != best["held_out"]:
        return "not paired: other held-out text"
    means = [{name: sum(values) / len(values) for name, values in run["documents"].items()} for run in (mine, best)]
    gaps = [means[0][name] - means[1][name] for name in means[0]]
    if len(gaps) < 2:
        return "not paired: one document"
    mean = sum(gaps) / len(gaps)
    error = math.sqrt(sum((g - mean) ** 2 for g in gaps) / (len(gaps) - 1) / len(gaps))
    return f"{mean:+.4f} ({mean - 2 * error:.4f} to {mean + 2 * error:.4f})" + (", cannot be told apart" if abs(mean) < 2 * error else "")
