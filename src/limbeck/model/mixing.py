"""The matrices by which blocks mix the positions of a row: probabilities of attention, or those of what stands in its place."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from limbeck.errors import Refused
from limbeck.signals import View


class Matrices(NamedTuple):
    """What was heard of one mixer in one call."""

    values: Tensor
    """[rows, head, T, T]; of attention over packed rows, one matrix of all of them."""
    there: Bool[Tensor, "row past"] | None = None
    """Where a mixer lays packed rows apart: which of the positions are there."""


Pick = Callable[[int], list[int]]
"""How many heads there are -> those that are heard."""


def picked(drawn: Float[Tensor, " k"]) -> Pick:
    """Picks as many heads as numbers were drawn, evenly below 1: each set of heads as often as any other, and none twice."""

    def pick(num: int) -> list[int]:
        left = list(range(num))
        if len(drawn) > num:
            raise Refused("heads", "forward.heads", f"at most {num} heads, as many as a block has", str(len(drawn)), "lower heads")
        return sorted(left.pop(int(x * len(left))) for x in drawn.tolist())

    return pick


@contextmanager
def mixing(module: nn.Module, places: Mapping[str, str], pick: Pick | None = None) -> Iterator[dict[str, Matrices]]:
    """Inside, the matrices of the mixers at some paths are heard, by name; `pick`: of some heads alone.

    Attention shows its probabilities in transformers' eager form alone, which it takes on inside where one is asked for. A mixer that has
    a method `mixing` (see `limbeck.block._mixing`) is asked to write its own out, from what it is called with.
    """
    heard: dict[str, Matrices] = {}
    parts = {name: module.get_submodule(path) for name, path in places.items()}
    attends = any(not hasattr(part, "mixing") for part in parts.values())
    with contextlib.ExitStack() as stack:
        if attends:
            stack.enter_context(eager(module))
        for name, part in parts.items():
            stack.callback(listen(part, name, heard, pick).remove)
        yield heard


def listen(part: nn.Module, name: str, heard: dict[str, Matrices], pick: Pick | None) -> Any:
    """A hook that hears the matrix of one mixer; what has none is refused."""

    def refused() -> Refused:
        got, do = f"{type(part).__name__}, which has none", "name the layers of others, or compare outputs: {kind: hidden_l2, signal: mixer}"
        return Refused("need", name, "attention, or a block in its place that mixes positions by a matrix", got, do, 3)

    def ask(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        try:
            heard[name] = Matrices(*part.mixing(*args, **kwargs, **({} if pick is None else {"pick": pick})))  # type: ignore[operator]
        except NotImplementedError:
            raise refused() from None

    def keep(_: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        if not isinstance(out, tuple) or len(out) < 2 or not isinstance(out[1], Tensor) or out[1].ndim != 4:
            raise refused()
        heard[name] = Matrices(out[1] if pick is None else out[1][:, pick(out[1].shape[1])])

    return part.register_forward_pre_hook(ask, with_kwargs=True) if hasattr(part, "mixing") else part.register_forward_hook(keep)


@contextmanager
def eager(module: nn.Module) -> Iterator[None]:
    """Inside, attention is computed in plain steps: fused kernels never hold its probabilities."""
    every: dict[int, Any] = {id(config): config for part in module.modules() if (config := getattr(part, "config", None)) is not None}
    before = [(config, config._attn_implementation) for config in every.values() if hasattr(config, "_attn_implementation")]
    for config, _ in before:
        config._attn_implementation = "eager"
    try:
        yield
    finally:
        for config, form in before:
            config._attn_implementation = form


def by_position(matrices: Matrices, view: View, flat: Callable[[Tensor], Tensor]) -> Float[Tensor, "pos head past"]:
    """What each position weighs, from the first position of its row on; zeros up to the longest row.

    Args:
        matrices: as they were heard.
        view: what the role looked at.
        flat: from the role's layout to positions end to end.
    """
    lengths, each = view.ragged, matrices.values.transpose(1, 2)
    found = flat(each) if matrices.there is None else each[matrices.there]
    place = torch.arange(int(lengths.max()) if len(lengths) else 0, device=found.device)
    if matrices.there is None and len(each) == 1:  # all rows in one: each begins somewhere else
        first = torch.arange(len(found), device=found.device) - view.offsets
        index = (first[:, None] + place).clamp(max=found.shape[-1] - 1)
        found = found.gather(-1, index[:, None].expand(-1, found.shape[1], -1))
    inside = place < lengths.repeat_interleave(lengths)[:, None]
    return torch.where(inside[:, None], found[..., : len(place)], 0)
