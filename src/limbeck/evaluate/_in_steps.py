"""Samples in so many steps: whether a student was taught to make them so, and how their figures are told."""

from collections.abc import Mapping, Sequence
from typing import Any

from limbeck.errors import Refused
from limbeck.evaluate._pictures import in_steps
from limbeck.evaluate._spread import NAMES


def refuse_untaught(sampled: Mapping[str, Any], forwards: Sequence[Any], where: str) -> None:
    """Refuses to sample a student as a consistency function that was taught by other forwards alone, or with other `rungs` or `boundary`.

    One that was may be sampled along the path of the probability flow: that tells what it would be otherwise.
    """
    if sampled["few"] != "consistency" or not forwards:
        return
    taught = next((forward for forward in forwards if dict(forward)["kind"] == "consistency"), None)
    if taught is None and all(dict(forward)["kind"] == "noised" for forward in forwards):
        got = "noised, which teaches a denoiser of many steps"
        raise Refused("forward", f"{where}.few", "a student taught by forward: consistency", got, "write few: flow")
    for field in ("rungs", "boundary") if taught is not None else ():
        mine, theirs = sampled[field], getattr(taught, field)
        if mine != theirs:
            expected, do = f"{theirs}, as the student was taught with", f"write the same {field} at both"
            raise Refused("forward", f"{where}.{field}", expected, f"{mine}", do)


def table(found: Mapping[int, Mapping[str, float]], steps: Sequence[int], many: int | None, by_class: bool, against: str) -> dict[str, Any]:
    """Rows of the table of a run, at each number of `steps`; of a subject with `many` steps always those of the many."""
    rows: dict[str, Any] = {}
    for key, (title, less) in NAMES.items():
        for num in steps if key != ("frechet" if by_class else "class_frechet") else ():
            value = found[num if many is None else many].get(key)
            if value is not None:
                unit = "ms" if key == "milliseconds" else ""
                rows[f"{title}, {in_steps(num)}{against}"] = {"value": value, "error": None, "unit": unit, "lower_is_better": less}
    return rows
