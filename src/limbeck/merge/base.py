"""Several sets of weights into one."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor

from limbeck.component import Choice, Component
from limbeck.errors import Failed, Refused
from limbeck.store import Later

PART = 1 << 18
"""Numbers that are worked on at once, in float64."""


class Merge(Component):
    """Makes one set of weights from those of several stages, one tensor at a time."""

    room: ClassVar[str] = "merge"
    symmetric: ClassVar[bool] = False
    """Claim: the order of what is merged does not matter."""
    needs_base: ClassVar[bool] = False
    """Claim: it looks at the weights before training; without the claim it works without them."""
    pair: ClassVar[bool] = False
    """It takes two sets of weights, not more and not fewer."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=60)] = "merged"
    """What others refer to."""
    of: tuple[str, ...] = ()
    """Names of the stages (or merges) whose students are merged."""

    @model_validator(mode="after")
    def as_many_as_it_takes(self) -> "Merge":
        if self.of and (problem := self.problem(len(self.of))):
            raise ValueError(problem)
        return self

    def problem(self, num: int) -> str:
        """What is wrong with merging so many, as what would be right; empty: nothing."""
        weights = getattr(self, "weights", ())
        if self.pair and num != 2:
            return "of: two names"
        return f"weights: one for each of {num} stages" if weights and len(weights) != num else ""

    @abstractmethod
    def __call__(self, name: str, tensors: Sequence[Tensor], base: Tensor | None) -> Tensor:
        """The merged tensor of that name, computed in float32 or better, in the dtype that came; `base` is that before training."""


AnyMerge = Annotated[Merge, Choice()]


def parts(num: int) -> Iterator[slice]:
    """Slices of a flat tensor, so that what is computed on the way to its merge does not need its size again."""
    return (slice(at, min(at + PART, num)) for at in range(0, num, PART))


def merge(how: Merge, states: Sequence[Mapping[str, Later]], base: Mapping[str, Later] | None) -> dict[str, Later]:
    """Whole states: each merged tensor is made when it is asked for. What is no floating-point number is the first's."""

    def merged(name: str, first: Later) -> Later:
        if not first.like.is_floating_point():
            return first
        before = base[name] if base is not None and how.needs_base else None
        # with the `like` of the first: what was one tensor with several names is so again when it is saved
        return Later(first.like, lambda: how(name, [state[name].make() for state in states], before.make() if before else None))

    return {name: merged(name, first) for name, first in states[0].items()}


def refuse(how: Merge, names: Sequence[str], states: Sequence[Mapping[str, Any]], base: Mapping[str, Any] | None, where: str) -> None:
    """Says what keeps weights from being merged, before anything is read or written.

    Args:
        how: the merge.
        names: what each of `states` is called.
        states: tensors by name: `Later`.
        base: those before training, if there are any.
        where: for the error.

    Raises:
        Refused: `merge`, for another number of models than it takes, or a base that lacks.
        Failed: `merge`, for tensors that are not alike; names the first.
    """
    if problem := how.problem(len(states)):
        raise Refused("merge", where, problem, f"{len(states)}: {', '.join(names)}", "name as many as it takes")
    if how.needs_base and base is None:
        do = "give the weights that all started from, or choose a merge without a base: average, slerp, arcee_fusion"
        raise Refused("merge", where, f"the weights before training, which {dict(how)['kind']} takes changes from", "none", do)
    others = [*zip(names, states, strict=True), *([("the base", base)] if base is not None and how.needs_base else [])][1:]
    shapes = {name: tuple(later.like.shape) for name, later in states[0].items()}
    for other, state in others:
        for name in (*shapes, *(name for name in state if name not in shapes)):
            a, b = shapes.get(name), tuple(state[name].like.shape) if name in state else None
            if a != b:
                expected = f"{ascii(name)[:80]} of shape {a} as in {names[0]}" if a is not None else f"no {ascii(name)[:80]}, as in {names[0]}"
                got = f"{f'shape {b}' if b is not None else 'no such tensor'} in {other}"
                do = "merge models of one build: of equal sizes and one vocabulary; stages, that share their surgeries"
                raise Failed("merge", where, expected, got, do, code=5)


def filled(like: Tensor, values: Iterator[tuple[slice, Tensor]]) -> Tensor:
    """A tensor of the same dtype and shape, from flat parts."""
    out = torch.empty_like(like, memory_format=torch.contiguous_format)
    for part, value in values:
        out.view(-1)[part] = value.to(out.dtype)
    return out
