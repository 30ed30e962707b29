"""Figures of pairs of models, beside those of a control."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from limbeck.evaluate._intervals import Figure, interval
from limbeck.numerics import kl, log_probs, mix

SIGN = {"js_divergence": -1.0}
"""Measures where less is closer."""
NATURAL = ("text_only", "start")
"""Subjects that no teacher has taught."""
Values = list[float | None]


def js(p: Float[Tensor, "target vocab"], q: Float[Tensor, "target vocab"]) -> Float[Tensor, " target"]:
    """Jensen-Shannon divergence in bits, over the ids that both heads have: 0 for equal ones, 1 where nothing is shared."""
    num = min(p.shape[-1], q.shape[-1])
    log_p, log_q = (log_probs(x[:, :num].double()) for x in (p, q))
    middle = mix(log_p, log_q, 0.5)
    return (kl(log_p, middle) + kl(log_q, middle)).clamp(min=0) / (2 * math.log(2))


def told(
    names: Sequence[str],
    references: Sequence[str],
    control: str | None,
    documents: Sequence[str],
    values: Mapping[tuple[str, str], Mapping[str, Values]],
    seed: int,
) -> dict[str, Any]:
    """Figures by subject, and the part `similarity` of the summary.

    Args:
        references: who is compared with; figures of subjects are those of the first.
        control: who was not distilled; none: a subject that no teacher has taught.
        documents: of each prompt.
        values: (name, reference) -> measure -> its value for each prompt.
    """
    first, *others = references
    free = [name for name in names if name not in references]
    control = control or next((name for name in NATURAL if name in free), None)
    main = next((name for name in ("student", *free) if name in free and name != control), None)

    def over(of: Values) -> Figure:
        return interval(of, documents, seed)

    def closer(measure: str, a: Values, b: Values) -> Figure:
        return over([None if x is None or y is None else SIGN.get(measure, 1.0) * (x - y) for x, y in zip(a, b, strict=True)])

    measures, preference, out = [], [], {name: dict[str, Any]() for name in names}
    for measure in dict.fromkeys(m for name in names for m in values[name, first]):
        of = {name: values[name, first][measure] for name in names if measure in values[name, first]}
        entry: dict[str, Any] = {"name": measure, **{name: over(each) for name, each in of.items()}}
        for name in of:
            out[name] |= {f"{measure}{end}": entry[name][key] for end, key in (("", "value"), ("_low", "low"), ("_high", "high"))}
        if main in of and control in of:
            entry["closer"] = closer(measure, of[main], of[control])
        measures.append(entry)
        for other in others:
            both = {name: closer(measure, each, values[name, other][measure]) for name, each in of.items() if measure in values[name, other]}
            preference.append({"name": measure, "reference": other, **both})
            for name, each in both.items():
                out[name].setdefault(f"{measure}_preference", each["value"])
    part = {"reference": first, "control": control, "student": main, "prompts": len(documents), "measures": measures}
    return {**out, "similarity": part | ({"preference": preference} if others else {})}
