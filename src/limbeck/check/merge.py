"""Contracts of merges: what is the same stays the same, and dtypes, shapes and inputs are kept."""

from collections.abc import Sequence

import torch
from torch import Tensor

from limbeck.check.contract import NotClaimed, close, contract
from limbeck.component import changed
from limbeck.errors import Refused
from limbeck.merge.base import Merge, merge, refuse
from limbeck.store import Later

SHAPES = {"model.layers.0.mlp.up_proj.weight": (6, 4), "model.norm.weight": (4,), "model.embed_tokens.weight": (9, 4)}


def tensors(seed: int, num: int = 2, dtype: torch.dtype = torch.float32) -> list[dict[str, Tensor]]:
    """Weights of some students that came from one start, which is the first."""
    random = torch.Generator().manual_seed(seed)
    start = {name: torch.randn(shape, generator=random) for name, shape in SHAPES.items()}
    others = [{name: x + 0.1 * torch.randn(x.shape, generator=random) for name, x in start.items()} for _ in range(num)]
    return [{name: x.to(dtype) for name, x in state.items()} for state in (start, *others)]


def laters(state: dict[str, Tensor]) -> dict[str, Later]:
    """A state as a merge takes it."""
    return {name: Later(torch.empty_like(x, device="meta"), lambda x=x: x) for name, x in state.items()}


def merged(how: Merge, states: Sequence[dict[str, Tensor]], base: dict[str, Tensor] | None) -> dict[str, Tensor]:
    """A whole merged state."""
    found = merge(how, [laters(state) for state in states], laters(base) if base is not None else None)
    return {name: later.make() for name, later in found.items()}


def exercise(how: Merge) -> None:
    """One ordinary use."""
    start, *others = tensors(0)
    merged(how, others, start)


@contract
def self_merge(how: Merge, seed: int = 0) -> None:
    """A model merged with itself is itself, to the last bit; for a merge of changes, where nothing has changed."""
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        start, one = tensors(seed, 1, dtype)
        same = merged(how, [one, one], one if how.needs_base else start)
        for name, x in one.items():
            assert torch.equal(same[name], x), f"{name} in {dtype} moves by {(same[name].double() - x.double()).abs().max().item():.3g}"


@contract
def keeps_dtype(how: Merge, seed: int = 0) -> None:
    """Dtype, shape and names come out as they went in; numbers are finite; what is no floating-point number stays."""
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        start, *others = ({**state, "steps": torch.tensor([3])} for state in tensors(seed, dtype=dtype))
        out = merged(how, others, start)
        for name, x in others[0].items():
            y = out[name]
            assert y.dtype == x.dtype and y.shape == x.shape, f"{name}: {y.dtype} {tuple(y.shape)}, was {x.dtype} {tuple(x.shape)}"
            assert y.isfinite().all(), f"{name} is not finite"


@contract
def symmetric(how: Merge, seed: int = 0) -> None:
    """Where claimed: the order of what is merged does not matter."""
    if not how.symmetric:
        raise NotClaimed("symmetric is not claimed")
    start, a, b = tensors(seed)
    one, other = merged(how, [a, b], start), merged(how, [b, a], start)
    for name in one:
        close(other[name], one[name], (1e-6, 1e-7), f"claimed; but {name} depends on the order")


@contract
def same_again(how: Merge, seed: int = 0) -> None:
    """The same weights give the same merge, and are not changed by it."""
    start, *others = tensors(seed)
    before = [{name: x.clone() for name, x in state.items()} for state in (start, *others)]
    first, second = merged(how, others, start), merged(how, others, start)
    for name in first:
        assert torch.equal(first[name], second[name]), f"{name} differs when merged again"
    for was, state in zip(before, (start, *others), strict=True):
        for name, x in was.items():
            assert torch.equal(x, state[name]), f"{name} is changed in place"


@contract
def needs_base(how: Merge, seed: int = 0) -> None:
    """Where claimed: it is refused without the weights before training, and other ones give another merge. Else it does not look at them."""
    start, *others = tensors(seed)
    states, names = [laters(state) for state in others], ("a", "b")
    refuse(how, names, states, laters(start), "check")
    elsewhere = {name: x + torch.linspace(-1, 1, x.numel()).reshape(x.shape) for name, x in start.items()}
    name = next(iter(SHAPES))
    if not how.needs_base:
        refuse(how, names, states, None, "check")
        how(name, [state[name] for state in others], None)
        raise NotClaimed("needs_base is not claimed")
    one, other = (how(name, [state[name] for state in others], base[name]) for base in (start, elsewhere))
    assert not torch.equal(one, other), "claimed; but the weights before training change nothing"
    try:
        refuse(how, names, states, None, "check")
    except Refused:
        return
    raise AssertionError("claimed; but without a base it is not refused")


@contract
def in_a_recipe(how: Merge) -> None:
    """It can stand in a recipe after the stages that it names."""
    from limbeck.recipe import Recipe, graph

    stages = [{"name": name, "start": "student", "objective": ["cross_entropy"], "steps": 1} for name in ("a", "b")]
    recipe = Recipe.model_validate({"train": stages, "merge": [changed(how, of=("a", "b"))]})
    assert graph(recipe)[-1].name == how.name and graph(recipe)[-1].after == ("a", "b"), "it does not come after what it merges"
