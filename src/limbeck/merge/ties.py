"""Changes without those that are small or contradict."""

from typing import ClassVar, Literal

from limbeck.merge._deltas import AbstractDeltas, Density, Read, disjoint_mean, weights_of
from limbeck.merge._select import ranked


class Ties(AbstractDeltas):
    r"""Adds the mean of the large changes that agree in their sign.

    $$ \hat\tau_i = \tau_i \text{ where } |\tau_i| \text{ is among the largest share of its tensor}, \qquad
       \theta = \theta_0 + \lambda \, \frac{\sum_{i \in A} w_i \hat\tau_i}{\sum_{i \in A} w_i}, \qquad
       A = \{i : \mathrm{sign}\,\hat\tau_i = \mathrm{sign} \textstyle\sum_j w_j \hat\tau_j\} $$

    with the changes $\tau_i = \theta_i - \theta_0$, element by element. For models trained on different tasks, whose changes contradict
    each other in many places. Trimmed tensor by tensor, exactly; what is as large as the smallest that is kept is kept too. Where the
    sum of the changes is exactly 0, those upwards are taken.

    Example:
        >>> Ties(of=("a", "b")).density
        0.2

    References:
        Yadav et al., TIES-Merging: Resolving interference when merging models, 2023, arXiv:2306.01708.
    """

    kind: Literal["ties"] = "ties"
    symmetric: ClassVar[bool] = True
    weights: tuple[float, ...] = ()
    """One weight for each of `of`; none: all alike."""
    density: Density = 0.2
    """Share of each tensor's changes that is kept, at least one."""

    def known(self, name: str, models: int, num: int, read: Read) -> list[float]:
        kept = max(1, int(self.density * num))
        return ranked(lambda: (part.abs() for part in read()), [num - kept] * models)

    def combined(self, deltas, known):
        weights = weights_of(self.weights, deltas)
        trimmed = deltas * (deltas.abs() >= deltas.new_tensor(known)[:, None])
        return disjoint_mean(trimmed, weights, weights * trimmed)
