"""Several ways compared on several data sets or seeds, by their ranks: the test of Friedman and the critical difference of Nemenyi."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from limbeck.errors import Refused

STUDENTIZED = {
    0.05: (1.959964, 2.343701, 2.569032, 2.727774, 2.849705, 2.948320, 3.030879, 3.101730, 3.163684),
    0.10: (1.644854, 2.052293, 2.291341, 2.459516, 2.588521, 2.692732, 2.779884, 2.854606, 2.919889),
}
"""Quantiles of the studentized range over the root of 2, for 2 to 10 ways and any number of blocks (Demšar, JMLR 7, 2006, table 5)."""


class Ranks(NamedTuple):
    """What came of a comparison by ranks."""

    mean: dict[str, float]
    """Way -> its mean rank over all blocks, 1 is best; ways that tie share the mean of their ranks."""
    statistic: float
    """Of Friedman's test, corrected for ties."""
    p_value: float
    """By chi-square with one degree of freedom less than there are ways: rough for few blocks."""
    critical_difference: float
    """Mean ranks that lie at least so far apart differ (Nemenyi)."""

    def apart(self) -> list[tuple[str, str]]:
        """Pairs of ways, the better first, that lie apart by the critical difference, if the ways differ at all."""
        names = sorted(self.mean, key=self.mean.__getitem__)
        pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
        return [(a, b) for a, b in pairs if self.mean[b] - self.mean[a] >= self.critical_difference] if self.p_value < 0.05 else []


def compare(values: Mapping[str, Sequence[float]], greater: bool = True, level: float = 0.05) -> Ranks:
    r"""Ranks ways on each block (a data set, a seed), and asks whether they differ.

    With k ways, N blocks and ranks $r_{ij}$: $\chi^2 = \frac{(k - 1) \sum_j (R_j - N(k+1)/2)^2}{\sum_{ij} r_{ij}^2 - N k (k+1)^2 / 4}$ with $R_j =
    \sum_i r_{ij}$, and $\mathrm{CD} = q_\alpha \sqrt{k (k + 1) / 6N}$.

    Args:
        values: way -> its figure on each block, in one order.
        greater: whether more is better.
        level: of the critical difference, 0.05 or 0.10.

    Raises:
        Refused: `value`, for fewer than 2 or more than 10 ways, no or unequal blocks, figures that are not finite, another level.
    """
    names, columns = list(values), [list(map(float, each)) for each in values.values()]
    wrong = len({len(each) for each in columns}) > 1 or not columns or not columns[0] or not all(math.isfinite(x) for each in columns for x in each)
    if wrong or not 2 <= len(names) <= len(STUDENTIZED[0.05]) + 1 or level not in STUDENTIZED:
        got = f"{len(names)} ways with {', '.join(str(len(each)) for each in columns) or 'no'} figures, level {level}"
        raise Refused("value", "comparison by ranks", "2 to 10 ways, each with as many finite figures; level 0.05 or 0.1", got, "measure all on all")
    num, k = len(columns[0]), len(columns)
    ranks = [ranked([each[i] for each in columns], greater) for i in range(num)]
    sums = [sum(block[j] for block in ranks) for j in range(k)]
    spread = sum(r * r for block in ranks for r in block) - num * k * (k + 1) ** 2 / 4
    statistic = (k - 1) * sum((total - num * (k + 1) / 2) ** 2 for total in sums) / spread if spread > 1e-12 else 0.0
    p_value = float(torch.special.gammaincc(*(torch.tensor(x, dtype=torch.float64, device="cpu") for x in ((k - 1) / 2, statistic / 2))))
    difference = STUDENTIZED[level][k - 2] * math.sqrt(k * (k + 1) / (6 * num))
    return Ranks({name: total / num for name, total in zip(names, sums, strict=True)}, statistic, p_value, difference)


def ranked(values: Sequence[float], greater: bool) -> list[float]:
    """The rank of each, 1 for the best; equal ones share the mean of their ranks."""
    signed = [-x if greater else x for x in values]
    return [1 + sum(other < x for other in signed) + (sum(other == x for other in signed) - 1) / 2 for x in signed]
