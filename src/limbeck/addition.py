"""Which of some candidates to take, when what is told of a set is a score that depends on the whole set: alone each, or one after the other."""

from collections.abc import Callable, Sequence

Some = tuple[int, ...]
"""Candidates that are taken together, in ascending order."""


def added(candidates: Sequence[int], num: int, told: Callable[[Some], float | None], at_once: int = 1) -> tuple[Some, list[Some]]:
    """What is taken, as far as the scores that were told decide it; and the sets whose scores come next, none where all is decided.

    Each candidate is scored together with what was taken before, and the `at_once` best are taken, lower scores being better and of equal
    ones the earlier candidate; and so on until there are `num`. With `at_once` as many as `num`, each is scored alone, and never again.

    Example:
        >>> scores = {(0,): 1.0, (1,): 1.1, (2,): 1.5, (0, 1): 0.9, (0, 2): 0.2}
        >>> added(range(3), 2, scores.get), added(range(3), 2, scores.get, at_once=2)
        (((0, 2), []), ((0, 1), []))
    """
    taken: Some = ()
    for _ in range(num // at_once):
        sets = {i: tuple(sorted((*taken, i))) for i in candidates if i not in taken}
        missing = [some for some in sets.values() if told(some) is None]
        if missing:
            return taken, missing
        best = sorted(sets, key=lambda i: told(sets[i]))[:at_once]  # type: ignore[arg-type, return-value]
        taken = tuple(sorted((*taken, *best)))
    return taken, []
