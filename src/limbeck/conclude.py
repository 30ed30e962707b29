"""What came of a run: summary.json with the verdict, report.html, and the model card."""

from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from limbeck.data.base import Rows
from limbeck.export._card import model_card
from limbeck.export.base import Parcel
from limbeck.export.report import render, verdict
from limbeck.model.base import Role
from limbeck.recipe import Recipe
from limbeck.store import Log, is_sound, new_folder, read_json, write_json, write_text
from limbeck.workspace import environment, machine

BUILD = ("parameters", "decode_tokens_per_second", "prefill_tokens_per_second")
ARMS = ("teacher", "start", "student", "baseline")


def conclude(
    recipe: Recipe,
    folder: Path,
    parts: Mapping[str, Any],
    checks: Sequence[Mapping[str, Any]],
    rows: Rows,
    provenance: Sequence[Any],
    samples: Sequence[Mapping[str, Any]],
    log: Log,
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """Writes the summary and the report; returns the summary.

    Args:
        parts: what evaluators found: subjects with their metrics, and tables by name.
        checks: that were made, with results.
        rows: of the run.
        provenance: what was used.
        samples: held-out inputs with answers.
        log: of metrics.
        facts: wall_seconds, steps, closeness, ...
    """
    baseline = recipe.baseline[0] if recipe.baseline else None
    told = {renamed(name, baseline): renamed_in(value, baseline) for name, value in parts.items()}
    for arm in ("start", "baseline"):           # built as the student is, so as large and as fast; only it was measured
        if told.get(arm) and told.get("student"):
            told[arm] = {**{name: told["student"][name] for name in BUILD if name in told["student"]}, **told[arm], "same_build_as": "student"}
    if baseline and baseline != "text_only" and told.get("baseline"):
        told["baseline"] = {"name": baseline.replace("_", " "), **told["baseline"]}
    unit = facts.get("unit", "token")
    documents = len({row.source or row.key for row in rows.held_out})
    summary = {
        "schema": "limbeck.summary/1",
        "run": folder.name,
        "about": recipe.about,
        "date": date.today().isoformat(),
        "machine": machine(),
        "seed": recipe.seed,
        "unit": unit,
        "num_stages": len(recipe.train),
        **facts,
        "held_out": {"documents": documents, "targets": facts.get("held_out_targets")},
        **{arm: told.get(arm) for arm in ARMS},
        **{name: value for name, value in told.items() if name not in ARMS},
        "checks": list(checks),
        "provenance": [dict(p) for p in provenance],
        "not_measured": [
            *obedient(recipe, folder.name, told),
            *unmeasured(
                recipe, folder.name, facts.get("closeness") not in (None, "samples") and unit != "clip", unit, facts.get("writes", unit == "token")
            ),
        ],
        "references": [],
        "parts": dict(parts),
    }
    summary["verdict"] = verdict(summary)
    plan = (folder / "plan.txt").read_text(encoding="utf-8") if (folder / "plan.txt").is_file() else ""
    page = render(summary, (folder / "recipe.yaml").read_text(encoding="utf-8"), log.read(), plan, environment(), samples)
    write_text(folder / "report.html", page)
    write_json(folder / "samples.json", list(samples))
    write_text(folder / "README.md", model_card(summary, provenance))
    write_json(folder / "summary.json", summary)  # last: a run that has it is finished
    return summary


def exported(recipe: Recipe, folder: Path, make: Callable[[], Role], provenance: Sequence[Any]) -> list[dict[str, Any]]:
    """Writes the student into `student/`, once; returns the checks that its exporters made."""
    place, path = folder / "student", folder / "steps" / "export.json"
    for exporter in recipe.export:
        if not (is_sound(place) and path.is_file()):
            with new_folder(place) as new:
                found = exporter(Parcel(make(), new, {}, tuple(provenance)))
            write_json(path, found)
    return read_json(path) if recipe.export else []


def renamed(name: str, baseline: str | None) -> str:
    return "baseline" if baseline and name == baseline else name


def renamed_in(value: Any, baseline: str | None) -> Any:
    """The baseline's own name, where tables are keyed by subject, becomes `baseline`."""
    if isinstance(value, Mapping):
        return {renamed(str(key), baseline) if not str(key).endswith("_ms") else str(key): renamed_in(item, baseline) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [renamed_in(item, baseline) for item in value]
    return value


def unmeasured(recipe: Recipe, run: str, taught: bool, unit: str, writes: bool) -> list[dict[str, str]]:
    """What nobody has looked at, with the command that does; without a teacher nothing is to be compared with text or labels alone, and tasks
    are for models that write."""
    kinds = {evaluator.kind for evaluator in recipe.evaluate}  # type: ignore[attr-defined]
    out = [{"what": "spread over seeds; this is one seed", "command": f"limbeck run {run} seed={recipe.seed + 1}"}]
    if "tasks" not in kinds and writes:
        out.append({"what": "any task", "command": f"limbeck evaluate {run} tasks"})
    if not recipe.baseline and taught:
        other = "text_only" if writes or unit == "position" else "labels_only"
        out.append({"what": "the same student without the teacher", "command": f"limbeck run {run} 'baseline=[{other}]'"})
    return out


def obedient(recipe: Recipe, run: str, told: Mapping[str, Any]) -> list[dict[str, str]]:
    """What a judge was to say that went into a trap laid for it, with the command that asks another one."""
    out = []
    for i, evaluator in enumerate(recipe.evaluate):
        kind = evaluator.kind  # type: ignore[attr-defined]
        found = told.get(kind)  # of other evaluators a list, or nothing
        judge = (found.get("judge") or {}) if isinstance(found, Mapping) else {}
        if judge.get("followed"):
            what = f"{kind} by the judge {judge['model']}, which did what the texts before it asked for"
            out.append({"what": what, "command": f"limbeck run {run} evaluate.{i}.judge.model=ANOTHER"})
    return out


def refresh(folder: Path, samples: bool = True) -> str:
    """Writes report.html again from what the run's folder holds; returns the page."""
    summary, log = read_json(folder / "summary.json"), Log(folder / "metrics.jsonl")
    plan = (folder / "plan.txt").read_text(encoding="utf-8") if (folder / "plan.txt").is_file() else ""
    shown = read_json(folder / "samples.json") if samples else None
    page = render(summary, (folder / "recipe.yaml").read_text(encoding="utf-8"), log.read(), plan, read_json(folder / "environment.json"), shown)
    write_text(folder / "report.html", page)
    return page
