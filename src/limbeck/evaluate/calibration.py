"""Whether stated probabilities are how often things come true."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch

from limbeck.evaluate._scoring import BINS, bin_of
from limbeck.evaluate.base import Evaluator, Exam, Table


class Calibration(Evaluator):
    r"""How far each subject's stated probability of its first choice is from how often that choice is right.

    $$ \mathrm{ECE} = \sum_{b=1}^{10} \frac{|B_b|}{N} \, \big| \mathrm{right}(B_b) - \mathrm{stated}(B_b) \big| $$

    over ten bins of the stated probability, each with its share of right first choices and the mean of what was stated. Right
    means the label: the text as it stands, not the teacher. The error of few targets is biased upwards, since noise within a bin counts.

    Part `calibration`: for each bin, by its middle, right minus stated; below 0 a subject is too sure. Bins that a subject never uses are
    left out for it.

    Example:
        >>> Calibration().ranges["calibration_error"]
        (0.0, 1.0)

    References:
        Guo et al., On Calibration of Modern Neural Networks, 2017, arXiv:1706.04599.
    """

    kind: Literal["calibration"] = "calibration"
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"calibration_error": (0.0, 1.0)}

    def __call__(self, exam: Exam) -> dict[str, Any]:
        tables = {name: table for name in exam.subjects if (table := exam.table(name)).label is not None}
        if not tables:
            return {}
        found = {name: gaps(table) for name, table in tables.items()}
        bins = [{"stated": (i + 0.5) / BINS, **{name: of[i][0] for name, of in found.items() if i in of}} for i in range(BINS)]
        errors = {name: {"calibration_error": sum(abs(gap) * share for gap, share in of.values())} for name, of in found.items()}
        return errors | {"calibration": [one for one in bins if len(one) > 1]}


def gaps(table: Table) -> dict[int, tuple[float, float]]:
    """Bin -> (right minus stated, share of the targets), for bins that have any."""
    assert table.best is not None and table.best_prob is not None
    bins, right = bin_of(table.best_prob), (table.best == table.label).double()
    number = torch.bincount(bins, minlength=BINS)
    gap = torch.zeros(BINS, dtype=torch.float64).index_add(0, bins, right - table.best_prob.double())
    return {i: (float(gap[i] / n), n / len(bins)) for i, n in enumerate(number.tolist()) if n}
