"""The model card: what a student was made of, what it inherits, and what was measured."""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from limbeck.text.show import for_report, visible

OBLIGATIONS = {
    "gemma": "Gemma Terms of Use: a distilled student is a Model Derivative; the terms and their use restrictions must be passed on with it.",
    "llama": "Llama Community License: keep the notice, and begin the model's name with Llama.",
    "cc-by-sa": "Share-alike: what is adapted from the data carries the same licence.",
    "gpl": "GPL data: look at what its licence says of derived works.",
}
"""What some licences ask of a student, by the beginning or a part of their name."""


LOADS = "Loads with `transformers`; it needs nothing of limbeck."
LOADS_CODE = (
    "Some blocks hold modules that `transformers` has not: their code lies beside the weights. Read it, then load with "
    "`trust_remote_code=True`; with limbeck installed, `limbeck.register()` makes that unnecessary."
)


def model_card(summary: Mapping[str, Any], provenance: Sequence[Mapping[str, Any]], own_code: bool = False, loads: str | None = None) -> str:
    """README.md with the front matter that hubs read: licence, base model, data sets. `own_code`: modules of its own lie beside the weights;
    `loads`: how it is opened, if not so."""
    models = [p for p in provenance if p.get("role") != "data"]
    data = [p for p in provenance if p.get("role") == "data"]
    head = {
        "library_name": next((name for name in ("timm", "diffusers") if name in (loads or "")), "transformers"),
        "license": licence(models),
        "base_model": names(models),
        "datasets": names(data),
        "tags": ["distillation", "limbeck"],
    }
    lines = ["---", yaml.safe_dump({k: v for k, v in head.items() if v}, sort_keys=False).strip(), "---", "", "# A distilled model", ""]
    verdict = summary.get("verdict")
    lines += [for_report(str(verdict)), ""] if verdict else []
    lines += [
        f"{loads or (LOADS_CODE if own_code else LOADS)} How it was made and measured: the run's `recipe.yaml` and `report.html`.",
        "",
        "## Made of",
        "",
        "| part | name | revision | licence |",
        "| --- | --- | --- | --- |",
    ]
    rows = [(p.get("role"), p.get("name"), p.get("revision") or p.get("sha256"), p.get("licence") or "licence unknown") for p in provenance]
    lines += [f"| {' | '.join(map(cell, row))} |" for row in rows]
    duties = obligations(provenance)
    lines += ["", "## Licence", "", *[f"- {duty}" for duty in duties]] if duties else []
    return "\n".join(lines) + "\n"


def names(parts: list[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(str(p["name"]) for p in parts if p.get("name")))


def licence(models: list[Mapping[str, Any]]) -> str:
    """The licence of all models, if they have one and the same; else `other`: the table says which."""
    found = {str(p["licence"]).lower() if p.get("licence") else None for p in models}
    return found.pop() or "unknown" if len(found) == 1 else "other"


def obligations(provenance: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the licences ask, and which of them nobody knows."""
    out = []
    for p in provenance:
        text = str(p.get("licence") or "").lower()
        name = cell(p.get("name"))
        if not text:
            out.append(f"{name}: licence unknown. Find it out before you pass the student on.")
        out += [f"{name}: {duty}" for word, duty in OBLIGATIONS.items() if word in text]
    return list(dict.fromkeys(out))


def cell(value: Any) -> str:
    """Foreign text inside a Markdown table."""
    return visible(str(value or ""), 80).replace("|", "\\|").replace("<", "&lt;").replace("`", "'")
