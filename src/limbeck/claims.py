"""Measures what a recipe claims: every arm at every value of the grid on every seed, compared seed by seed.

`python -m limbeck.claims NAME ...` writes `recipes/claims/NAME.json`; runs are kept, so that a stopped measurement goes on.
"""

import datetime
import json
import os
import platform
import shutil
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from limbeck.component import canonical
from limbeck.errors import Failed, Refused
from limbeck.recipe import SHIPPED, Claim, Recipe, find, load
from limbeck.significance import compare
from limbeck.start import run
from limbeck.store import sha256_json, write_json
from limbeck.workspace import computed, runs_folder

RECORDS = SHIPPED / "claims"
ERRORS = 2.0
"""Standard errors that a mean difference must exceed."""


def changes(claim: Claim, arm: str, value: Any, seed: int) -> list[str]:
    """What one run changes in the recipe, as on the command line."""
    (path,) = claim.grid
    every = {"claim": None, **claim.setting, **claim.arms[arm], path: value, "seed": seed}
    return [f"{key}={json.dumps(item)}" for key, item in every.items()]


def identity(name: str) -> str:
    """Hash of all that a record speaks of: what is prepared, and the recipe of every arm. A record with another hash is stale."""
    claim = claim_of(name)
    (values,) = claim.grid.values()
    arms = {arm: beyond_defaults(load(name, changes(claim, arm, values[0], claim.seeds[0]))) for arm in claim.arms}
    return sha256_json({"claim": canonical(claim), "arms": arms})


def beyond_defaults(recipe: Recipe) -> dict[str, Any]:
    """What a recipe computes, as plain data; a field that has been added since, and stands at its default, changes nothing."""
    optional = {name: field for name, field in Recipe.model_fields.items() if not field.is_required()}
    defaults = {name: canonical(field.get_default(call_default_factory=True)) for name, field in optional.items()}
    return {name: value for name, value in computed(recipe).items() if name not in defaults or value != defaults[name]}


def borrow(folder: Path, recipe: Recipe, others: Sequence[Path]) -> None:
    """Takes the trained stages of another run, where a new one would train just the same: it differs in what is looked at only."""

    def trained(one: Recipe) -> dict[str, Any]:
        return {name: value for name, value in computed(one).items() if name not in ("result", "evaluate", "export")}

    same = next((other for other in others if not folder.exists() and trained(load(other / "recipe.yaml")) == trained(recipe)), None)
    if same is not None:
        shutil.copytree(same / "results", folder / "results")


def claim_of(name: str) -> Claim:
    claim = load(name).claim
    if claim is None:
        raise Refused("claim", name, "a recipe with a claim", "none", "limbeck list paper")
    return claim


def record_of(name: str) -> dict[str, Any] | None:
    """What was found, if it was measured."""
    path = RECORDS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def compared(claim: Claim, found: Mapping[str, Sequence[float]]) -> tuple[str, dict[str, dict[str, Any]]]:
    """holds, not shown or reversed; and the differences by the arm that is compared with, positive where the claim's arm is better.

    It holds over an arm if it is better on every seed, by more than two standard errors on average; it is reversed if it is worse so.
    """
    differences = {}
    for arm, other in claim.pairs:
        each = [(ours - theirs) * (1 if claim.greater else -1) for ours, theirs in zip(found[arm], found[other], strict=True)]
        mean, error = statistics.fmean(each), statistics.stdev(each) / len(each) ** 0.5
        clear = abs(mean) > ERRORS * error and len({x > 0 for x in each}) == 1 and 0 not in each
        verdict = "not shown" if not clear else "holds" if mean > 0 else "reversed"
        differences[other] = {"arm": arm, "each": each, "mean": mean, "standard_error": error, "verdict": verdict}
    verdicts = {one["verdict"] for one in differences.values()}
    return "holds" if verdicts == {"holds"} else "reversed" if verdicts == {"reversed"} else "not shown", differences


def ranked(found: Mapping[str, Sequence[float]], greater: bool) -> dict[str, Any]:
    """All arms by their ranks on each seed, as plain data."""
    by_rank = compare(found, greater)
    return {**by_rank._asdict(), "apart": [list(pair) for pair in by_rank.apart()]}


def value_of(summary: Mapping[str, Any], metric: str) -> float:
    """A number of a summary by its path."""
    place: Any = summary
    for word in metric.split("."):
        if not isinstance(place, Mapping) or word not in place:
            raise Refused("claim", f"claim.metric  {metric}", "a path in the summary of a run", f"nothing called {word}", "look at a summary.json")
        place = place[word]
    return float(place)


def minutes(summaries: Sequence[Mapping[str, Any]], clock: str) -> float | None:
    """What all runs took, by one of their clocks; None where a run did not have it."""
    seconds = [summary.get(clock) for summary in summaries]
    return None if None in seconds else round(sum(seconds) / 60, 1)  # type: ignore[arg-type]


def measure(name: str) -> dict[str, Any]:
    """Runs all arms, and says what came of them."""
    claim, own = claim_of(name), Path(name).stem
    summaries = [run(plain, name=f"claim-{own}-{key}", base=find(name).parent).summary for key, plain in claim.prepare.items()]
    ((path, values),) = claim.grid.items()
    tables: dict[str, dict[str, list[float]]] = {}
    told: dict[tuple[str, str], dict[str, list[float]]] = {}
    done_before: list[Path] = []
    for arm in claim.arms:
        for value in values:
            for seed in claim.seeds:
                words = changes(claim, arm, value, seed)
                folder = runs_folder() / f"claim-{own}-{arm}-{value}-{seed}"
                borrow(folder, load(name, words), done_before)
                done = run(name, *words, name=folder.name)
                done_before.append(folder)
                summaries.append(done.summary)
                found = value_of(done.summary, claim.metric)
                tables.setdefault(arm, {}).setdefault(str(value), []).append(found)
                for further in claim.told:
                    told.setdefault((arm, str(value)), {}).setdefault(further, []).append(value_of(done.summary, further))
                print(f"{own}  {arm}  {path} {value}  seed {seed}: {claim.metric} {found:.4f}", flush=True)
    pick = max if claim.greater else min
    best = {arm: pick(table, key=lambda value, table=table: statistics.fmean(table[value])) for arm, table in tables.items()}
    verdict, differences = compared(claim, {arm: tables[arm][best[arm]] for arm in tables})
    return {
        "recipe": own,
        "found": verdict,
        "expects": claim.expects,
        "metric": claim.metric,
        "date": datetime.date.today().isoformat(),
        "command": f"make claims NAME={own}",
        "machine": f"{os.cpu_count()} CPU cores, {platform.machine()}",
        "torch": torch.__version__,
        "minutes": minutes(summaries, "wall_seconds"),
        "cpu_minutes": minutes(summaries, "cpu_seconds"),
        "identity": identity(name),
        "grid": {path: list(values)},
        "seeds": list(claim.seeds),
        "best": best,
        "arms": tables,
        "differences": differences,
        **({"ranks": ranked({arm: tables[arm][best[arm]] for arm in tables}, claim.greater)} if claim.ranks else {}),
        **({"told": {arm: told[arm, best[arm]] for arm in tables}} if claim.told else {}),
    }


def main(names: Sequence[str]) -> int:
    try:
        for name in names or sorted(path.stem for path in SHIPPED.glob("*.yaml") if load(path).claim is not None):
            record = measure(name)
            write_json(Path(RECORDS / f"{name}.json"), record)
            print(f"{name}: {record['found']}")
    except (Refused, Failed) as error:
        print(error, file=sys.stderr)
        return error.code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
