"""Sums of what was learned."""

from typing import ClassVar, Literal

from limbeck.merge._deltas import AbstractDeltas, weights_of


class TaskArithmetic(AbstractDeltas):
    r"""Adds what each model has learned to the weights that all started from.

    $$ \theta = \theta_0 + \lambda \sum_i w_i (\theta_i - \theta_0) $$

    A negative weight takes away what a model has learned. For skills that hardly touch each other; where models change the same weights
    in different directions, `ties` keeps more of each. Changes of several models add up: begin with a scale near one over their number.

    Example:
        >>> TaskArithmetic(of=("a", "b"), weights=(1.0, -1.0), scale=0.5).weights
        (1.0, -1.0)

    References:
        Ilharco et al., Editing models with task arithmetic, 2023, arXiv:2212.04089.
    """

    kind: Literal["task_arithmetic"] = "task_arithmetic"
    symmetric: ClassVar[bool] = True
    weights: tuple[float, ...] = ()
    """One weight for each of `of`; none: 1 for each."""

    def combined(self, deltas, known):
        return (weights_of(self.weights, deltas) * deltas).sum(0)
